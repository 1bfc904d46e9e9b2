"""Administration on real parts: limited roles, the last ADMIN, API tokens, the audit log, slower wrong passwords."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from orisun_api import admin_pb2 as pb
from orisun_api import eventstore_pb2 as es
from orisun_server.admin.logins import FREE
from orisun_server.app import App
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, basic, eventually, is_quick
from tests.integration.test_auth import code_of, new_user, refusal, token_of, with_token

Code = grpc.StatusCode
PING = es.PingRequest()


@pytest.fixture(scope="module")
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings("orders", "payments")


@pytest.fixture(scope="module")
async def server(settings: Settings) -> AsyncIterator[Connection]:
    """One server for all tests here: each makes users of its own."""
    app = App(settings)
    await app.start()
    connection = Connection(app.address)
    yield connection
    await connection.close()
    await app.stop()


def save(boundary: str, event_type: str = "Placed") -> es.SaveEventsRequest:
    event = es.EventToSave(event_id=secrets.token_hex(8), event_type=event_type, data="{}")
    return es.SaveEventsRequest(boundary=boundary, events=[event])


def get(boundary: str) -> es.GetEventsRequest:
    return es.GetEventsRequest(boundary=boundary, count=1)


def in_(**time_from_now: float) -> datetime:
    return datetime.now(UTC) + timedelta(**time_from_now)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def issue(server: Connection, *roles: str, **changes: Any) -> pb.CreateTokenResponse:
    values: dict[str, Any] = {"name": "token-" + secrets.token_hex(4), "expires_at": in_(hours=1), **changes}
    request = pb.CreateTokenRequest(roles=roles or ("USER",), **values)
    response: pb.CreateTokenResponse = await server.admin.CreateToken(request, metadata=ADMIN)
    return response


async def audit(server: Connection, settings: Settings, event_type: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Data and metadata of the audit log's events of a type."""
    tag = es.Tag(key="eventType", value=f"orisun.{event_type}")
    request = es.GetEventsRequest(
        boundary=settings.admin_boundary, count=1000, query=es.Query(criteria=[es.Criterion(tags=[tag])])
    )
    events = (await server.events.GetEvents(request, metadata=ADMIN)).events
    return [(json.loads(event.data), json.loads(event.metadata)) for event in events]


# -- roles ---------------------------------------------------------------------------------------------------------


async def test_roles_that_are_limited_to_a_boundary(server: Connection, settings: Settings) -> None:
    orders, payments = settings.boundaries[0].name, settings.boundaries[1].name
    user, credentials = await new_user(server, f"user:{orders}", f"operations:{payments}", f"READER:{payments}")
    assert list(user.roles) == [f"USER:{orders}", f"OPERATIONS:{payments}", f"READER:{payments}"]
    await server.events.SaveEvents(save(orders), metadata=credentials)
    _, reader = await new_user(server, f"READER:{orders}")
    await server.events.GetEvents(get(orders), metadata=reader)
    code, message = await refusal(server.events.SaveEvents(save(orders), metadata=reader))
    assert (code, message) == (
        Code.PERMISSION_DENIED,
        "user does not have a role required for this operation: orisun.EventStore/SaveEvents needs ADMIN, OPERATIONS"
        " or USER",
    )
    code, message = await refusal(server.events.GetEvents(get(payments), metadata=reader))
    assert code is Code.PERMISSION_DENIED
    assert message.endswith(f'needs ADMIN, OPERATIONS, USER or READER for boundary "{payments}"')
    request = es.CatchUpSubscribeToEventStoreRequest(boundary=payments, subscriber_name="x")
    stream = server.events.CatchUpSubscribeToEvents(request, metadata=reader)
    assert (await refusal(stream.read()))[0] is Code.PERMISSION_DENIED
    listed = (await server.admin.ListBoundaries(pb.ListBoundariesRequest(), metadata=credentials)).boundaries
    assert [boundary.name for boundary in listed] == [payments]
    assert (
        await code_of(server.admin.GetBoundary(pb.GetBoundaryRequest(name=payments), metadata=credentials)) is Code.OK
    )
    code = await code_of(server.admin.GetBoundary(pb.GetBoundaryRequest(name=orders), metadata=credentials))
    assert code is Code.PERMISSION_DENIED
    assert await code_of(server.events.Ping(PING, metadata=reader)) is Code.OK


async def test_new_roles_hold_at_once_and_end_open_streams(server: Connection, settings: Settings) -> None:
    orders = settings.boundaries[0].name
    user, credentials = await new_user(server, "READER")
    token = with_token(await token_of(server.events.Ping(PING, metadata=credentials)))
    request = es.CatchUpSubscribeToEventStoreRequest(boundary=orders, subscriber_name=user.username)
    stream = server.events.CatchUpSubscribeToEvents(request, metadata=credentials)
    await stream.initial_metadata()
    assert await code_of(server.events.SaveEvents(save(orders), metadata=token)) is Code.PERMISSION_DENIED
    change = pb.SetUserRolesRequest(user_id=user.user_id, roles=["user"])
    changed = (await server.admin.SetUserRoles(change, metadata=ADMIN)).user
    assert (changed.user_id, list(changed.roles), changed.name) == (user.user_id, ["USER"], user.name)
    await server.events.SaveEvents(save(orders), metadata=token)

    async def ended() -> bool:
        try:
            await stream.read()
        except grpc.aio.AioRpcError as error:
            return error.code() is Code.UNAUTHENTICATED
        return False

    await eventually(ended)
    (told,) = [
        about for about, _ in await audit(server, settings, "UserRolesChanged") if about["user_id"] == user.user_id
    ]
    assert (told["before"], told["roles"]) == (["READER"], ["USER"])


@pytest.mark.parametrize(
    ("user_id", "roles", "refused"),
    [
        ("", ["USER"], (Code.INVALID_ARGUMENT, "user_id is required")),
        ("nobody", ["USER"], (Code.NOT_FOUND, "user not found")),
        ("nobody", [], (Code.INVALID_ARGUMENT, "invalid request: at least one role is required")),
    ],
)
async def test_roles_that_cannot_be_set(
    server: Connection, user_id: str, roles: list[str], refused: tuple[Code, str]
) -> None:
    request = pb.SetUserRolesRequest(user_id=user_id, roles=roles)
    assert await refusal(server.admin.SetUserRoles(request, metadata=ADMIN)) == refused


async def test_the_last_administrator_stays(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    settings = make_settings()
    one, two = await asyncio.gather(make_server(settings), make_server(settings))
    (admin,) = (await one.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)).users
    demote = pb.SetUserRolesRequest(user_id=admin.user_id, roles=["OPERATIONS", "USER"])
    assert await refusal(one.admin.SetUserRoles(demote, metadata=ADMIN)) == (
        Code.FAILED_PRECONDITION,
        "the last ADMIN cannot be demoted; give another user the role ADMIN first",
    )
    token = bearer((await issue(one, "ADMIN")).token)
    delete = pb.DeleteUserRequest(user_id=admin.user_id)
    assert await refusal(one.admin.DeleteUser(delete, metadata=token)) == (
        Code.FAILED_PRECONDITION,
        "the last ADMIN cannot be deleted; give another user the role ADMIN first",
    )
    # of two administrators who are deleted at once, on two servers, one stays
    other, _ = await new_user(one, "ADMIN")
    for round_ in range(3):
        await eventually(lambda: works(two, token))
        answers = await asyncio.gather(
            code_of(one.admin.DeleteUser(delete, metadata=token)),
            code_of(two.admin.DeleteUser(pb.DeleteUserRequest(user_id=other.user_id), metadata=token)),
        )
        assert sorted(answers, key=str) == [Code.FAILED_PRECONDITION, Code.OK], round_
        (left,) = (await one.admin.ListUsers(pb.ListUsersRequest(), metadata=token)).users
        assert "ADMIN" in left.roles
        request = pb.CreateUserRequest(name="N", username=f"again{round_}", password="secret1", roles=["ADMIN"])
        made = (await one.admin.CreateUser(request, metadata=token)).user
        delete, other = pb.DeleteUserRequest(user_id=left.user_id), made


async def works(server: Connection, metadata: Any) -> bool:
    code = await code_of(server.events.Ping(PING, metadata=metadata))
    assert code in (Code.OK, Code.UNAUTHENTICATED)
    return code is Code.OK


# -- API tokens ----------------------------------------------------------------------------------------------------


async def test_a_token_works_everywhere_until_it_is_revoked(
    server: Connection, make_server: Callable[..., Awaitable[Connection]], settings: Settings
) -> None:
    other = await make_server(settings)
    orders, payments = settings.boundaries[0].name, settings.boundaries[1].name

    async def revoked() -> float:
        return await _revoked_everywhere(server, other, orders, payments)

    await is_quick(revoked, 1.0)


async def _revoked_everywhere(server: Connection, other: Connection, orders: str, payments: str) -> float:
    """Seconds from a token's revocation until no server takes it any more."""
    made = await issue(server, f"user:{orders}", name="shop-" + secrets.token_hex(4))
    assert made.token.startswith("orisun_")
    assert made.info.created_by == "admin"
    assert list(made.info.roles) == [f"USER:{orders}"]
    metadata = bearer(made.token)
    await server.events.SaveEvents(save(orders), metadata=metadata)
    assert await code_of(server.events.SaveEvents(save(payments), metadata=metadata)) is Code.PERMISSION_DENIED
    await eventually(lambda: works(other, metadata))
    request = es.CatchUpSubscribeToEventStoreRequest(boundary=orders, subscriber_name="shop")
    stream = other.events.CatchUpSubscribeToEvents(request, metadata=metadata)
    await stream.initial_metadata()
    listed = (await server.admin.ListTokens(pb.ListTokensRequest(), metadata=ADMIN)).tokens
    assert made.info in listed
    assert made.token.encode() not in b"".join(one.SerializeToString() for one in listed)
    revoke = pb.RevokeTokenRequest(token_id=made.info.token_id)
    assert (await server.admin.RevokeToken(revoke, metadata=ADMIN)).success
    began = time.monotonic()
    assert not await works(server, metadata)

    async def ended() -> bool:
        return not await works(other, metadata)

    await eventually(ended)
    took = time.monotonic() - began
    while (code := await code_of(stream.read())) is Code.OK:
        pass  # the events from before
    assert code is Code.UNAUTHENTICATED
    assert await refusal(server.admin.RevokeToken(revoke, metadata=ADMIN)) == (Code.NOT_FOUND, "token not found")
    assert made.info not in (await server.admin.ListTokens(pb.ListTokensRequest(), metadata=ADMIN)).tokens
    return took


async def test_a_token_expires_and_so_do_its_streams(server: Connection, settings: Settings) -> None:
    made = await issue(server, "READER", expires_at=in_(seconds=4))
    metadata = bearer(made.token)
    request = es.CatchUpSubscribeToEventStoreRequest(boundary=settings.boundaries[1].name, subscriber_name="expires")
    stream = server.events.CatchUpSubscribeToEvents(request, metadata=metadata)
    await stream.initial_metadata()
    assert await works(server, metadata)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(stream.read(), 30)
    assert ended.value.code() is Code.UNAUTHENTICATED
    assert not await works(server, metadata)
    # an expired one is still listed, and its name is free once it is revoked
    assert made.info in (await server.admin.ListTokens(pb.ListTokensRequest(), metadata=ADMIN)).tokens
    with pytest.raises(grpc.aio.AioRpcError, match="already exists"):
        await issue(server, name=made.info.name)
    await server.admin.RevokeToken(pb.RevokeTokenRequest(token_id=made.info.token_id), metadata=ADMIN)
    await issue(server, name=made.info.name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is required"),
        ({"name": "ab"}, "name must be at least 3 characters"),
        ({"name": "a\0b"}, "name must be at most 255 characters, without NUL characters"),
        ({"expires_at": None}, "expires_at is required"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at 2020-01-01T00:00:00+00:00 is not in the future"),
    ],
)
async def test_what_a_token_must_have(server: Connection, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await issue(server, **changes)
    assert (refused.value.code(), refused.value.details()) == (Code.INVALID_ARGUMENT, f"invalid request: {message}")


@pytest.mark.parametrize(
    "spoil", [lambda token: token[:-1], lambda token: token + "x", str.upper, lambda token: token[:40]]
)
async def test_a_changed_token_is_none(server: Connection, spoil: Callable[[str], str]) -> None:
    code, message = await refusal(server.events.Ping(PING, metadata=bearer(spoil((await issue(server)).token))))
    assert code is Code.UNAUTHENTICATED
    assert message in ("invalid credentials", "invalid authorization header format")


async def test_a_token_is_no_session_and_has_no_password(server: Connection) -> None:
    made = await issue(server, "ADMIN")
    call = server.events.Ping(PING, metadata=bearer(made.token))
    await call
    assert "x-auth-token" not in dict(await call.initial_metadata())
    change = pb.ChangePasswordRequest(user_id=made.info.token_id, current_password="x", new_password="secret1")
    assert (await refusal(server.admin.ChangePassword(change, metadata=bearer(made.token))))[
        0
    ] is Code.PERMISSION_DENIED


async def test_no_secret_is_stored(server: Connection, settings: Settings, pg_dsn: str) -> None:
    import asyncpg

    password = "pass-" + secrets.token_hex(8)
    request = pb.CreateUserRequest(name="N", username="hidden", password=password, roles=["USER"])
    await server.admin.CreateUser(request, metadata=ADMIN)
    token = (await issue(server)).token
    connection = await asyncpg.connect(pg_dsn)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = $1",
            settings.admin_schema,
        )
        rows = [await connection.fetch(f"SELECT t::text FROM {table['name']} AS t") for table in tables]
    finally:
        await connection.close()
    text = str(rows)
    assert "UserCreated" in text
    for secret in (password, token, token.split("_", 2)[2]):
        assert secret not in text
    events = (await server.events.GetEvents(
        es.GetEventsRequest(boundary=settings.admin_boundary, count=1000), metadata=ADMIN
    )).SerializeToString()  # fmt: skip
    for hidden in (b"argon2", token.encode(), password.encode()):
        assert hidden not in events


# -- the audit log -------------------------------------------------------------------------------------------------


async def test_acts_are_audited_with_who_and_from_where(server: Connection, settings: Settings) -> None:
    orders = settings.boundaries[0].name
    made, credentials = await new_user(server, "ADMIN")
    field = es.IndexField(json_key="k")
    await server.events.CreateIndex(
        es.CreateIndexRequest(boundary=orders, name="audited", fields=[field]), metadata=credentials
    )
    await server.admin.DropIndex(es.DropIndexRequest(boundary=orders, name="audited"), metadata=credentials)
    placement = pb.BoundaryPlacementInput(backend="postgres", namespace=settings.boundaries[0].schema)
    name = "audited_" + secrets.token_hex(3)
    await server.admin.CreateBoundary(pb.CreateBoundaryRequest(name=name, placement=placement), metadata=credentials)
    change = pb.ChangePasswordRequest(user_id=made.user_id, current_password="secret1", new_password="secret2")
    await server.admin.ChangePassword(change, metadata=credentials)
    fresh = basic(made.username, "secret2")
    token = await server.admin.CreateToken(
        pb.CreateTokenRequest(name="audited", roles=["USER"], expires_at=in_(hours=1)), metadata=fresh
    )
    await server.admin.RevokeToken(pb.RevokeTokenRequest(token_id=token.info.token_id), metadata=fresh)
    other, _ = await new_user(server, "USER")
    await server.admin.DeleteUser(pb.DeleteUserRequest(user_id=other.user_id), metadata=fresh)
    who = {"username": made.username, "user_id": made.user_id, "via": "password", "peer": "127.0.0.1"}
    for event_type, about in {
        "IndexCreated": {"boundary": orders, "index": "audited"},
        "IndexDropped": {"boundary": orders, "index": "audited"},
        "BoundaryCreated": {"boundary": name},
        "PasswordChanged": {"username": made.username},
        "TokenCreated": {"name": "audited", "roles": ["USER"]},
        "TokenRevoked": {"name": "audited"},
        "UserDeleted": {"username": other.username},
    }.items():
        found = [data for data, by in await audit(server, settings, event_type) if by == who]
        assert len(found) == 1, event_type
        assert about.items() <= found[0].items()


async def test_denied_calls_are_audited_and_cannot_flood(server: Connection, settings: Settings) -> None:
    orders = settings.boundaries[0].name
    user, credentials = await new_user(server, "READER")
    calls = [server.events.SaveEvents(save(orders), metadata=credentials) for _ in range(300)]
    assert {await code_of(call) for call in calls} == {Code.PERMISSION_DENIED}

    async def denials() -> list[dict[str, Any]]:
        return [data for data, by in await audit(server, settings, "CallDenied") if by["username"] == user.username]

    found = await eventually(denials)
    assert found[0]["rpc"] == "orisun.EventStore/SaveEvents"
    assert len(found) <= 2
    for _ in range(3):
        await refusal(server.events.Ping(PING, metadata=basic(user.username, "wrong-one")))
        await refusal(server.events.Ping(PING, metadata=basic("my-typed-s3cret", "wrong-one")))

    async def failures() -> bool:
        told = [(data, by) for data, by in await audit(server, settings, "LoginFailed")]
        assert all(by["peer"] == "127.0.0.1" for _, by in told)
        return {user.username, ""} <= {data["username"] for data, _ in told}

    await eventually(failures)
    request = es.GetEventsRequest(boundary=settings.admin_boundary, count=1000)
    everything = (await server.events.GetEvents(request, metadata=ADMIN)).SerializeToString()
    for hidden in (b"my-typed-s3cret", b"wrong-one"):
        assert hidden not in everything


async def test_a_denial_about_no_name_of_a_boundary_is_audited(server: Connection, settings: Settings) -> None:
    """jsonb holds no NUL: written as it came, it would hold up the audit log for ever; and megabytes would fill it."""
    user, credentials = await new_user(server, f"READER:{settings.boundaries[0].name}")
    for name in ("a\0b", "x" * 3_000_000, "another"):
        request = es.GetEventsRequest(boundary=name, count=1)
        assert await code_of(server.events.GetEvents(request, metadata=credentials)) is Code.PERMISSION_DENIED

    async def told() -> bool:
        found = [data for data, by in await audit(server, settings, "CallDenied") if by["username"] == user.username]
        return {data["boundary"] for data in found} == {"(no such boundary)"}

    await eventually(told)


async def test_nobody_writes_the_server_s_own_events(server: Connection, settings: Settings) -> None:
    forged = save(settings.admin_boundary, "orisun.UserDeleted")
    code, message = await refusal(server.events.SaveEvents(forged, metadata=ADMIN))
    assert (code, message) == (
        Code.INVALID_ARGUMENT,
        'invalid event: event 0 event_type: "orisun." begins types that are the server\'s own',
    )
    await server.events.SaveEvents(save(settings.admin_boundary, "Mine"), metadata=ADMIN)
    await server.events.SaveEvents(save(settings.boundaries[0].name, "orisun.UserDeleted"), metadata=ADMIN)


async def test_a_description_is_bounded(server: Connection, settings: Settings) -> None:
    placement = pb.BoundaryPlacementInput(backend="postgres", namespace=settings.boundaries[0].schema)
    request = pb.CreateBoundaryRequest(name="long", description="x" * 1001, placement=placement)
    assert await refusal(server.admin.CreateBoundary(request, metadata=ADMIN)) == (
        Code.INVALID_ARGUMENT,
        "boundary description: 1001 characters; at most 1000 are allowed",
    )


# -- wrong passwords -----------------------------------------------------------------------------------------------


async def test_wrong_passwords_are_slowed_down_and_what_is_known_goes_on(server: Connection) -> None:
    user, credentials = await new_user(server, "READER")
    token = with_token(await token_of(server.events.Ping(PING, metadata=credentials)))
    for number in range(FREE):
        code, _ = await refusal(server.events.Ping(PING, metadata=basic(user.username, f"wrong{number}")))
        assert code is Code.UNAUTHENTICATED
    code = Code.UNAUTHENTICATED
    # of the first the pause may be over before the next one comes; they grow
    for _ in range(4):
        if code is Code.UNAUTHENTICATED:
            code, message = await refusal(server.events.Ping(PING, metadata=basic(user.username, "wrong")))
    assert code is Code.RESOURCE_EXHAUSTED
    assert re.fullmatch(r"too many failed logins from this address; try again in \d s", message)
    # a session and a password that was good before are no attempts
    await server.events.Ping(PING, metadata=token)
    await server.events.Ping(PING, metadata=credentials)

    async def admitted() -> bool:
        return await code_of(server.events.Ping(PING, metadata=basic(user.username, "wrong"))) is Code.UNAUTHENTICATED

    await eventually(admitted)
