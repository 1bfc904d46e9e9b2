"""Aggregate streams: versions, expectations, ranges, snapshots."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest

import orisun
from orisun import ANY, NO_STREAM, NewEvent, VersionConflict
from orisun.projections import projection
from tests.harness import Connection


def renamed(name: str) -> NewEvent:
    return NewEvent("UserRenamed", {"name": name})


async def names(stream: orisun.AggregateStream, *versions: int | None) -> list[str]:
    return [event.data["name"] async for event in stream.read(*versions)]  # type: ignore[arg-type]


@pytest.fixture
def stream(orders: orisun.Boundary) -> orisun.AggregateStream:
    return orders.stream("User", "u-1")


async def test_versions_follow_each_other(orders: orisun.Boundary, stream: orisun.AggregateStream) -> None:
    assert await stream.version() == 0
    first = await stream.append([renamed("a"), renamed("b")], expected=NO_STREAM)
    assert first.version == 2
    await orders.stream("User", "u-2").append([renamed("other")])
    await orders.stream("Group", "u-1").append([renamed("other")])
    assert (await stream.append([renamed("c")], expected=2)).version == 3
    assert (await stream.append([renamed("d")])).version == 4
    assert await stream.version() == 4
    events = [event async for event in stream.read()]
    assert [orisun.version_of(event) for event in events] == [1, 2, 3, 4]
    assert events[0].data == {"name": "a", "aggregate_type": "User", "aggregate_id": "u-1", "aggregate_version": 1}


async def test_ranges_of_versions(stream: orisun.AggregateStream) -> None:
    await stream.append([renamed(name) for name in "abcdef"])
    assert await names(stream, 5) == ["e", "f"]
    assert await names(stream, 2, 4) == ["b", "c", "d"]
    assert await names(stream, 1, 1) == ["a"]
    assert await names(stream, 7) == []
    with pytest.raises(orisun.InvalidArgument, match="versions begin with 1"):
        await names(stream, 0)


async def test_unexpected_versions_conflict(stream: orisun.AggregateStream) -> None:
    with pytest.raises(VersionConflict) as caught:
        await stream.append([renamed("a")], expected=3)
    assert (caught.value.expected_version, caught.value.actual_version) == (3, 0)
    await stream.append([renamed("a"), renamed("b")], expected=0)
    for expected in (NO_STREAM, 0, 1, 3):
        with pytest.raises(VersionConflict, match="User/u-1 is at version 2") as caught:
            await stream.append([renamed("x")], expected=expected)
        assert caught.value.actual_version == 2
    assert isinstance(caught.value, orisun.Conflict)


async def test_a_repeat_with_an_exact_version_is_harmless(stream: orisun.AggregateStream) -> None:
    first, second = [renamed("a")], [renamed("b")]
    assert await stream.append(first, expected=NO_STREAM) == await stream.append(first, expected=NO_STREAM)
    assert await stream.append(second, expected=1) == await stream.append(second, expected=1)
    assert await names(stream) == ["a", "b"]


async def test_appends_at_once_get_versions_of_their_own(stream: orisun.AggregateStream) -> None:
    policy = orisun.RetryPolicy(attempts=100, first=0.001, longest=0.02)
    results = await asyncio.gather(*(stream.append([renamed(str(n))], retry=policy) for n in range(12)))
    assert sorted(result.version for result in results) == list(range(1, 13))
    assert [orisun.version_of(event) async for event in stream.read()] == list(range(1, 13))
    exact = await asyncio.gather(
        *(stream.append([renamed("x")], expected=12) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(one, orisun.Appended) for one in exact) == 1
    assert sum(isinstance(one, VersionConflict) for one in exact) == 4


async def test_any_gives_up_when_the_policy_says(stream: orisun.AggregateStream) -> None:
    results = await asyncio.gather(
        *(stream.append([renamed(str(n))], expected=ANY, retry=orisun.NEVER) for n in range(8)), return_exceptions=True
    )
    assert any(isinstance(one, orisun.Appended) for one in results)
    assert {type(one) for one in results} <= {orisun.Appended, orisun.Conflict}


async def test_the_origin_of_events(orders: orisun.Boundary, stream: orisun.AggregateStream) -> None:
    with orisun.origin(correlation_id="request-7", trace_id="4bf92f3577b34da6a3ce929d0e0e4736"):
        await stream.append([renamed("a")])
    cause = await anext(aiter(stream.read()))
    assert (cause.correlation_id, cause.causation_id) == ("request-7", None)
    await orders.append([NewEvent("MailSent").caused_by(cause)])
    (effect,) = [event async for event in orders.read(orisun.where("MailSent"))]
    assert (effect.correlation_id, effect.causation_id) == ("request-7", cause.event_id)
    assert effect.trace_id == cause.trace_id


async def test_a_repeat_from_elsewhere_keeps_its_origin(stream: orisun.AggregateStream) -> None:
    event = renamed("a")
    with orisun.origin(correlation_id="first try"):
        first = await stream.append([event], expected=orisun.NO_STREAM)
    with orisun.origin(correlation_id="second try"):
        assert await stream.append([event], expected=orisun.NO_STREAM) == first
    assert [stored.correlation_id async for stored in stream.read()] == [None]


def test_a_version_conflict_crosses_processes() -> None:
    conflict = orisun.VersionConflict("User/1", 1, 2, (orisun.Position(1, 0), orisun.Position(2, 1)))
    copied = pickle.loads(pickle.dumps(conflict))
    assert (str(copied), copied.expected_version, copied.actual_version) == (str(conflict), 1, 2)
    assert (copied.expected, copied.actual) == (conflict.expected, conflict.actual)
    copied = pickle.loads(pickle.dumps(orisun.Conflict("text", orisun.NOTHING, orisun.Position(2, 1))))
    assert (str(copied), copied.expected, copied.actual) == ("text", orisun.NOTHING, orisun.Position(2, 1))
    copied = pickle.loads(pickle.dumps(orisun.OtherError("text", "DATA_LOSS")))
    assert (str(copied), copied.code) == ("text", "DATA_LOSS")


@pytest.mark.parametrize("position", [orisun.Position(1_000, 999), orisun.Position(2, 1)])
async def test_a_snapshot_of_another_history_is_not_used(
    stream: orisun.AggregateStream, position: orisun.Position
) -> None:
    await stream.append([renamed("a"), renamed("b"), renamed("c")])
    snapshots = orisun.MemorySnapshots[Names]()
    await snapshots.save(orisun.Snapshot(str(stream), Names(("of before the restore",)), 9, position))
    folded = await stream.fold(Names(), see, snapshots=snapshots, every=2)
    assert (folded.state, folded.version) == (Names(("a", "b", "c")), 3)
    kept = await snapshots.load(str(stream))
    assert kept is not None
    assert kept.version == 3


async def test_snapshots_in_memory_are_bounded() -> None:
    snapshots = orisun.MemorySnapshots[int](most=2)
    for number in (1, 2):
        await snapshots.save(orisun.Snapshot(str(number), number, 1, orisun.NOTHING))
    assert await snapshots.load("1")
    await snapshots.save(orisun.Snapshot("3", 3, 1, orisun.NOTHING))
    assert [key for key in "123" if await snapshots.load(key)] == ["1", "3"]
    with pytest.raises(orisun.InvalidArgument):
        orisun.MemorySnapshots[int](most=0)


async def test_a_snapshot_that_does_not_fit_says_what_to_do(orders: orisun.Boundary) -> None:
    await orisun.EventSnapshots[dict[str, int]](orders).save(orisun.Snapshot("User/1", {"n": 1}, 1, orisun.NOTHING))
    with pytest.raises(orisun.CodecError, match="schema other than 1"):
        await orisun.EventSnapshots(orders, Strict).load("User/1")


@dataclass(frozen=True)
class Strict:
    needed: int


@dataclass(frozen=True)
class Names:
    seen: tuple[str, ...] = ()


def see(state: Names, event: orisun.Event) -> Names:
    return Names((*state.seen, event.data["name"]))


async def test_folding_with_snapshots(orders: orisun.Boundary, stream: orisun.AggregateStream) -> None:
    for snapshots in (orisun.MemorySnapshots[Names](), orisun.EventSnapshots(orders, Names)):
        fresh = orders.stream("User", type(snapshots).__name__)
        assert await fresh.fold(Names(), see) == orisun.Folded(Names(), 0, orisun.NOTHING)
        await fresh.append([renamed(name) for name in "abc"])
        folded = await fresh.fold(Names(), see, snapshots=snapshots, every=3)
        assert (folded.state, folded.version) == (Names(("a", "b", "c")), 3)
        kept = await snapshots.load(str(fresh))
        assert kept == orisun.Snapshot(str(fresh), folded.state, 3, folded.position)
        await fresh.append([renamed("d")])
        calls: list[str] = []

        def counted(state: Names, event: orisun.Event, calls: list[str] = calls) -> Names:
            calls.append(event.data["name"])
            return see(state, event)

        folded = await fresh.fold(Names(), counted, snapshots=snapshots, every=3)
        assert (folded.state, folded.version, calls) == (Names(("a", "b", "c", "d")), 4, ["d"])
        await fresh.append([renamed("e")], expected=folded.version)


async def test_snapshots_of_another_schema_are_not_used(orders: orisun.Boundary) -> None:
    old = orisun.EventSnapshots[dict[str, int]](orders)
    await old.save(orisun.Snapshot("User/1", {"n": 1}, 1, orisun.Position(1, 0)))
    assert await orisun.EventSnapshots[dict[str, int]](orders, schema=2).load("User/1") is None
    assert await old.load("User/1") == orisun.Snapshot("User/1", {"n": 1}, 1, orisun.Position(1, 0))


@pytest.mark.parametrize("expected", ["1", None, 1.0, True, -1])
async def test_an_expectation_that_is_no_version_is_refused(stream: orisun.AggregateStream, expected: object) -> None:
    with pytest.raises(orisun.InvalidArgument, match="is no version"):
        await stream.append([renamed("a")], expected=expected)  # type: ignore[arg-type]
    assert await stream.version() == 0


async def test_upcasters_leave_versions_alone(
    orders: orisun.Boundary, make_client: Callable[..., orisun.Client], server: Connection
) -> None:
    await orders.stream("User", "u-1").append([renamed("a")])
    types = orisun.EventTypes()
    types.upcaster("UserRenamed", from_version=1)(lambda data: {"called": data["name"]})
    stream = make_client(server.address, types=types).boundary(orders.name).stream("User", "u-1")
    await stream.append([NewEvent("UserRenamed", {"called": "b"})], expected=1)
    events = [event async for event in stream.read()]
    assert [event.data["called"] for event in events] == ["a", "b"]
    users = projection("users")(lambda tx, event: None)
    assert [users.key_of(event) for event in events] == ["User/u-1", "User/u-1"]


async def test_events_that_were_not_appended_to_the_stream_are_passed_over(
    orders: orisun.Boundary, stream: orisun.AggregateStream
) -> None:
    foreign = {"aggregate_type": "User", "aggregate_id": "u-1", "name": "foreign"}
    await orders.append([NewEvent("UserRenamed", foreign)])
    assert await stream.version() == 0
    await stream.append([renamed("a")], expected=NO_STREAM)
    await orders.append([NewEvent("UserRenamed", foreign)])
    assert await stream.version() == 1
    assert (await stream.append([renamed("b")], expected=1)).version == 2
    assert await names(stream) == ["a", "b"]
    folded = await stream.fold([], lambda state, event: [*state, event.data["name"]])
    assert (folded.state, folded.version) == (["a", "b"], 2)
