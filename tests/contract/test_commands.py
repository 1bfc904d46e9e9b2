"""Commands are stored with the events that they led to, in one transaction (contract.md: SaveEvents, GetCommands)."""

from __future__ import annotations

import asyncio
import json
import uuid

import grpc
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb

from ..harness import ADMIN, Connection


@pytest.fixture
async def boundary(server: Connection) -> str:
    """A fresh boundary of the running server."""
    name = f"commands_{uuid.uuid4().hex[:12]}"
    placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace="public")
    request = admin_pb2.CreateBoundaryRequest(name=name, placement=placement)
    await server.admin.CreateBoundary(request, metadata=ADMIN)
    return name


def event(key: str = "k") -> pb.EventToSave:
    return pb.EventToSave(event_id=str(uuid.uuid4()), event_type="Placed", data=json.dumps({"key": key}))


def command(name: str = "c1") -> pb.Command:
    return pb.Command(command_id=name, type="Place", data='{"amount": 3}', metadata='{"by": "me"}')


async def save(
    server: Connection, boundary: str, *events: pb.EventToSave, told: pb.Command | None = None, key: str = ""
) -> pb.Position:
    query = None
    if key:
        criterion = pb.Criterion(tags=[pb.Tag(key="key", value=key)])
        query = pb.SaveQuery(
            expected_position=pb.Position(commit_position=-1, prepare_position=-1), criteria=[criterion]
        )
    request = pb.SaveEventsRequest(boundary=boundary, events=events, command=told, query=query)
    return (await server.events.SaveEvents(request, metadata=ADMIN)).log_position


async def commands(
    server: Connection, boundary: str, after: pb.Position | None = None, count: int = 100
) -> list[pb.StoredCommand]:
    request = pb.GetCommandsRequest(boundary=boundary, after_position=after, count=count)
    return list((await server.events.GetCommands(request, metadata=ADMIN)).commands)


async def test_a_command_is_read_as_it_was_told_with_the_position_of_its_last_event(
    server: Connection, boundary: str
) -> None:
    await save(server, boundary, event())
    position = await save(server, boundary, event(), event(), told=command())
    (stored,) = await commands(server, boundary)
    assert stored.command == command()
    assert stored.position == position
    assert stored.date_created.seconds > 0


async def test_commands_are_paged_by_position(server: Connection, boundary: str) -> None:
    for number in range(5):
        await save(server, boundary, event(), event(), told=command(f"c{number}"))
        await save(server, boundary, event())
    first = await commands(server, boundary, count=2)
    rest = await commands(server, boundary, after=first[-1].position)
    assert [stored.command.command_id for stored in (*first, *rest)] == [f"c{number}" for number in range(5)]
    assert await commands(server, boundary, after=rest[-1].position) == []


async def test_a_conflict_stores_no_command_and_a_repeat_none_again(server: Connection, boundary: str) -> None:
    placed = event("a")
    position = await save(server, boundary, placed, told=command("first"), key="a")
    with pytest.raises(grpc.aio.AioRpcError, match="StreamVersionConflict"):
        await save(server, boundary, event("a"), told=command("second"), key="a")
    assert await save(server, boundary, placed, told=command("first"), key="a") == position
    assert [stored.command.command_id for stored in await commands(server, boundary)] == ["first"]


async def test_calls_of_a_group_keep_their_own_commands(server: Connection, boundary: str) -> None:
    taken = event("taken")
    await save(server, boundary, taken)

    async def one(number: int) -> tuple[str, pb.Position | None]:
        told = command(f"c{number}") if number % 3 else None
        # every fifth conflicts, every seventh repeats what is stored
        key, new = ("taken" if number % 5 == 0 else "", taken if number % 7 == 0 else event(str(number)))
        try:
            return f"c{number}", await save(server, boundary, new, told=told, key=key)
        except grpc.aio.AioRpcError as problem:
            if problem.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return f"c{number}", None

    answers = dict(await asyncio.gather(*map(one, range(1, 120))))
    stored = await commands(server, boundary, count=1000)
    expected = [
        (f"c{number}", answers[f"c{number}"])
        for number in range(1, 120)
        if number % 3 and number % 7 and answers[f"c{number}"] is not None
    ]
    assert sorted((one.command.command_id, one.position.prepare_position) for one in stored) == sorted(
        (name, position.prepare_position) for name, position in expected
    )
    assert [one.position.prepare_position for one in stored] == sorted(one.position.prepare_position for one in stored)
