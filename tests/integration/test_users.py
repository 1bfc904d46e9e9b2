"""Users: their rules, messages and roles (contract.md, Users)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from orisun_api import admin_pb2 as pb
from orisun_api import eventstore_pb2
from orisun_server.app import App
from orisun_server.settings import Settings
from orisun_server.storage.names import quote
from tests.faults.parts import connected
from tests.harness import ADMIN, Connection, basic
from tests.integration.test_auth import code_of, new_user, refusal

Code = grpc.StatusCode


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


def user(**changes: Any) -> pb.CreateUserRequest:
    valid: dict[str, Any] = {"name": "Ann", "username": "ann" + secrets.token_hex(4), "password": "secret1"}
    return pb.CreateUserRequest(**{**valid, "roles": ["USER"], **changes})


async def test_create_list_count_and_delete(server: Connection, settings: Settings) -> None:
    before = (await server.admin.GetUserCount(pb.GetUserCountRequest(), metadata=ADMIN)).count
    made = (await server.admin.CreateUser(user(roles=["operations", "Reader", "READER"]), metadata=ADMIN)).user
    assert list(made.roles) == ["OPERATIONS", "READER"]
    assert made.user_id
    assert made.created_at.seconds > 0
    assert made.updated_at == made.created_at
    assert (await server.admin.GetUserCount(pb.GetUserCountRequest(), metadata=ADMIN)).count == before + 1
    listed = (await server.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)).users
    assert made in listed
    assert [one.username for one in listed] == sorted(one.username for one in listed)
    assert b"argon2" not in b"".join(one.SerializeToString() for one in listed)
    async with connected(settings) as connection:
        hashes = await connection.fetch(f"SELECT hash FROM {quote(settings.admin_schema)}.orisun_credential")
    assert hashes
    assert all(row["hash"].startswith("$argon2id$") for row in hashes)
    assert (await server.admin.DeleteUser(pb.DeleteUserRequest(user_id=made.user_id), metadata=ADMIN)).success
    assert made not in (await server.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)).users


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is required"),
        ({"username": ""}, "username is required"),
        ({"username": "ab"}, "username must be at least 3 characters"),
        ({"password": ""}, "password is required"),
        ({"password": "short"}, "password must be at least 6 characters"),
        ({"roles": []}, "at least one role is required"),
        ({"roles": ["USER", "KING"]}, 'unsupported role "KING"; valid roles are ADMIN, OPERATIONS, USER, READER'),
        ({"name": "", "username": "", "password": "", "roles": []}, "name is required"),
        ({"username": "a:b"}, "username must not contain a colon"),
    ],
)
async def test_what_a_user_must_have(server: Connection, changes: dict[str, Any], message: str) -> None:
    refused = await refusal(server.admin.CreateUser(user(**changes), metadata=ADMIN))
    assert refused == (Code.INVALID_ARGUMENT, f"invalid request: {message}")


async def test_a_taken_name_and_a_deleted_user_s_name(server: Connection) -> None:
    request = user()
    made = (await server.admin.CreateUser(request, metadata=ADMIN)).user
    assert await refusal(server.admin.CreateUser(request, metadata=ADMIN)) == (
        Code.ALREADY_EXISTS,
        f"failed to create user: username {request.username} already exists",
    )
    await server.admin.DeleteUser(pb.DeleteUserRequest(user_id=made.user_id), metadata=ADMIN)
    again = (await server.admin.CreateUser(request, metadata=ADMIN)).user
    assert again.user_id != made.user_id


async def test_of_many_creations_at_once_one_wins(server: Connection) -> None:
    request = user()
    calls = [server.admin.CreateUser(request, metadata=ADMIN) for _ in range(8)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, pb.CreateUserResponse) for answer in answers) == 1
    assert {answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)} == {Code.ALREADY_EXISTS}


async def test_delete_refusals(server: Connection) -> None:
    async def delete(user_id: str) -> tuple[Code, str]:
        return await refusal(server.admin.DeleteUser(pb.DeleteUserRequest(user_id=user_id), metadata=ADMIN))

    users = (await server.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)).users
    own = next(one.user_id for one in users if one.username == "admin")
    assert await delete(own) == (Code.FAILED_PRECONDITION, "cannot delete your own account")
    assert await delete("unknown") == (Code.NOT_FOUND, "user not found")
    assert await delete("nul\0") == (Code.NOT_FOUND, "user not found")
    assert await delete("") == (Code.INVALID_ARGUMENT, "user_id is required")


async def test_validate_credentials(server: Connection) -> None:
    made, _ = await new_user(server, "READER")

    async def validate(username: str, password: str) -> pb.ValidateCredentialsResponse:
        request = pb.ValidateCredentialsRequest(username=username, password=password)
        answer: pb.ValidateCredentialsResponse = await server.admin.ValidateCredentials(request, metadata=ADMIN)
        return answer

    good = await validate(made.username, "secret1")
    assert good.success
    assert good.user == made
    # an application asks for all of its users: neither many at once nor wrong ones keep the right ones out
    assert all(answer.success for answer in await asyncio.gather(*(validate("admin", "changeit") for _ in range(30))))
    answers = await asyncio.gather(*(validate(made.username, "wrong") for _ in range(30)))
    assert not any(answer.success for answer in answers)
    assert (await validate(made.username, "secret1")).success
    for username, password in ((made.username, "wrong"), ("nobody", "secret1")):
        bad = await validate(username, password)
        assert not bad.success
        assert not bad.HasField("user")
    for username, password in (("", "x"), ("x", "")):
        assert await refusal(validate(username, password)) == (
            Code.INVALID_ARGUMENT,
            "username and password are required",
        )


async def test_change_password(server: Connection) -> None:
    made, credentials = await new_user(server, "ADMIN")
    other, _ = await new_user(server, "READER")

    async def change(user_id: str, current: str, new: str, metadata: Any = credentials) -> pb.ChangePasswordResponse:
        request = pb.ChangePasswordRequest(user_id=user_id, current_password=current, new_password=new)
        answer: pb.ChangePasswordResponse = await server.admin.ChangePassword(request, metadata=metadata)
        return answer

    assert await refusal(change(other.user_id, "secret1", "secret2")) == (
        Code.PERMISSION_DENIED,
        "can only change your own password",
    )
    assert await refusal(change(made.user_id, "wrong-one", "secret2")) == (
        Code.UNAUTHENTICATED,
        "invalid current password",
    )
    assert await refusal(change(made.user_id, "secret1", "")) == (Code.INVALID_ARGUMENT, "new_password is required")
    assert (await refusal(change(made.user_id, "secret1", "short")))[0] is Code.INVALID_ARGUMENT
    assert await refusal(change("", "secret1", "secret2")) == (Code.INVALID_ARGUMENT, "user_id is required")
    assert (await change(made.user_id, "secret1", "secret2")).success
    fresh = basic(made.username, "secret2")
    users = (await server.admin.ListUsers(pb.ListUsersRequest(), metadata=fresh)).users
    changed = next(one for one in users if one.user_id == made.user_id)
    assert changed.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()


async def test_of_two_changes_at_once_one_wins(server: Connection) -> None:
    made, credentials = await new_user(server, "USER")
    calls = [
        server.admin.ChangePassword(
            pb.ChangePasswordRequest(user_id=made.user_id, current_password="secret1", new_password=new),
            metadata=credentials,
        )
        for new in ("secret2", "secret3")
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, pb.ChangePasswordResponse) for answer in answers) == 1


async def test_the_first_administrator_is_the_one_of_the_settings(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    settings = make_settings(admin_username="root", admin_password="tops3cret")
    server, other = await asyncio.gather(make_server(settings), make_server(settings))
    metadata = basic("root", "tops3cret")
    for connection in (server, other):
        assert (await connection.admin.GetUserCount(pb.GetUserCountRequest(), metadata=metadata)).count == 1
        assert (await refusal(connection.events.Ping(eventstore_pb2.PingRequest(), metadata=ADMIN)))[1] == (
            "invalid credentials"
        )


ADMIN_DENIAL = (Code.PERMISSION_DENIED, "user does not have a role required for this admin operation")
OPERATIONS = {"GetIndexBuild", "ListIndexes", "GetIndex", "ListBoundaries", "GetBoundary", "GetEventCount"}


@pytest.mark.parametrize("role", ["OPERATIONS", "USER", "READER"])
async def test_admin_rpcs_are_denied_by_role(server: Connection, settings: Settings, role: str) -> None:
    from orisun_server.transport import admin

    _, credentials = await new_user(server, role)
    boundary = settings.boundaries[0].name
    # everyone may change the own password; another's is refused by its own message
    names = [method.name for method in admin.DESCRIPTOR.methods if method.name != "ChangePassword"]
    paths = [f"/orisun.Admin/{name}" for name in names]
    paths += [f"/orisun.EventStore/{name}" for name in ("CreateIndex", "DropIndex", "ListIndexes", "GetIndex")]
    request = eventstore_pb2.ListIndexesRequest(boundary=boundary).SerializeToString()
    for path in paths:
        call = server.channel.unary_unary(path)(request, metadata=credentials)
        if role == "OPERATIONS" and path.rpartition("/")[2] in OPERATIONS:
            assert await code_of(call) is not Code.PERMISSION_DENIED, path
        else:
            assert await refusal(call) == ADMIN_DENIAL, path


EVENT_RPCS = {
    "SaveEvents": {"OPERATIONS", "USER"},
    "GetEvents": {"OPERATIONS", "USER", "READER"},
    "GetLatestByCriteria": {"OPERATIONS", "USER", "READER"},
    "CatchUpSubscribeToEvents": {"OPERATIONS", "USER", "READER"},
    "Ping": {"OPERATIONS", "USER", "READER"},
    "GetServerInfo": {"OPERATIONS", "USER", "READER"},
    "PublishToPubSub": {"OPERATIONS", "USER"},
    "SubscribeToPubSub": {"OPERATIONS", "USER", "READER"},
    "GetCommands": {"OPERATIONS", "USER", "READER"},
}


@pytest.mark.parametrize("role", ["OPERATIONS", "USER", "READER"])
async def test_event_rpcs_by_role(server: Connection, role: str) -> None:
    _, credentials = await new_user(server, role)
    for name, allowed in EVENT_RPCS.items():
        # an empty request is refused for what it lacks, after the role was found good
        call: Any = server.channel.unary_stream(f"/orisun.EventStore/{name}")(b"", metadata=credentials)
        assert (await code_of(call.read()) is not Code.PERMISSION_DENIED) == (role in allowed), name


async def test_the_admin_boundary_is_for_administrators(server: Connection, settings: Settings) -> None:
    _, credentials = await new_user(server, "OPERATIONS", "USER", "READER")
    boundary = settings.admin_boundary
    calls = [
        server.events.SaveEvents(eventstore_pb2.SaveEventsRequest(boundary=boundary), metadata=credentials),
        server.events.GetEvents(eventstore_pb2.GetEventsRequest(boundary=boundary, count=1), metadata=credentials),
        server.events.GetLatestByCriteria(
            eventstore_pb2.GetLatestByCriteriaRequest(boundary=boundary), metadata=credentials
        ),
        server.events.CatchUpSubscribeToEvents(
            eventstore_pb2.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="x"),
            metadata=credentials,
        ).read(),
        server.events.GetCommands(eventstore_pb2.GetCommandsRequest(boundary=boundary), metadata=credentials),
        server.admin.GetEventCount(pb.GetEventCountRequest(boundary=boundary), metadata=credentials),
    ]
    for call in calls:
        code, message = await refusal(call)
        assert code is Code.PERMISSION_DENIED
        assert message == f'the admin boundary "{boundary}" is for the role ADMIN only'
    await server.events.GetEvents(eventstore_pb2.GetEventsRequest(boundary=boundary, count=1), metadata=ADMIN)


async def test_several_roles_add_up(server: Connection, settings: Settings) -> None:
    _, credentials = await new_user(server, "READER", "OPERATIONS")
    await server.admin.GetEventCount(
        pb.GetEventCountRequest(boundary=settings.boundaries[0].name), metadata=credentials
    )
