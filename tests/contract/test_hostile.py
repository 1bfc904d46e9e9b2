"""What an attacker would try beyond noise: SQL in every text, slow connections, headers that carry more, secrets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from tests.contract.fuzzing import METHODS, Code, Target, check
from tests.contract.test_fuzz import _good, _text_fields
from tests.contract.test_garbage import DATA, EMPTY, END_HEADERS, HEADERS, HELLO, PREFACE, frame, headers, request
from tests.harness import ADMIN, ServerProcess, basic
from tests.proxy import PostgresProxy

#: Each would leave a trace, a table called pwned or a pause, wherever a text became part of a statement.
INJECTIONS = [
    "'; CREATE TABLE public.pwned(); --",
    '"; CREATE TABLE public.pwned(); --',
    "\\'; CREATE TABLE public.pwned(); --",
    "') OR true; CREATE TABLE public.pwned(); --",
    "$$; CREATE TABLE public.pwned(); --",
    "x' || (SELECT pg_sleep(20)) || '",
    "' OR '1'='1",
    "{q_events}",
    "{schema}",
    "$1",
    "%s%(x)s",
]


@pytest.fixture
async def postgres_(pg_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(pg_dsn)
    yield connection
    await connection.close()


async def test_sql_in_every_text(target: Target, postgres_: asyncpg.Connection) -> None:
    schemas = [boundary.schema for boundary in target.settings.boundaries]

    async def tables() -> set[str]:
        rows = await postgres_.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
            " WHERE schemaname = ANY($1) OR tablename = 'pwned'",
            schemas,
        )
        return {row["name"] for row in rows}

    before = await tables()
    for method in METHODS:
        for path in _text_fields(method.input_type):
            for injection in INJECTIONS:
                message: Any = _good(method.input_type, target.boundary)
                inner = message
                for field in path[:-1]:
                    inner = getattr(inner, field.name)
                    if field.is_repeated:
                        inner = inner[0] if inner else inner.add()
                if path[-1].is_repeated:
                    getattr(inner, path[-1].name).append(injection)
                else:
                    setattr(inner, path[-1].name, injection)
                async with asyncio.timeout(15):
                    check(method, await target.call(method, message.SerializeToString()))
    after = await tables()
    assert not any("pwned" in name for name in after)
    assert before <= after
    await target.is_well()


async def test_criteria_are_values_and_nothing_else(target: Target) -> None:
    connection = target.process.connection
    event = pb.EventToSave(event_id=secrets.token_hex(8), event_type="A", data='{"owner": "alice"}')
    await connection.events.SaveEvents(pb.SaveEventsRequest(boundary=target.boundary, events=[event]), metadata=ADMIN)
    for key, value in (
        ("owner", "' OR '1'='1"),
        ("owner' = 'alice' OR data->>'owner", "alice"),
        ("owner", "alice' --"),
        ("x') IS NULL OR ('1", "1"),
        ("eventType' OR '1'='1", "A"),
    ):
        query = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key=key, value=value)])])
        request = pb.GetEventsRequest(boundary=target.boundary, count=10, query=query)
        assert not (await connection.events.GetEvents(request, metadata=ADMIN)).events
        latest = pb.GetLatestByCriteriaRequest(boundary=target.boundary, criteria=query.criteria)
        assert not (await connection.events.GetLatestByCriteria(latest, metadata=ADMIN)).results[0].HasField("event")


SLOW = {
    "a connection that says nothing": b"",
    "half a preface": PREFACE[:12],
    "headers that never end": HELLO + frame(HEADERS, 0, 1, headers()),
    "a body that never ends": HELLO + frame(HEADERS, END_HEADERS, 1, headers()) + frame(DATA, 0, 1, b"\0\0\0\0\x64a"),
    "half a frame": HELLO + frame(HEADERS, END_HEADERS, 1, headers())[:20],
}


@pytest.mark.parametrize("case", SLOW)
async def test_slow_connections_delay_nobody(target: Target, case: str) -> None:
    """Two hundred of them, a byte now and then: calls of others are answered as fast as before."""
    opened = [await asyncio.open_connection("127.0.0.1", target.process.port) for _ in range(200)]
    for _, writer in opened:
        writer.write(SLOW[case])
    connection = target.process.connection
    took = []
    for _ in range(10):
        for _, writer in opened[:20]:
            with contextlib.suppress(ConnectionError):
                writer.write(b"\0")
        began = time.monotonic()
        await connection.events.Ping(pb.PingRequest(), metadata=ADMIN, timeout=10)
        took.append(time.monotonic() - began)
    # each of them, unless the machine was busy with something else
    assert sorted(took)[len(took) // 2] < 1
    await target.is_well()
    for _, writer in opened:
        writer.transport.abort()


INJECTED_HEADERS = {
    "a line break in a value": ("x-test", "a\r\nx-auth-token: 1.a.b.c"),
    "a line break in credentials": ("authorization", ADMIN[0][1] + "\r\ngrpc-status: 0"),
    "a NUL": ("x-test", "a\0b"),
    "a second path": (":path", "/orisun.Admin/ListUsers"),
    "a pseudo header after the others": (":authority", "evil"),
    "a connection header": ("connection", "keep-alive"),
    "an upgrade": ("upgrade", "h2c"),
    "a length": ("content-length", "999999"),
}


@pytest.mark.parametrize("case", INJECTED_HEADERS)
async def test_headers_that_carry_more_are_no_way_in(target: Target, case: str) -> None:
    """Without credentials: whatever becomes of such a request, it is never answered as an authenticated one."""
    kinds = await _answer(target, headers(INJECTED_HEADERS[case], authorization=None, path=_COUNT))
    assert DATA not in kinds
    await target.is_well()


async def test_the_same_request_with_credentials_is_answered(target: Target) -> None:
    assert DATA in await _answer(target, headers(path=_COUNT))


_COUNT = "/orisun.Admin/GetUserCount"


async def _answer(target: Target, block: bytes) -> set[int]:
    """The kinds of frames that come back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.process.port)
    writer.write(HELLO + request(1, EMPTY, block))
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(0.3):
            while chunk := await reader.read(65536):
                answer += chunk
    writer.close()
    return {answer[start + 3] for start in _frames(answer)}


def _frames(raw: bytes) -> list[int]:
    """Where the frames of an answer begin."""
    at, starts = 0, []
    while at + 9 <= len(raw):
        starts.append(at)
        at += 9 + int.from_bytes(raw[at : at + 3], "big")
    return starts


async def test_secrets_are_in_no_log_and_no_error(target: Target) -> None:
    """At level DEBUG, with good secrets and wrong ones, in calls that succeed and that fail."""
    connection = target.process.connection
    password, wrong, fresh = (f"S3cret-{name}-{secrets.token_hex(8)}" for name in ("password", "wrong", "fresh"))
    username = "user-" + secrets.token_hex(4)
    create = admin_pb2.CreateUserRequest(name="N", username=username, password=password, roles=["USER"])
    user = (await connection.admin.CreateUser(create, metadata=ADMIN)).user
    told = []
    for call in (
        connection.admin.CreateUser(create, metadata=ADMIN),
        connection.admin.CreateUser(admin_pb2.CreateUserRequest(password=wrong), metadata=ADMIN),
        connection.events.Ping(pb.PingRequest(), metadata=basic(username, wrong)),
        connection.events.Ping(pb.PingRequest(), metadata=(("authorization", f"Bearer {wrong}"),)),
        connection.events.Ping(pb.PingRequest(), metadata=(("x-auth-token", wrong),)),
        connection.admin.ListUsers(admin_pb2.ListUsersRequest(), metadata=basic(username, password)),
        connection.admin.ChangePassword(
            admin_pb2.ChangePasswordRequest(user_id=user.user_id, current_password=wrong, new_password=fresh),
            metadata=basic(username, password),
        ),
    ):
        told.append(await _refusal(call))
    change = admin_pb2.ChangePasswordRequest(user_id=user.user_id, current_password=password, new_password=fresh)
    await connection.admin.ChangePassword(change, metadata=basic(username, password))
    request = admin_pb2.CreateTokenRequest(name=username, roles=["READER"])
    request.expires_at.GetCurrentTime()
    request.expires_at.seconds += 3600
    token = (await connection.admin.CreateToken(request, metadata=ADMIN)).token
    call = connection.events.Ping(pb.PingRequest(), metadata=basic(username, fresh))
    await call
    session = str(dict(await call.initial_metadata())["x-auth-token"])
    await connection.events.Ping(pb.PingRequest(), metadata=(("authorization", f"Bearer {token}"),))
    logs = target.process.logs + "".join(told)
    for secret in (password, wrong, fresh, token, token.split("_", 2)[2], session):
        for spelling in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
            assert spelling not in logs
    assert "argon2" not in logs


async def _refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return f"{refused.value.details()} {refused.value.debug_error_string()} {refused.value.trailing_metadata()}"


@pytest.mark.fault
async def test_nobody_is_told_where_postgresql_is(target: Target) -> None:
    """A server whose PostgreSQL cannot be reached any more."""
    async with contextlib.AsyncExitStack() as network:
        proxy = await network.enter_async_context(PostgresProxy(target.settings))
        async with ServerProcess(proxy.settings) as server:
            connection = server.connection
            await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
            await network.aclose()

            async def refusal() -> tuple[Code, str]:
                request = pb.GetEventsRequest(boundary=target.boundary, count=1)
                return await _code_and_message(connection.events.GetEvents(request, metadata=ADMIN, timeout=10))

            unavailable = (Code.UNAVAILABLE, "PostgreSQL is not available now; try again")
            assert await refusal() == unavailable
            save = pb.SaveEventsRequest(boundary=target.boundary)
            save.events.add(event_id="x", event_type="A", data="{}")
            answer = await _code_and_message(connection.events.SaveEvents(save, metadata=ADMIN, timeout=20))
            assert answer == (unavailable[0], f"{unavailable[1]}; repeat the call unchanged, it is never stored twice")
            users = connection.admin.ListUsers(admin_pb2.ListUsersRequest(), metadata=ADMIN, timeout=20)
            assert await _code_and_message(users) == unavailable
            # those who look after it are told
            assert proxy.settings.pg_host in server.logs


async def _code_and_message(call: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), str(refused.value.details())
