"""Behind a proxy that is believed: whose budget of wrong passwords it is, what the audit log says, and which cookies
the browser gets."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable

import grpc
import httpx
import pytest

from orisun_api import admin_pb2 as ad
from orisun_api import eventstore_pb2 as pb
from orisun_server.admin.logins import FREE
from orisun_server.app import App
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, basic, eventually
from tests.integration.web import running

RIGHT = {"username": "admin", "password": "changeit"}


@pytest.fixture(autouse=True)
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine must not sit the first pause out."""
    monkeypatch.setattr("orisun_server.admin.logins.FIRST_PAUSE", 60.0)


@pytest.fixture(scope="module", params=["grpcio", "native"])
async def app(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> AsyncIterator[App]:
    if request.param == "native":
        pytest.importorskip("pygrpc_native")
    settings = make_settings(trusted_proxies="127.0.0.0/8, 10.42.0.0/16", grpc_transport=request.param)
    async with running(settings) as app:
        yield app


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=app.page_address, timeout=20) as client:
        yield client


def wrong(number: int, name: str = "admin") -> tuple[tuple[str, str], ...]:
    return basic(name, f"wrong-{number}")


async def ping(connection: Connection, metadata: tuple[tuple[str, str], ...], client: str) -> grpc.StatusCode:
    """The status of a call that a proxy says to come from ``client``."""
    try:
        await connection.events.Ping(pb.PingRequest(), metadata=(*metadata, ("x-forwarded-for", client)))
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_whoever_guesses_is_held_up_and_nobody_else_behind_the_proxy(app: App) -> None:
    connection = Connection(app.address)
    codes = [await ping(connection, wrong(number), "198.51.100.1") for number in range(FREE + 1)]
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * FREE + [grpc.StatusCode.RESOURCE_EXHAUSTED]
    # what the client puts before it changes nothing
    assert await ping(connection, wrong(99), "203.0.113.5, 198.51.100.1") is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await ping(connection, wrong(99), "198.51.100.2") is grpc.StatusCode.UNAUTHENTICATED
    assert await ping(connection, ADMIN, "198.51.100.2") is grpc.StatusCode.OK
    await connection.close()


async def test_the_page_counts_by_the_same_address(app: App, client: httpx.AsyncClient) -> None:
    async def sign_in(number: int, forwarded: str) -> int:
        data = {"username": "admin", "password": f"wrong-{number}"}
        return (await client.post("/sign-in", data=data, headers={"x-forwarded-for": forwarded})).status_code

    codes = [await sign_in(number, "198.51.100.7") for number in range(FREE + 1)]
    assert codes == [401] * FREE + [429]
    assert await sign_in(99, "198.51.100.8") == 401
    # a proxy beyond the proxy, which is believed as well
    assert await sign_in(99, "198.51.100.7, 10.42.0.9") == 429


async def test_the_audit_log_has_the_client(app: App) -> None:
    connection = Connection(app.address)
    assert await ping(connection, wrong(1), "198.51.100.33") is grpc.StatusCode.UNAUTHENTICATED
    tag = pb.Tag(key="eventType", value="orisun.LoginFailed")
    request = pb.GetEventsRequest(
        boundary=app.settings.admin_boundary, count=100, query=pb.Query(criteria=[pb.Criterion(tags=[tag])])
    )

    async def noted() -> bool:
        found = (await connection.events.GetEvents(request, metadata=ADMIN)).events
        return "198.51.100.33" in {json.loads(event.metadata).get("peer") for event in found}

    await eventually(noted)
    await connection.close()


async def test_the_cookie_never_leaves_tls_that_ended_at_the_proxy(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sign-in", data=RIGHT, headers={"x-forwarded-proto": "https"})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert cookie.startswith("__Host-orisun_session=")
    assert {"secure", "httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
    value = cookie.partition("=")[2].partition(";")[0]
    held = {"cookie": f"__Host-orisun_session={value}"}
    assert (await client.get("/", headers={**held, "x-forwarded-proto": "https"})).status_code == 200
    # by plain HTTP a cookie of that name is nobody's
    assert (await client.get("/", headers=held)).status_code == 303


async def test_signing_in_by_http_sets_a_plain_cookie(client: httpx.AsyncClient) -> None:
    for schemes in ([], ["http"], ["https, http"], ["https", "http"], ["x"]):
        headers = [("x-forwarded-proto", scheme) for scheme in schemes]
        answer = await client.post("/sign-in", data=RIGHT, headers=headers)
        assert answer.headers["set-cookie"].startswith("orisun_session=")
        assert "secure" not in answer.headers["set-cookie"].lower()


async def test_without_the_setting_nobody_is_believed(make_settings: Callable[..., Settings]) -> None:
    async with running(make_settings()) as app, httpx.AsyncClient(base_url=app.page_address, timeout=20) as client:
        answer = await client.post("/sign-in", data=RIGHT, headers={"x-forwarded-proto": "https"})
        assert answer.headers["set-cookie"].startswith("orisun_session=")
        header = "Basic " + base64.b64encode(b"admin:wrong").decode()
        codes = []
        for number in range(FREE + 1):
            headers = {"x-forwarded-for": f"198.51.100.{number}"}
            data = {"username": "admin", "password": f"{header}{number}"}
            codes.append((await client.post("/sign-in", data=data, headers=headers)).status_code)
        assert codes == [401] * FREE + [429]


async def test_guesses_from_the_same_address_do_not_lock_out_who_has_signed_in_before(
    make_settings: Callable[..., Settings],
) -> None:
    """Of a proxy that hides addresses and says nothing of them."""
    async with running(make_settings()) as app, httpx.AsyncClient(base_url=app.page_address, timeout=20) as known:
        assert (await known.post("/sign-in", data=RIGHT)).status_code == 303
        device = known.cookies["orisun_device"]
        assert device.startswith("device1.")
        connection = Connection(app.address)
        call = connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
        token = next(str(value) for key, value in await call.initial_metadata() if key == "x-auth-token")

        async def sign_in(password: str, **cookies: str) -> int:
            async with httpx.AsyncClient(base_url=app.page_address, cookies=cookies, timeout=20) as client:
                data = {"username": "admin", "password": password}
                return (await client.post("/sign-in", data=data)).status_code

        codes = [await sign_in(f"wrong-{number}") for number in range(FREE + 1)]
        assert codes == [401] * FREE + [429]
        # of a browser that has nothing else any more
        assert await sign_in("wrong", orisun_device=device) == 401
        assert await sign_in("changeit", orisun_device=device) == 303
        # it lets nobody in, and no other will do
        assert (await known.get("/", headers={"cookie": f"orisun_session={device}"})).status_code == 303
        assert await sign_in("wrong-x", orisun_device=device[:-3] + "abc") == 429
        assert await sign_in("wrong-x", orisun_device=token) == 401
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await connection.events.Ping(pb.PingRequest(), metadata=(("x-auth-token", device),))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # of a program whose password was changed elsewhere, say, and which still has its token
        change = ad.ChangePasswordRequest(user_id="admin", current_password="changeit", new_password="changed-it")
        await connection.admin.ChangePassword(change, metadata=ADMIN)

        async def status(*metadata: tuple[str, str]) -> grpc.StatusCode:
            try:
                await connection.events.Ping(pb.PingRequest(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        (basic_header,) = basic("admin", "changed-it")
        (wrong_header,) = basic("admin", "wrong-y")
        assert await status(wrong_header) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await status(wrong_header, ("x-auth-token", token)) is grpc.StatusCode.UNAUTHENTICATED
        assert await status(basic_header, ("x-auth-token", token)) is grpc.StatusCode.OK
        await connection.close()
