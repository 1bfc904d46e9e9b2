"""Profiles over HTTP: for ADMIN only, off by default, in a form that pprof's tools read."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from orisun_api import admin_pb2
from orisun_server.app import App
from orisun_server.settings import Settings
from tests.harness import Connection
from tests.integration.web import browsing, running

ADMIN = httpx.BasicAuth("admin", "changeit")


@pytest.fixture(scope="module")
async def app(make_settings: Callable[..., Settings]) -> AsyncIterator[App]:
    async with running(make_settings(pprof_enabled=True, pprof_port=0)) as app:
        yield app


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.web.profiles_port}", timeout=30) as client:
        yield client


def parsed(body: bytes) -> Any:
    """The Profile message, by a parser that knows what of profile.proto is looked at here."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="p.proto", package="p", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            repeated = field.endswith("*")
            made.field.add(
                name=field.rstrip("*"), number=number, type=kind, type_name=of or None,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
            )  # fmt: skip

    number, sub, text = kinds.TYPE_INT64, kinds.TYPE_MESSAGE, kinds.TYPE_STRING
    message("Type", ("type", 1, number, ""), ("unit", 2, number, ""))
    message("Sample", ("location_id*", 1, number, ""), ("value*", 2, number, ""))
    message("Line", ("function_id", 1, number, ""), ("line", 2, number, ""))
    message("Location", ("id", 1, number, ""), ("line*", 4, sub, ".p.Line"))
    message("Function", ("id", 1, number, ""), ("name", 2, number, ""), ("filename", 4, number, ""))
    message(
        "Profile",
        ("sample_type*", 1, sub, ".p.Type"), ("sample*", 2, sub, ".p.Sample"), ("location*", 4, sub, ".p.Location"),
        ("function*", 5, sub, ".p.Function"), ("string_table*", 6, text, ""), ("duration_nanos", 10, number, ""),
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Profile")).FromString(gzip.decompress(body))


def functions(profile: Any) -> set[str]:
    return {profile.string_table[function.name] for function in profile.function}


async def busy_function_of_this_test() -> None:
    while True:
        sum(range(1_000))
        await asyncio.sleep(0)


async def test_a_cpu_profile(client: httpx.AsyncClient) -> None:
    task = asyncio.create_task(busy_function_of_this_test())
    answer = await client.get("/debug/pprof/profile?seconds=0.5", auth=ADMIN)
    task.cancel()
    profile = parsed(answer.content)
    assert [profile.string_table[kind.unit] for kind in profile.sample_type] == ["count", "nanoseconds"]
    assert "busy_function_of_this_test" in functions(profile)
    places = {location.id for location in profile.location}
    assert all(set(sample.location_id) <= places and len(sample.value) == 2 for sample in profile.sample)


async def test_a_heap_profile(client: httpx.AsyncClient) -> None:
    kept: list[bytes] = []

    async def allocate() -> None:
        while True:
            kept.append(bytes(100_000))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(allocate())
    answer = await client.get("/debug/pprof/heap?seconds=0.3", auth=ADMIN)
    task.cancel()
    profile = parsed(answer.content)
    most = max(profile.sample, key=lambda sample: sample.value[1])
    assert most.value[1] >= 100_000
    assert any("test_profiles.py" in name for name in functions(profile))


async def test_operations_is_not_enough(app: App, client: httpx.AsyncClient) -> None:
    connection = Connection(app.address)
    user = admin_pb2.CreateUserRequest(name="O", username="operator", password="secret99", roles=["OPERATIONS"])
    await connection.admin.CreateUser(user, metadata=connection.metadata)
    await connection.close()
    operator = httpx.BasicAuth("operator", "secret99")
    assert (await client.get("/debug/pprof/profile?seconds=0.1", auth=operator)).status_code == 403


async def test_for_admin_only(client: httpx.AsyncClient) -> None:
    for path in ("/debug/pprof/", "/debug/pprof/profile", "/debug/pprof/heap"):
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, auth=httpx.BasicAuth("admin", "wrong1"))).status_code == 401
    assert (await client.get("/debug/pprof/", auth=ADMIN)).status_code == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "121", "nan", "x"])
async def test_seconds_are_bounded(client: httpx.AsyncClient, seconds: str) -> None:
    assert (await client.get(f"/debug/pprof/profile?seconds={seconds}", auth=ADMIN)).status_code == 400


async def test_one_at_a_time(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.get("/debug/pprof/profile?seconds=2", auth=ADMIN) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]


async def test_who_takes_a_profile_is_audited(app: App, client: httpx.AsyncClient) -> None:
    async with browsing(app) as browser:
        before = (await browser.text("/audit?type=orisun.ProfileTaken")).count("heap")
        assert (await client.get("/debug/pprof/heap?seconds=0", auth=ADMIN)).status_code == 400
        assert (await client.get("/debug/pprof/heap?seconds=0.1", auth=ADMIN)).status_code == 200
        page = await browser.text("/audit?type=orisun.ProfileTaken")
        assert page.count("heap") == before + 1
        assert "127.0.0.1" in page


async def test_off_by_default(make_settings: Callable[..., Settings]) -> None:
    async with running(make_settings()) as app:
        assert app.web.profiles_port == 0
