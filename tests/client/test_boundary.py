"""Append, read, latest and subscribe, against a real server."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

import orisun
from orisun import AppendCondition, Command, NewEvent, Position, streaming, where
from orisun.boundary import _PageSize
from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.reads import Reader
from tests.harness import Connection, eventually


async def read(boundary: orisun.Boundary, *arguments: orisun.Query, **options: object) -> list[orisun.Event]:
    return [event async for event in boundary.read(*arguments, **options)]  # type: ignore[arg-type]


async def placed(orders: orisun.Boundary, count: int, **data: object) -> list[NewEvent]:
    events = [NewEvent("OrderPlaced", {"number": number, **data}) for number in range(count)]
    await orders.append(events)
    return events


async def test_what_is_appended_is_read(orders: orisun.Boundary) -> None:
    sent = NewEvent("OrderPlaced", {"order": "o-1", "lines": [{"price": 12.5}], "é": None}, {"source": "shop"})
    position = await orders.append([sent])
    assert position == Position(1, 0)
    (event,) = await read(orders)
    assert (event.event_id, event.event_type, event.data, event.metadata) == (
        sent.event_id,
        "OrderPlaced",
        {"order": "o-1", "lines": [{"price": 12.5}], "é": None},
        {"source": "shop"},
    )
    assert event.position == position
    assert event.created_at.tzinfo is not None
    assert event.fields == event.data


async def test_a_condition_holds_the_latest_matching_position(orders: orisun.Boundary) -> None:
    about = where(order="o-1")
    first = await orders.append([NewEvent("Placed", {"order": "o-1"})], condition=AppendCondition(about))
    await orders.append([NewEvent("Placed", {"order": "o-2"})], condition=AppendCondition(where(order="o-2")))
    second = await orders.append([NewEvent("Paid", {"order": "o-1"})], condition=AppendCondition(about, first))
    with pytest.raises(orisun.Conflict, match="Expected") as caught:
        await orders.append([NewEvent("Paid", {"order": "o-1"})], condition=AppendCondition(about, first))
    assert (caught.value.expected, caught.value.actual) == (first, second)
    assert caught.value.code == "ALREADY_EXISTS"


async def test_a_repeat_is_harmless_and_a_changed_event_is_not(orders: orisun.Boundary) -> None:
    event = NewEvent("Placed", {"order": "o-1"})
    condition = AppendCondition(where(order="o-1"))
    assert await orders.append([event], condition=condition) == await orders.append([event], condition=condition)
    changed = NewEvent("Placed", {"order": "o-2"}, event_id=event.event_id)
    with pytest.raises(orisun.DuplicateEventId):
        await orders.append([changed])


async def test_reads_go_through_pages(orders: orisun.Boundary) -> None:
    sent = [event.event_id for event in await placed(orders, 23)]
    assert [event.event_id for event in await read(orders, page_size=5)] == sent
    backwards = [event.event_id for event in await read(orders, page_size=5, descending=True)]
    assert backwards == sent[::-1]
    assert [event.event_id for event in await read(orders, limit=7, page_size=5)] == sent[:7]
    everything = await read(orders)
    assert await read(orders, after=everything[19].position) == everything[20:]
    assert await read(orders, start=everything[19].position, page_size=2) == everything[19:]
    assert await read(orders, start=everything[2].position, descending=True) == everything[2::-1]


async def test_a_long_read_holds_a_page_at_a_time(orders: orisun.Boundary) -> None:
    """Row by row: what is worked on, and what is read ahead, is a page and not the log."""
    text = "x" * 10_000
    for _ in range(10):
        await orders.append([NewEvent("Noted", {"text": text}) for _ in range(100)])
    count = most = 0
    gc.collect()
    tracemalloc.start()
    try:
        async for event in orders.read(page_size=50):
            count += 1
            assert len(event.data["text"]) == len(text)
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert count == 1_000
    assert most < 0.5 * count * len(text), "far from all of it at any time"


async def test_reads_by_types_and_keys(orders: orisun.Boundary) -> None:
    await orders.append([NewEvent(kind, {"n": n, "on": True}) for n, kind in enumerate(["A", "B", "C", "A"])])
    assert [event.data["n"] for event in await read(orders, where("A", "C"))] == [0, 2, 3]
    assert [event.data["n"] for event in await read(orders, where("A", n=3) | where(n=1))] == [1, 3]
    assert len(await read(orders, where({"on": True}, event_type="A"))) == 2


async def test_large_events_make_smaller_pages(
    settings: Settings, make_server: Callable[..., Awaitable[Connection]], make_client: Callable[..., orisun.Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # a server whose pages hold 100 kB, instead of 64 MiB
    monkeypatch.setitem(Reader.__init__.__kwdefaults__, "max_bytes", 100_000)
    orders = make_client((await make_server(settings)).address).boundary(settings.boundaries[0].name)
    await orders.append([NewEvent("Large", {"number": number, "text": "x" * 30_000}) for number in range(11)])
    with pytest.raises(orisun.ResourceExhausted):
        await orders._calls.unary("events", "GetEvents", pb.GetEventsRequest(boundary=orders.name, count=11))
    assert [event.data["number"] for event in await read(orders)] == list(range(11))
    # those that are small are read by many again, and so are commands
    command = Command("c", "Store", {"text": "x" * 30_000})
    for number in range(8):
        await orders.append([NewEvent("Small", {"number": number})], command=replace(command, command_id=str(number)))
    assert [stored.command_id async for stored in orders.commands()] == [str(number) for number in range(8)]


def test_the_size_of_pages_grows_again() -> None:
    size = _PageSize("read", 500, None)
    size.too_large(size(None))
    assert (size(None), size(7)) == (125, 7)
    for _ in range(40):
        size.fits()
    assert size(None) == 500


async def test_latest(orders: orisun.Boundary) -> None:
    await orders.append([NewEvent("Placed", {"order": name, "n": n}) for n, name in enumerate(["a", "b", "a"])])
    latest = await orders.latest(where(order="a") | where(order="b") | where(order="c"))
    assert [event and event.data["n"] for event in latest.events] == [2, 1, None]
    assert latest.event is not None
    assert latest.position == latest.event.position == Position(3, 2)
    assert latest[where(order="b")] == latest.events[1]
    await orders.append([NewEvent("Paid", {"order": "c"})], condition=latest.condition)
    with pytest.raises(orisun.Conflict):
        await orders.append([NewEvent("Paid", {"order": "c"})], condition=latest.condition)
    assert (await orders.latest(where(order="nobody"))).position == orisun.NOTHING


async def test_a_subscription_brings_what_is_stored_and_what_comes(orders: orisun.Boundary) -> None:
    stored = await placed(orders, 3)
    async with orders.subscribe("mailer", where("OrderPlaced")) as subscription:
        came = [await anext(subscription) for _ in range(3)]
        waiting = asyncio.ensure_future(anext(subscription))
        (live,) = await placed(orders, 1)
        came.append(await waiting)
        assert [event.event_id for event in came] == [event.event_id for event in [*stored, live]]
        assert subscription.position == came[-1].position
    async with orders.subscribe("mailer", after=came[1].position) as subscription:
        assert [event.event_id for event in await subscription.batch(10, timeout=5)][:1] == [stored[2].event_id]


async def test_a_name_is_taken_once(orders: orisun.Boundary) -> None:
    async with orders.subscribe("mailer"):
        with pytest.raises(orisun.SubscriberInUse, match="mailer"):
            async with orders.subscribe("mailer") as second:
                await anext(second)
    await placed(orders, 1)
    async with orders.subscribe("mailer") as third:
        await anext(third)


async def test_a_position_that_came_already_is_dropped(orders: orisun.Boundary) -> None:
    subscription = orders.subscribe("mailer", after=Position(3, 2))
    for commit, taken in ((3, False), (4, True), (4, False), (2, False), (5, True)):
        message = pb.Event(position=pb.Position(commit_position=commit, prepare_position=commit - 1))
        assert (subscription._accept(message) is not None) == taken


async def test_a_position_of_another_history(orders: orisun.Boundary) -> None:
    subscription = orders.subscribe("mailer", after=Position(1_000, 999))
    with pytest.raises(orisun.OutOfRange):
        await anext(subscription)
    await subscription.aclose()


async def test_batches_end_with_their_time(orders: orisun.Boundary) -> None:
    await placed(orders, 3)
    async with orders.subscribe("mailer") as subscription:
        came: list[orisun.Event] = []
        while len(came) < 3:
            came += await subscription.batch(2, timeout=10)
        assert [event.data["number"] for event in came] == [0, 1, 2]
        assert await subscription.batch(2, timeout=0.02) == []
        # whoever gave up waiting has lost nothing
        await placed(orders, 1)
        assert len(await subscription.batch(2, timeout=10)) == 1


async def test_leaving_ends_waiting(orders: orisun.Boundary) -> None:
    subscription = orders.subscribe("mailer")
    async with subscription:
        waiting = asyncio.ensure_future(anext(subscription, None))
        await asyncio.sleep(0)
    assert await waiting is None


@pytest.mark.parametrize("items", [[], ["text"], [{"a": 1}], [None], [NewEvent("", {})]])
async def test_what_is_no_event_is_refused(orders: orisun.Boundary, items: list[object]) -> None:
    with pytest.raises(orisun.InvalidArgument):
        await orders.append(items)


async def test_mistakes_are_told_in_words(orders: orisun.Boundary) -> None:
    event: Any = NewEvent("A")
    latest = await orders.latest(where(a=1) | where(a=2))
    anything: Any = where(a=1)
    text: Any = "OrderPlaced"
    for message, call in (
        ("takes a list", lambda: orders.append(event)),
        ("event_id is a int", lambda: orders.append([NewEvent("A", event_id=anything and 7)])),  # type: ignore[arg-type]
        ("event_type is a int", lambda: orders.append([NewEvent(anything and 7)])),  # type: ignore[arg-type]
        ("to store is Command", lambda: orders.append([event], command=anything)),
        ("condition=decision.condition.* this is a Query", lambda: orders.append([event], condition=anything)),
        (r"made by where\(.* this is a str", lambda: orders.latest(text)),
        (r"made by where\(.* this is a str", lambda: read(orders, text)),
        ("limit -1 is negative", lambda: read(orders, limit=-1)),
    ):
        with pytest.raises(orisun.InvalidArgument, match=message):
            await call()
    for asked in (where(a=3), where(a=1) | where(a=2)):
        with pytest.raises(orisun.InvalidArgument, match="was not asked for"):
            latest[asked]
    # what was kept as JSON is as good as a position
    kept: Any = list(await orders.append([event]))
    assert await orders.append([NewEvent("B", {"b": 1})], condition=AppendCondition(orisun.EVERYTHING, kept))
    assert [found.event_type for found in await read(orders, after=kept)] == ["B"]


async def test_large_events_are_received_within_bounds(
    orders: orisun.Boundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 200_000)
    await orders.append([NewEvent("Large", {"number": number, "text": "x" * 50_000}) for number in range(20)])
    async with orders.subscribe("slow") as subscription:
        await eventually(lambda: subscription._bytes >= 200_000)
        numbers = []
        while len(numbers) < 20:
            assert subscription._bytes <= 260_000
            numbers.append((await anext(subscription)).data["number"])
        assert (numbers, subscription._bytes) == (list(range(20)), 0)


async def test_an_event_that_does_not_fit_is_left_out_by_its_position(
    orders: orisun.Boundary, client: orisun.Client
) -> None:
    @client.types.event("Strict")
    @dataclass
    class Strict:
        number: int

    await orders.append([NewEvent("Strict", {"number": 1}), NewEvent("Strict", {}), NewEvent("Strict", {"number": 3})])
    async with orders.subscribe("strict") as subscription:
        assert (await anext(subscription)).data == Strict(1)
        with pytest.raises(orisun.CodecError, match="event at") as caught:
            await anext(subscription)
    async with orders.subscribe("strict", after=caught.value.position) as subscription:
        assert (await anext(subscription)).data == Strict(3)


async def test_leaving_does_not_swallow_a_cancellation(orders: orisun.Boundary) -> None:
    subscription = orders.subscribe("mailer")
    async with subscription:
        closing = asyncio.ensure_future(subscription.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing


async def test_an_unknown_boundary(client: orisun.Client) -> None:
    with pytest.raises(orisun.FailedPrecondition, match="not active"):
        await client.boundary("nothing_here").append([NewEvent("A", {})])
