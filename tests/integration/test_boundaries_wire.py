"""Boundaries over the wire: made at run time, many, with names as long and as alike as names can be."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from tests.harness import ADMIN, Connection, eventually, is_quick
from tests.integration.test_subscriptions_wire import Boundary

MakeServer = Callable[..., Awaitable[Connection]]
ACTIVE = admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE


async def create(connection: Connection, name: str, schema: str) -> Boundary:
    placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=schema)
    request = admin_pb2.CreateBoundaryRequest(name=name, description=f"about {name}", placement=placement)
    created = (await connection.admin.CreateBoundary(request, metadata=ADMIN)).boundary
    assert (created.name, created.status) == (name, ACTIVE)
    return Boundary(connection, name)


async def states(boundary: Boundary) -> dict[str, int]:
    request = pb.ListIndexesRequest(boundary=boundary.name)
    answer = await boundary.connection.events.ListIndexes(request, metadata=ADMIN)
    return {index.name: index.state for index in answer.indexes}


async def create_index(boundary: Boundary, name: str, key: str) -> None:
    fields = [pb.IndexField(json_key=key)]
    request = pb.CreateIndexRequest(boundary=boundary.name, name=name, fields=fields)
    await boundary.connection.events.CreateIndex(request, metadata=ADMIN)

    async def ready() -> bool:
        return (await states(boundary))[name] == pb.INDEX_STATE_READY

    await eventually(ready, message=name)


async def test_a_boundary_made_at_run_time_is_on_every_server_within_two_seconds(
    make_server: MakeServer, settings: Settings
) -> None:
    one, other = await make_server(settings), await make_server(settings)
    schema = settings.boundaries[0].schema
    names: list[str] = []

    async def made() -> float:
        names.append("made_" + secrets.token_hex(4))
        began = time.monotonic()
        here = await create(one, names[-1], schema)
        assert await here.append({"n": 0}) == (1, 0)
        there = Boundary(other, names[-1])

        async def known() -> bool:
            with contextlib.suppress(Exception):
                return bool(await there.events())
            return False

        await eventually(known, message="the boundary on the other server")
        async with here.subscribe() as first, there.subscribe() as second:
            await second.has(1)
            took = time.monotonic() - began
            await there.append({"n": 1})
            await here.append({"n": 2})
            assert await first.has(3) == await second.has(3) == await here.events()
        return took

    await is_quick(made, 2)
    name = names[-1]
    listed = await other.admin.ListBoundaries(admin_pb2.ListBoundariesRequest(), metadata=ADMIN)
    assert {item.name: item.status for item in listed.boundaries} == dict.fromkeys(
        [*names, *(boundary.name for boundary in settings.boundaries)], ACTIVE
    )
    got = await other.admin.GetBoundary(admin_pb2.GetBoundaryRequest(name=name), metadata=ADMIN)
    assert got.boundary.description == f"about {name}"
    assert got.boundary.placement == admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=schema)


async def test_a_boundary_made_at_run_time_is_there_after_a_restart(
    make_server: MakeServer, settings: Settings
) -> None:
    name = "made_" + secrets.token_hex(4)
    await (await create(await make_server(settings), name, "elsewhere")).append({"n": 0})
    again = Boundary(await make_server(settings), name)
    assert len(await again.events()) == 1


async def test_two_hundred_boundaries_on_one_server(
    make_server: MakeServer, make_settings: Callable[..., Settings], data_dir: Path
) -> None:
    """With a nats-server as embedded by default: its streams must not use up a limit of the server."""
    names = [f"b{number}" for number in range(200)]
    settings = make_settings(*names, nats_url=None, nats_port=0, nats_store_dir=data_dir / "nats")
    began = time.monotonic()
    connection = await make_server(settings)
    boundaries = [Boundary(connection, boundary.name) for boundary in settings.boundaries[:-1]]
    assert len(boundaries) == 200
    assert await asyncio.gather(*(boundary.append({"n": 0}) for boundary in boundaries)) == [(1, 0)] * 200
    async with contextlib.AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(boundary.subscribe()) for boundary in boundaries]
        for subscriber in subscribers:
            await subscriber.has(1)
        await asyncio.gather(*(boundary.append({"n": 1}) for boundary in boundaries))
        for subscriber in subscribers:
            await subscriber.has(2)

        async def one_more() -> float:
            began = time.monotonic()
            extra = await create(connection, "extra_" + secrets.token_hex(4), settings.boundaries[0].schema)
            async with extra.subscribe() as subscriber:
                await extra.append({"n": 0})
                await subscriber.has(1)
                return time.monotonic() - began

        await is_quick(one_more, 3)
    assert time.monotonic() - began < 90


async def test_the_longest_names_that_differ_in_the_last_letter(make_server: MakeServer, settings: Settings) -> None:
    server, schema = await make_server(settings), settings.boundaries[0].schema
    stem = f"a{secrets.token_hex(8)}".ljust(62, "x")
    one, other = await create(server, stem + "y", schema), await create(server, stem + "z", schema)
    async with one.subscribe(name="s") as first, other.subscribe(name="s") as second:
        assert await one.append({"where": "one"}) == (1, 0)
        assert await other.append({"where": "other"}, {"where": "other"}) == (2, 1)
        assert [event.data for event in await first.has(1)] == ['{"where": "one"}']
        assert [event.data for event in await second.has(2)] == ['{"where": "other"}'] * 2
        for name in ("i" * 63, "i" * 62 + "j"):
            await create_index(one, name, "where")
            await create_index(other, name, "where")
        drop = pb.DropIndexRequest(boundary=one.name, name="i" * 63)
        await server.events.DropIndex(drop, metadata=ADMIN)
        await eventually(lambda: _has(one, {"i" * 62 + "j"}))
        assert (await states(other)).keys() == {"i" * 63, "i" * 62 + "j"}
        for boundary, count in ((one, 1), (other, 2)):
            assert len(await boundary.events([{"where": "one"}, {"where": "other"}])) == count
        assert (len(first.events), len(second.events)) == (1, 2)


async def _has(boundary: Boundary, names: set[str]) -> bool:
    return (await states(boundary)).keys() == names


@pytest.mark.parametrize(
    ("one", "one_index", "other", "other_index"),
    [("a", "b_c", "a_b", "c"), ("a", "b", "A", "b"), ("a", "B", "a_b", "b"), ("a", "b", "a_orisun_es_event", "b")],
)
async def test_names_that_run_into_each_other(
    make_server: MakeServer,
    settings: Settings,
    database: Database,
    one: str,
    one_index: str,
    other: str,
    other_index: str,
) -> None:
    server, schema, stem = await make_server(settings), settings.boundaries[0].schema, "r" + secrets.token_hex(4)
    first, second = await create(server, stem + one, schema), await create(server, stem + other, schema)
    await create_index(first, one_index, "key")
    await create_index(second, other_index, "other_key")
    for boundary in (first, second):
        await boundary.append({"key": boundary.name, "other_key": "1"})
    drop = pb.DropIndexRequest(boundary=first.name, name=one_index)
    await server.events.DropIndex(drop, metadata=ADMIN)
    await eventually(lambda: _has(first, set()))
    assert await states(second) == {other_index: pb.INDEX_STATE_READY}
    built = "SELECT count(*) FROM pg_indexes WHERE schemaname = $1 AND tablename = $2 AND indexdef LIKE '%other_key%'"
    assert await database.admin.fetchval(built, schema, f"{second.name}_orisun_es_event") == 1
    assert len(await first.events([{"key": first.name}])) == len(await second.events([{"other_key": "1"}])) == 1


async def test_boundaries_of_one_schema_share_nothing(
    make_server: MakeServer, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings("orders", "payments")
    server = await make_server(settings)
    orders, payments = (Boundary(server, boundary.name) for boundary in settings.boundaries[:2])
    assert settings.boundaries[0].schema == settings.boundaries[1].schema
    event = pb.EventToSave(event_id="the-same", event_type="Happened", data="{}")
    for boundary in (orders, payments):  # ids are unique, and contexts are, in a boundary
        nothing = pb.SaveQuery(expected_position=pb.Position(commit_position=-1, prepare_position=-1))
        request = pb.SaveEventsRequest(boundary=boundary.name, events=[event], query=nothing)
        result = await server.events.SaveEvents(request, metadata=ADMIN)
        assert (result.log_position.commit_position, result.log_position.prepare_position) == (1, 0)
    async with orders.subscribe(name="s") as first, payments.subscribe(name="s") as second:
        await orders.append({"where": "orders"})
        await payments.append({"where": "payments"})
        assert [event.data for event in await first.has(2)] == ["{}", '{"where": "orders"}']
        assert [event.data for event in await second.has(2)] == ["{}", '{"where": "payments"}']
