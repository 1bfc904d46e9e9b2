"""Projections in the server: users, sign-in and counts from events; one projector over the cluster; failover."""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from orisun_api import admin_pb2 as pb
from orisun_api import eventstore_pb2 as es
from orisun_server.admin.projections import AUTH_USERS, USERS
from orisun_server.admin.projector import Projector
from orisun_server.core.event import NewEvent
from orisun_server.settings import Settings
from orisun_server.storage.boundaries import Boundary
from orisun_server.storage.counts import EventCounts
from orisun_server.storage.database import Database
from orisun_server.storage.names import quote
from tests.harness import ADMIN, Connection, ServerProcess, basic, eventually
from tests.integration.stores import Store, event
from tests.integration.test_auth import code_of, new_user

Code = grpc.StatusCode


def admin_boundary(settings: Settings) -> Boundary:
    return Boundary.at(settings.admin_boundary, settings.admin_schema)


async def checkpoints(database: Database, boundary: Boundary) -> dict[str, int]:
    rows = await database.admin.fetch(f"SELECT name, prepare_position FROM {boundary.names.q_checkpoints}")
    return {row["name"]: row["prepare_position"] for row in rows}


async def usernames(connection: Connection) -> list[str]:
    return [user.username for user in (await connection.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)).users]


async def test_the_tables_are_built_from_the_events(
    make_server: Callable[..., Awaitable[Connection]], settings: Settings, database: Database
) -> None:
    """Taken away altogether, they are as before, passwords and tokens included."""
    first = await make_server(settings)
    kept, kept_credentials = await new_user(first, "USER", "READER")
    gone, gone_credentials = await new_user(first, "USER")
    change = pb.ChangePasswordRequest(user_id=kept.user_id, current_password="secret1", new_password="secret2")
    await first.admin.ChangePassword(change, metadata=kept_credentials)
    await first.admin.SetUserRoles(pb.SetUserRolesRequest(user_id=kept.user_id, roles=["READER"]), metadata=ADMIN)
    await first.admin.DeleteUser(pb.DeleteUserRequest(user_id=gone.user_id), metadata=ADMIN)
    schema, boundary = quote(settings.admin_schema), admin_boundary(settings)
    assert {"users", "auth_users"} <= (await checkpoints(database, boundary)).keys()
    before = await first.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)
    # one hash for each user, and none of those before
    assert await database.admin.fetchval(f"SELECT count(*) FROM {schema}.orisun_credential") == 2
    for table in ("orisun_user", "orisun_authentication"):
        await database.admin.execute(f"DELETE FROM {schema}.{table}")
    await database.admin.execute(f"DELETE FROM {boundary.names.q_checkpoints}")
    second = await make_server(settings)
    after = await second.admin.ListUsers(pb.ListUsersRequest(), metadata=ADMIN)
    assert [(user.user_id, user.username, user.roles) for user in after.users] == [
        (user.user_id, user.username, user.roles) for user in before.users
    ]
    ping = es.PingRequest()
    await second.events.Ping(ping, metadata=basic(kept.username, "secret2"))
    for credentials in (kept_credentials, gone_credentials):
        assert await code_of(second.events.Ping(ping, metadata=credentials)) is Code.UNAUTHENTICATED


async def test_users_from_before_there_were_events_stay(
    make_server: Callable[..., Awaitable[Connection]], settings: Settings, database: Database
) -> None:
    first = await make_server(settings)
    user, credentials = await new_user(first, "OPERATIONS")
    schema, boundary = quote(settings.admin_schema), admin_boundary(settings)
    # as the migration leaves a store of that time; at once, since the first server's projector looks in between
    await database.admin.execute(f"DELETE FROM {boundary.names.q_checkpoints}; DELETE FROM {boundary.names.q_events}")
    await database.admin.execute(
        f"UPDATE {schema}.orisun_credential AS c SET credential_id = a.user_id"
        f" FROM {schema}.orisun_authentication AS a WHERE a.credential_id = c.credential_id"
    )
    await database.admin.execute(f"UPDATE {schema}.orisun_authentication SET credential_id = user_id")
    others = await asyncio.gather(make_server(settings), make_server(settings))
    for server in others:
        await server.events.Ping(es.PingRequest(), metadata=credentials)
        assert sorted(await usernames(server)) == sorted(["admin", user.username])
    types = await database.admin.fetch(f"SELECT event_type FROM {boundary.names.q_events}")
    assert [row["event_type"] for row in types] == ["orisun.UserCreated"] * 2
    await others[0].admin.DeleteUser(pb.DeleteUserRequest(user_id=user.user_id), metadata=ADMIN)
    assert await usernames(others[1]) == ["admin"]


@pytest.mark.fault
async def test_one_projector_over_the_cluster_and_failover(settings: Settings, database: Database) -> None:
    lines = ("User projector started", "Auth user projector started", "Event count projector started")
    refused = "Failed to start user projection (likely due to lock contention)"
    async with ServerProcess(settings) as first:
        await eventually(lambda: all(line in first.logs for line in lines))
        async with ServerProcess(settings) as second:
            await eventually(lambda: refused in second.logs)
            assert not any(line in second.logs for line in lines)
            assert refused not in first.logs
            await first.kill()
            await eventually(lambda: all(line in second.logs for line in lines))
            await new_user(second.connection, "USER")
            assert len(await usernames(second.connection)) == 2


async def test_an_event_that_only_the_projector_sees_takes_effect(
    make_server: Callable[..., Awaitable[Connection]], settings: Settings, database: Database
) -> None:
    """As when the server that appended it died before it could project it: the one with the lease does."""
    server = await make_server(settings)
    user, credentials = await new_user(server, "USER")
    async with Store(settings) as other:
        data = json.dumps({"user_id": user.user_id, "username": user.username})
        boundary = other.catalog.get(settings.admin_boundary)
        await other.appender.append(boundary, [NewEvent("by-hand", "orisun.UserDeleted", data, "{}")], None)

        async def ended() -> bool:
            return await code_of(server.events.Ping(es.PingRequest(), metadata=credentials)) is Code.UNAUTHENTICATED

        await eventually(ended)
        # what makes no sense is left out, and the projection goes on
        for number, spoilt in enumerate(("{}", '{"user_id": "x", "roles": "y"}', '{"user_id": null}')):
            await other.appender.append(
                boundary, [NewEvent(f"spoilt{number}", "orisun.UserCreated", spoilt, "{}")], None
            )
        _, credentials = await new_user(server, "USER")
        await server.events.Ping(es.PingRequest(), metadata=credentials)
        head = await other.reader.head(boundary)

        async def projected() -> bool:
            return set((await checkpoints(database, boundary)).values()) == {head.prepare}

        await eventually(projected)


async def test_the_admin_boundary_is_indexed_by_type(
    make_server: Callable[..., Awaitable[Connection]], settings: Settings
) -> None:
    servers = [await make_server(settings) for _ in range(2)]

    async def is_ready(server: Connection) -> bool:
        request = es.ListIndexesRequest(boundary=settings.admin_boundary)
        indexes = (await server.events.ListIndexes(request, metadata=ADMIN)).indexes
        return [index.state for index in indexes] == [es.INDEX_STATE_READY]

    for server in servers:
        await eventually(functools.partial(is_ready, server))


async def test_an_event_takes_effect_once_however_many_project_it(settings: Settings) -> None:
    async with Store(settings) as store:
        boundary = store.catalog.get(settings.admin_boundary)
        schema = quote(settings.admin_schema)
        for number in range(40):
            data = {
                "user_id": f"id{number}", "name": "N", "username": f"user{number}", "roles": ["USER"],
                "auth_version": 1, "credential_id": f"c{number}",
            }  # fmt: skip
            await store.database.admin.execute(
                f"INSERT INTO {schema}.orisun_credential (credential_id, hash) VALUES ($1, 'x')", f"c{number}"
            )
            appended = [NewEvent(f"e{number}", "orisun.UserCreated", json.dumps(data), "{}"), event({})]
            if number % 2:
                gone = {"user_id": f"id{number - 1}"}
                appended.append(NewEvent(f"d{number}", "orisun.UserDeleted", json.dumps(gone), "{}"))
            await store.appender.append(boundary, appended, None)
        head = await store.reader.head(boundary)
        projectors = [
            Projector(projection, store.database, store.reader, boundary, settings.admin_schema)
            for projection in (USERS, AUTH_USERS) * 4
        ]
        assert {*await asyncio.gather(*(projector.catch_up() for projector in projectors))} == {head}
        rows = await store.database.admin.fetch(
            f"SELECT username FROM {schema}.orisun_user JOIN {schema}.orisun_authentication USING (user_id)"
        )
        assert {row["username"] for row in rows} == {f"user{number}" for number in range(1, 40, 2)}
        left = await store.database.admin.fetchval(f"SELECT count(*) FROM {schema}.orisun_credential")
        assert left == 20


# -- counts --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with Store(settings) as store:
        yield store


async def test_the_count_is_exact_however_late_the_projection_is(store: Store) -> None:
    counts, boundary = EventCounts(store.database, store.settings.admin_schema), store.boundary
    assert await counts.behind([boundary]) == {boundary.name}
    assert await counts.count(boundary) == 0
    assert await counts.behind([boundary]) == set()
    for expected in (3, 6):
        await store.append(event({}), event({}), event({}))
        assert await asyncio.gather(counts.count(boundary), counts.count(boundary)) == [expected] * 2
    stored = f"SELECT events FROM {quote(store.settings.admin_schema)}.orisun_event_count WHERE boundary = $1"
    assert await store.database.admin.fetchval(stored, boundary.name) == 0
    # four at once that have all seen the same checkpoint: one of them moves it
    other = await store.database.dedicated_connection()
    async with other.transaction():
        await other.execute(f"SELECT FROM {boundary.names.q_checkpoints} FOR UPDATE")
        advancing = [asyncio.create_task(counts.advance(boundary)) for _ in range(4)]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
        names = f"%{boundary.names.checkpoints}%"

        async def all_wait() -> bool:
            return bool(await store.database.read.fetchval(waiting, names) == 4)

        await eventually(all_wait)
    await asyncio.gather(*advancing)
    await other.close()
    assert await store.database.admin.fetchval(stored, boundary.name) == 6
    assert (await checkpoints(store.database, boundary))["event_count"] == 5
    assert await counts.behind([boundary]) == set()
    await store.append(event({}))
    assert await counts.behind([boundary]) == {boundary.name}
    await counts.advance(boundary)
    assert await counts.behind([boundary]) == set()
    # a restore of the events alone to an earlier point
    await store.database.admin.execute(f"DELETE FROM {boundary.names.q_events} WHERE global_id >= 2")
    assert await counts.behind([boundary]) == {boundary.name}
    assert await counts.count(boundary) == 2
    await counts.advance(boundary)
    assert await counts.behind([boundary]) == set()
    assert await counts.count(boundary) == 2


async def test_counting_while_others_append_and_project(store: Store) -> None:
    counts, boundary = EventCounts(store.database, store.settings.admin_schema), store.boundary
    acknowledged, done = 0, False

    async def write() -> None:
        nonlocal acknowledged
        for _ in range(40):
            await store.append(*(event({}) for _ in range(5)))
            acknowledged += 5

    async def project() -> None:
        while not done:
            await counts.advance(boundary)

    projecting = [asyncio.create_task(project()) for _ in range(2)]
    writing = asyncio.gather(write(), write())
    try:
        while not writing.done():
            before = acknowledged
            # never behind what was acknowledged
            assert await counts.count(boundary) >= before
    finally:
        done = True
        await asyncio.gather(writing, *projecting)
    assert await counts.count(boundary) == 400


async def test_the_projection_keeps_up_by_itself(
    make_server: Callable[..., Awaitable[Connection]], settings: Settings, database: Database
) -> None:
    server = await make_server(settings)
    other = await make_server(settings)
    setting = settings.boundaries[0]
    boundary = Boundary.at(setting.name, setting.schema)
    for connection in (server, other):
        events = [es.EventToSave(event_id=secrets.token_hex(8), event_type="A", data="{}") for _ in range(10)]
        await connection.events.SaveEvents(es.SaveEventsRequest(boundary=setting.name, events=events), metadata=ADMIN)
    request: Any = pb.GetEventCountRequest(boundary=setting.name)
    assert (await other.admin.GetEventCount(request, metadata=ADMIN)).count == 20
    schema = quote(settings.admin_schema)
    stored = f"SELECT events FROM {schema}.orisun_event_count WHERE boundary = $1"

    async def counted() -> bool:
        return bool(await database.admin.fetchval(stored, boundary.name) == 20)

    await eventually(counted)
