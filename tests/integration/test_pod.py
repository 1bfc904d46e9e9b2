"""What a server does for the pod that it runs in: tells when it has drained, and takes its password from a Secret."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orisun_api import admin_pb2 as pb
from orisun_api import eventstore_pb2
from orisun_server import drained
from orisun_server.app import App
from orisun_server.errors import FailedPrecondition
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, ServerProcess, basic, eventually


def _says(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


async def test_the_file_says_serving_and_then_drained(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with ServerProcess(settings, {"ORISUN_DRAINED_FILE": str(file)}) as process:
        assert _says(file) == drained.SERVING
        await process.stop()
        assert _says(file) == drained.DRAINED
        # a container that is started again in the same pod
        await process.start()
        assert _says(file) == drained.SERVING
        await process.kill()
    assert _says(file) == drained.SERVING


async def test_a_call_under_way_is_finished_before_the_file_says_drained(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "state"
    boundary = settings.boundaries[0].name
    async with ServerProcess(settings, {"ORISUN_DRAINED_FILE": str(file)}) as process:
        events = [eventstore_pb2.EventToSave(event_id=f"e{n}", event_type="T", data="{}") for n in range(5000)]
        request = eventstore_pb2.SaveEventsRequest(boundary=boundary, events=events)
        call = asyncio.ensure_future(process.connection.events.SaveEvents(request, metadata=ADMIN))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(process.stop())
        await asyncio.wait((call,))
        answer = call.exception()
        assert answer is None or "UNAVAILABLE" in str(answer)
        await stopping
    assert _says(file) == drained.DRAINED


def test_a_directory_that_is_not_there_stops_nobody(tmp_path: Path) -> None:
    with drained.told(tmp_path / "no" / "such" / "place"):
        pass
    with drained.told(None):
        pass


async def test_an_enforced_password_rules_at_each_start(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    settings = make_settings(admin_username="root", admin_password="first-one", admin_password_enforced=True)
    first = await make_server(settings)
    ask = eventstore_pb2.PingRequest()
    await first.events.Ping(ask, metadata=basic("root", "first-one"))
    changed = settings.model_copy(update={"admin_password": type(settings.admin_password)("second-one")})
    second, third = await asyncio.gather(make_server(changed), make_server(changed))
    for server in (first, second, third):

        async def refused(server: Connection = server) -> bool:
            try:
                await server.events.Ping(ask, metadata=basic("root", "first-one"))
            except Exception:
                return True
            return False

        await eventually(refused, 5)
        await server.events.Ping(ask, metadata=basic("root", "second-one"))
    users = await second.admin.ListUsers(pb.ListUsersRequest(), metadata=basic("root", "second-one"))
    assert [user.username for user in users.users] == ["root"]
    other = changed.model_copy(update={"admin_username": "boss"})
    fourth = await make_server(other)
    users = await fourth.admin.ListUsers(pb.ListUsersRequest(), metadata=basic("boss", "second-one"))
    assert sorted(user.username for user in users.users) == ["boss", "root"]
    # whoever the variables name is ADMIN, also after somebody took the role away
    (root,) = [user for user in users.users if user.username == "root"]
    less = pb.SetUserRolesRequest(user_id=root.user_id, roles=["READER"])
    await fourth.admin.SetUserRoles(less, metadata=basic("boss", "second-one"))
    fifth = await make_server(changed)
    await fifth.admin.ListUsers(pb.ListUsersRequest(), metadata=basic("root", "second-one"))


async def test_the_default_password_is_never_enforced(make_settings: Callable[..., Settings]) -> None:
    """Whichever way it came into the Secret that a pod is started with."""
    app = App(make_settings(admin_password_enforced=True))
    with pytest.raises(FailedPrecondition, match="ORISUN_ADMIN_PASSWORD is the default"):
        await app.start()
    # the other way is how everybody begins on a laptop
    app = App(make_settings())
    await app.start()
    await app.stop()
