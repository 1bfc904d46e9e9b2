"""Authentication: Basic, session tokens, roles, and their end (contract.md, Authentication)."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.admin.bootstrap import warn_of_default_password
from orisun_server.admin.passwords import Passwords
from orisun_server.admin.sessions import LIFETIME, Sessions
from orisun_server.admin.users import Users
from orisun_server.app import App
from orisun_server.errors import Unauthenticated
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from tests.harness import ADMIN, Connection, basic, eventually, is_quick

PING = pb.PingRequest()


@pytest.fixture(scope="module")
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture(scope="module")
async def server(settings: Settings) -> AsyncIterator[Connection]:
    """One server for all tests here: each makes users of its own."""
    app = App(settings)
    await app.start()
    connection = Connection(app.address)
    yield connection
    await connection.close()
    await app.stop()


def header(value: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", value),)


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """The status of a call that may succeed."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def token_of(call: Any) -> str:
    values = [value for key, value in await call.initial_metadata() if key == "x-auth-token"]
    assert len(values) == 1
    return str(values[0])


def with_token(token: str) -> tuple[tuple[str, str], ...]:
    return (("x-auth-token", token),)


async def new_user(server: Connection, *roles: str) -> tuple[admin_pb2.AdminUser, tuple[tuple[str, str], ...]]:
    username = "user-" + secrets.token_hex(4)
    request = admin_pb2.CreateUserRequest(name="N", username=username, password="secret1", roles=roles)
    response = await server.admin.CreateUser(request, metadata=ADMIN)
    return response.user, basic(username, "secret1")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ((), "missing authorization header"),
        (header("Bearer abc"), "invalid authorization header format"),
        (header("Basicabc"), "invalid authorization header format"),
        (header("Basic " + encoded("no-colon")), "invalid authorization header format"),
        (header("Basic ***"), "invalid authorization header encoding"),
        (header("Basic " + encoded(b"\xff\xfe:x")), "invalid authorization header encoding"),
        (basic("admin", "wrong-password"), "invalid credentials"),
        (basic("nobody", "wrong-password"), "invalid credentials"),
        (basic("", ""), "invalid credentials"),
        (with_token("nonsense"), "missing authorization header"),
        (with_token("1.a.b.c"), "missing authorization header"),
        ((*with_token("nonsense"), *basic("admin", "wrong")), "invalid credentials"),
    ],
)
async def test_refused(server: Connection, metadata: tuple[tuple[str, str], ...], message: str) -> None:
    assert await refusal(server.events.Ping(PING, metadata=metadata)) == (grpc.StatusCode.UNAUTHENTICATED, message)


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
async def test_basic_in_any_case(server: Connection, scheme: str) -> None:
    await server.events.Ping(PING, metadata=header(f"{scheme} {encoded('admin:changeit')}"))


async def test_a_password_may_have_colons_and_any_letters(server: Connection) -> None:
    request = admin_pb2.CreateUserRequest(name="N", username="ünïcode", password="a:b:ç→ß", roles=["reader"])
    await server.admin.CreateUser(request, metadata=ADMIN)
    await server.events.Ping(PING, metadata=basic("ünïcode", "a:b:ç→ß"))


async def test_every_rpc_and_reflection_need_authentication(server: Connection) -> None:
    from orisun_server.transport import admin, eventstore

    for descriptor in (eventstore.DESCRIPTOR, admin.DESCRIPTOR):
        for method in descriptor.methods:
            path = f"/{descriptor.full_name}/{method.name}"
            if method.server_streaming:
                call: Any = server.channel.unary_stream(path)(b"")
                answer = refusal(call.read())
            else:
                answer = refusal(server.channel.unary_unary(path)(b""))
            assert await answer == (grpc.StatusCode.UNAUTHENTICATED, "missing authorization header"), path
    for version in ("v1", "v1alpha"):
        stream: Any = server.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        assert (await refusal(stream(iter([b""])).read()))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_health_needs_none(server: Connection) -> None:
    answer = await server.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_token_is_returned_accepted_and_echoed(server: Connection) -> None:
    token = await token_of(server.events.Ping(PING, metadata=ADMIN))
    again = server.events.Ping(PING, metadata=with_token(token))
    assert await token_of(again) == token
    await again


async def test_a_bad_token_beside_a_good_basic_works(server: Connection) -> None:
    call = server.events.Ping(PING, metadata=(*with_token("nonsense"), *ADMIN))
    await call
    await server.events.Ping(PING, metadata=with_token(await token_of(call)))


async def test_a_changed_token_is_none(server: Connection) -> None:
    token = await token_of(server.events.Ping(PING, metadata=ADMIN))
    for place in (0, 5, len(token) // 2, len(token) - 2):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        code, message = await refusal(server.events.Ping(PING, metadata=with_token(changed)))
        assert (code, message) == (grpc.StatusCode.UNAUTHENTICATED, "missing authorization header")


async def test_a_failed_call_leaks_no_token(server: Connection) -> None:
    call = server.events.Ping(PING, metadata=basic("admin", "wrong"))
    await refusal(call)
    assert "x-auth-token" not in dict(await call.initial_metadata())


async def test_a_token_comes_at_once_on_an_idle_stream(server: Connection, settings: Settings) -> None:
    request = pb.CatchUpSubscribeToEventStoreRequest(boundary=settings.boundaries[0].name, subscriber_name="idle")
    stream = server.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)
    token = await asyncio.wait_for(token_of(stream), 30)
    stream.cancel()
    await server.events.Ping(PING, metadata=with_token(token))


async def test_tokens_and_deletions_reach_every_server(
    server: Connection, make_server: Callable[..., Awaitable[Connection]], settings: Settings
) -> None:
    other = await make_server(settings)

    async def works(on: Connection, metadata: Any) -> bool:
        code = await code_of(on.events.Ping(PING, metadata=metadata))
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        return code is grpc.StatusCode.OK

    async def reaches() -> float:
        user, credentials = await new_user(server, "USER")
        began = time.monotonic()
        # seldom: each try before the other server knows the user is a wrong password, and too many of them are refused
        await eventually(lambda: works(other, credentials), interval=0.4)
        took = time.monotonic() - began
        token = with_token(await token_of(server.events.Ping(PING, metadata=credentials)))
        assert await works(other, token)
        await server.admin.DeleteUser(admin_pb2.DeleteUserRequest(user_id=user.user_id), metadata=ADMIN)
        began = time.monotonic()
        assert not await works(server, token)
        assert not await works(server, credentials)

        async def ended() -> bool:
            return not await works(other, token) and not await works(other, credentials)

        await eventually(ended)
        return max(took, time.monotonic() - began)

    await is_quick(reaches, 1.0)


async def test_a_changed_password_ends_tokens_basic_and_streams(server: Connection, settings: Settings) -> None:
    user, credentials = await new_user(server, "USER")
    token = with_token(await token_of(server.events.Ping(PING, metadata=credentials)))
    request = pb.CatchUpSubscribeToEventStoreRequest(boundary=settings.boundaries[0].name, subscriber_name="mine")
    stream = server.events.CatchUpSubscribeToEvents(request, metadata=credentials)
    await stream.initial_metadata()
    change = admin_pb2.ChangePasswordRequest(user_id=user.user_id, current_password="secret1", new_password="secret2")
    assert (await server.admin.ChangePassword(change, metadata=credentials)).success
    for metadata in (token, credentials):
        assert (await refusal(server.events.Ping(PING, metadata=metadata)))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert (await refusal(stream.read()))[0] is grpc.StatusCode.UNAUTHENTICATED
    await server.events.Ping(PING, metadata=basic(user.username, "secret2"))


async def test_tokens_survive_a_restart(make_server: Callable[..., Awaitable[Connection]], settings: Settings) -> None:
    first = await make_server(settings)
    token = with_token(await token_of(first.events.Ping(PING, metadata=ADMIN)))
    second = await make_server(settings)
    await second.events.Ping(PING, metadata=token)


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def users(server: Connection, database: Database, settings: Settings) -> AsyncIterator[Users]:
    """The users of the running server, as another server sees them."""
    users = Users(database, settings.admin_schema, Passwords())
    await users.start()
    yield users
    await users.stop()


async def test_tokens_are_renewed_past_half_their_life_and_end(
    users: Users, database: Database, settings: Settings
) -> None:
    clock = Clock()
    sessions = Sessions(database, settings.admin_schema, users, clock=clock)
    await sessions.start()
    caller, first = await sessions.authenticate(ADMIN[0][1], None)
    assert (caller.username, caller.roles) == ("admin", {"ADMIN"})
    clock.now += LIFETIME * 0.4
    assert (await sessions.authenticate(None, first)).token == first
    clock.now += LIFETIME * 0.4
    renewed = (await sessions.authenticate(None, first)).token
    assert renewed != first
    clock.now += LIFETIME * 0.4
    with pytest.raises(Unauthenticated, match="missing authorization header"):
        await sessions.authenticate(None, first)
    assert (await sessions.authenticate(None, renewed)).caller == caller


async def test_the_default_password_is_warned_about(users: Users, settings: Settings) -> None:
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        with capture_logs() as logs:
            await warn_of_default_password(users, settings.model_copy(update={"grpc_host": host}))
        assert any("DEFAULT PASSWORD" in line["event"] for line in logs) == warned


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were hashed."""
    real, seen = Passwords._matches, list[str]()

    def counted(passwords: Passwords, password_hash: str | None, password: str) -> bool:
        seen.append(password)
        return real(passwords, password_hash, password)

    monkeypatch.setattr(Passwords, "_matches", counted)
    return seen


async def test_unknown_user_and_wrong_password_take_the_same_time(server: Connection, hashed: list[str]) -> None:
    async def seconds(username: str) -> float:
        began = time.perf_counter()
        await refusal(server.events.Ping(PING, metadata=basic(username, "wrong-" + secrets.token_hex(4))))
        return time.perf_counter() - began

    known, _ = await new_user(server, "READER")
    hashed.clear()
    wrong, unknown = [], []
    for _ in range(9):
        wrong.append(await seconds(known.username))
        unknown.append(await seconds("nobody-" + known.username))
    assert len(hashed) == 18
    # the quickest of each: what a busy machine adds tells nothing
    assert 0.5 < min(wrong) / min(unknown) < 2


async def test_known_basic_and_tokens_cost_no_hash(server: Connection, hashed: list[str]) -> None:
    token = with_token(await token_of(server.events.Ping(PING, metadata=ADMIN)))
    hashed.clear()
    for metadata in (ADMIN, token):
        for _ in range(50):
            await server.events.Ping(PING, metadata=metadata)
    assert hashed == []
    await refusal(server.events.Ping(PING, metadata=basic("admin", "wrong-password")))
    assert hashed == ["wrong-password"]


async def test_a_flood_of_wrong_passwords_starves_nobody(server: Connection, hashed: list[str]) -> None:
    token = with_token(await token_of(server.events.Ping(PING, metadata=ADMIN)))
    flood = [
        asyncio.ensure_future(refusal(server.events.Ping(PING, metadata=basic(f"user{number}", "wrong-password"))))
        for number in range(300)
    ]
    # some are refused: as many as may are waiting for their hashes
    await eventually(lambda: any(one.done() for one in flood))
    before = len(hashed)
    for _ in range(5):
        await server.events.Ping(PING, metadata=token)
        await server.events.Ping(PING, metadata=ADMIN)
    # others were answered in between, long before their turn behind those would have come
    assert len(hashed) - before < 60
    codes = {code for code, _ in await asyncio.gather(*flood)}
    assert codes == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
