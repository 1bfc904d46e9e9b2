"""Appending through group commit against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping, Sized
from typing import TypeVar

import pytest

from orisun_server.core.append import Context, checked_events
from orisun_server.core.criteria import WHOLE_BOUNDARY, Criterion, Query, query
from orisun_server.core.event import NewEvent
from orisun_server.core.position import NOTHING, Position
from orisun_server.deadlines import time_left
from orisun_server.errors import (
    ContextChanged,
    DuplicateEventId,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from orisun_server.settings import Settings
from orisun_server.storage import lane
from orisun_server.storage import survey as survey_module
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.criteria_sql import Plans
from orisun_server.storage.database import Database
from orisun_server.storage.flush import Flush
from orisun_server.storage.gathering import Gathering
from orisun_server.storage.group_commit import Appender
from orisun_server.storage.lane import SHORT_LOG
from orisun_server.storage.survey import Seen, Survey
from tests.harness import eventually
from tests.proxy import PostgresProxy

T = TypeVar("T")


class NoIndexes:
    def ready(self, _: str) -> tuple[()]:
        return ()


@pytest.fixture
def appender(database: Database) -> Appender:
    return Appender(database, NoIndexes())


def event(event_id: str, **data: object) -> NewEvent:
    return NewEvent(event_id, "Placed", json.dumps(data), "{}")


def about(**tags: str) -> Query:
    return query([tags.items()])


async def test_positions_start_at_zero_and_a_batch_shares_its_commit_position(
    appender: Appender, boundary: Boundary
) -> None:
    assert await appender.append(boundary, [event("a")], None) == Position(1, 0)
    assert await appender.append(boundary, [event("b"), event("c")], None) == Position(3, 2)


async def test_a_context_is_checked_exactly(appender: Appender, boundary: Boundary) -> None:
    first = await appender.append(boundary, [event("a", account="x")], Context(NOTHING, about(account="x")))
    await appender.append(boundary, [event("b", account="y")], Context(NOTHING, about(account="y")))
    with pytest.raises(ContextChanged) as caught:
        await appender.append(boundary, [event("c", account="x")], Context(NOTHING, about(account="x")))
    assert str(caught.value) == (
        "OptimisticConcurrencyException:StreamVersionConflict: Expected (-1, -1), Actual (1, 0)"
    )
    for wrong in (Position(0, 0), Position(9, 8)):
        with pytest.raises(ContextChanged):
            await appender.append(boundary, [event("c", account="x")], Context(wrong, about(account="x")))
    assert await appender.append(boundary, [event("c", account="x")], Context(first, about(account="x"))) == (3, 2)
    with pytest.raises(ContextChanged):
        await appender.append(boundary, [event("d")], Context(first, WHOLE_BOUNDARY))
    assert await appender.append(boundary, [event("d")], Context(Position(3, 2), WHOLE_BOUNDARY)) == (4, 3)


async def test_or_takes_the_latest_over_all_criteria(appender: Appender, boundary: Boundary) -> None:
    await appender.append(boundary, [event("a", account="x")], None)
    second = await appender.append(boundary, [event("b", account="y")], None)
    either = query([[("account", "x")], [("account", "y")]])
    with pytest.raises(ContextChanged):
        await appender.append(boundary, [event("c", account="x")], Context(Position(1, 0), either))
    assert await appender.append(boundary, [event("c", account="x")], Context(second, either)) == (3, 2)


async def test_a_repeat_gets_the_first_answer_whatever_it_expects(appender: Appender, boundary: Boundary) -> None:
    batch = [event("a", n=1.50), event("b", n=2)]
    first = await appender.append(boundary, batch, Context(NOTHING, WHOLE_BOUNDARY))
    await appender.append(boundary, [event("z")], None)
    same = [NewEvent("a", "Placed", '{"n":   1.5}', ""), batch[1]]
    assert await appender.append(boundary, same, Context(NOTHING, WHOLE_BOUNDARY)) == first
    assert await asyncio.gather(*(appender.append(boundary, batch, None) for _ in range(5))) == [first] * 5


async def test_a_repeat_beside_its_first_in_one_group_gets_the_same_answer(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    answers = await asyncio.gather(
        *(appender.append(boundary, [event("a")], Context(NOTHING, WHOLE_BOUNDARY)) for _ in range(20))
    )
    assert answers == [Position(1, 0)] * 20
    assert await database.read.fetchval(f"SELECT count(*) FROM {boundary.names.q_events}") == 1


@pytest.mark.parametrize(
    "other",
    [
        [event("a", n=1)],  # part of a stored call
        [event("b", n=2), event("a", n=1)],  # another order
        [event("a", n=1), event("b", n=3)],  # other data
        [event("a", n=1), event("b", n=2)._replace(event_type="Other")],
        [event("a", n=1), event("b", n=2)._replace(metadata='{"x": 1}')],
        [event("a", n=1), event("b", n=2), event("c")],  # some stored, some new
        [event("c"), event("b", n=2)],
    ],
)
async def test_stored_ids_with_another_call_are_refused(
    appender: Appender, boundary: Boundary, other: list[NewEvent]
) -> None:
    await appender.append(boundary, [event("a", n=1), event("b", n=2)], None)
    with pytest.raises(DuplicateEventId, match=r"^DuplicateEventId: event "):
        await appender.append(boundary, other, None)
    assert await appender.append(boundary, [event("new")], None) == Position(3, 2)


async def test_the_type_key_belongs_to_the_server(appender: Appender, boundary: Boundary, database: Database) -> None:
    for number, data in enumerate(('{"eventType": "Fake", "a": 1}', '{"event\\u0054ype": "Fake", "a": 1}')):
        await appender.append(boundary, [NewEvent(f"e{number}", "Placed", data, "{}")], None)
    rows = await database.read.fetch(f"SELECT data::text, event_type FROM {boundary.names.q_events}")
    assert [tuple(row) for row in rows] == [('{"a": 1}', "Placed")] * 2
    with pytest.raises(ContextChanged, match=r"Actual \(2, 1\)"):
        await appender.append(boundary, [event("x")], Context(NOTHING, about(event_type="Placed")))
    await appender.append(boundary, [event("x")], Context(NOTHING, about(eventType="Fake")))


async def test_one_bad_call_never_harms_its_group(appender: Appender, boundary: Boundary) -> None:
    bad = NewEvent("bad", "Placed", '{"n": 1e999999}', "{}")
    answers = await asyncio.gather(
        *(appender.append(boundary, [event(f"e{n}")] if n != 3 else [event("x"), bad], None) for n in range(8)),
        return_exceptions=True,
    )
    assert isinstance(answers[3], InvalidArgument)
    assert str(answers[3]) == "invalid event JSON: event 1 data: a number is out of PostgreSQL's range"
    assert sorted(answer.prepare for answer in answers if isinstance(answer, Position)) == list(range(7))


async def test_a_value_that_cannot_be_matched_never_harms_its_group(appender: Appender, boundary: Boundary) -> None:
    deep = NewEvent("deep", "Placed", '{"k": ' + "[" * 400 + "]" * 400 + "}", "{}")
    huge = NewEvent("huge", "Placed", '{"k": 1e9999999999999999999999}', "{}")
    inner = NewEvent("inner", "Placed", '{"k": [{"n": 1e9999999999999999999999}]}', "{}")
    events = [event(f"e{n}", k=str(n)) for n in range(20)]
    await appender.append(boundary, [event("first")], None)  # from then on a short log is known to be short
    answers = await asyncio.gather(
        *(appender.append(boundary, [one], Context(NOTHING, about(k=str(n)))) for n, one in enumerate(events)),
        appender.append(boundary, [deep], None),
        appender.append(boundary, [huge], None),
        appender.append(boundary, [inner], None),
        *(appender.append(boundary, [event(f"l{n}")], Context(NOTHING, about(k=f"later {n}"))) for n in range(20)),
        return_exceptions=True,
    )
    refused = [answers.pop(21), answers.pop(21)]
    assert [type(answer) for answer in refused] == [InvalidArgument] * 2
    assert str(refused[1]) == "invalid event JSON: event 0 data: a number is out of PostgreSQL's range"
    assert sorted(answer.prepare for answer in answers if isinstance(answer, Position)) == list(range(1, 42))


async def test_a_sequence_that_lies_behind_the_events_is_passed(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    await appender.append(boundary, [event("a"), event("b")], None)
    await database.admin.execute("SELECT setval($1::text::regclass, 0, false)", boundary.names.q_sequence)
    assert await appender.append(boundary, [event("c")], None) == Position(3, 2)


async def test_beyond_the_queue_calls_are_refused_at_once(database: Database, boundary: Boundary) -> None:
    appender = Appender(database, NoIndexes(), queue_calls=10)
    answers = await asyncio.gather(
        *(appender.append(boundary, [event(f"e{n}")], None) for n in range(25)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, ResourceExhausted)]
    assert len(refused) == 15
    assert "ORISUN_APPEND_QUEUE_CALLS=10" in str(refused[0])
    assert await appender.append(boundary, [event("later")], None) == Position(11, 10)


async def test_beyond_the_bytes_of_the_queue_calls_are_refused_at_once(database: Database, boundary: Boundary) -> None:
    """What waits is bounded in memory, not only in number; a call that is larger than all of it can still be alone."""
    appender = Appender(database, NoIndexes(), queue_bytes=100_000)
    calls = [appender.append(boundary, [event(f"e{n}", text="x" * 30_000)], None) for n in range(10)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Position] * 3 + [ResourceExhausted] * 7
    assert "ORISUN_APPEND_QUEUE_BYTES=100000" in str(answers[3])
    assert appender.waiting == (0, 0)
    assert await appender.append(boundary, [event("large", text="x" * 200_000)], None) == Position(4, 3)


async def without_timers(calls: Coroutine[object, object, T]) -> T:
    """The clock of the event loop stands still: whatever waited for a moment would wait for ever."""
    loop = asyncio.get_running_loop()
    stands, clock = loop.time(), loop.time
    task = asyncio.ensure_future(calls)
    loop.time = lambda: stands  # type: ignore[method-assign]
    give_up = threading.Timer(20, lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        give_up.start()
        await asyncio.wait([task])
    finally:
        give_up.cancel()
        loop.time = clock  # type: ignore[method-assign]
    return task.result()


@pytest.mark.parametrize("gather", [False, True])
async def test_no_timer_delays_a_lone_call(database: Database, boundary: Boundary, gather: bool) -> None:
    appender = Appender(database, NoIndexes(), gather=gather)

    async def lone(number: int) -> Position:
        return await appender.append(boundary, [event(f"e{number}", n=number)], Context(NOTHING, about(n=str(number))))

    await lone(0)  # which connects, and prepares its statement
    assert await without_timers(lone(1)) == Position(2, 1)


@pytest.mark.parametrize("gather", [False, True])
async def test_no_timer_delays_the_conflicts_of_a_lone_caller(
    database: Database, boundary: Boundary, gather: bool
) -> None:
    appender = Appender(database, NoIndexes(), gather=gather)

    async def stale() -> None:
        for number in range(5):
            with pytest.raises(ContextChanged):
                await appender.append(boundary, [event(f"s{number}")], Context(NOTHING, about(n="0")))

    await appender.append(boundary, [event("e0", n="0")], Context(NOTHING, about(n="0")))
    await without_timers(stale())


async def test_what_a_full_group_held_is_all_that_the_next_waits_for(
    database: Database, boundary: Boundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int | None] = []
    wait = Gathering.wait

    async def heard(self: Gathering, queue: Sized, seconds: float, most: int | None = None) -> None:
        told.append(most)
        await wait(self, queue, seconds, most)

    monkeypatch.setattr(Gathering, "wait", heard)
    monkeypatch.setattr(lane, "GROUP_EVENTS", 50)
    appender = Appender(database, NoIndexes(), gather=True)
    calls = [[event(f"{call}-{n}") for n in range(10)] for call in range(12)]
    await asyncio.gather(*(appender.append(boundary, events, None) for events in calls))
    assert await eventually(lambda: told[-1:] == [None])
    assert 5 in told


async def test_a_conflict_is_told_before_its_caller_has_left(appender: Appender, boundary: Boundary) -> None:
    """Many that lost one context are told one after the other, but never so late that a deadline comes first."""
    first = await appender.append(boundary, [event("e0", n="0")], None)
    lost = [(appender, boundary, [event(f"l{n}", n="0")], Context(NOTHING, about(n="0"))) for n in range(60)]

    async def now() -> list[Position | BaseException]:
        time_left.set(lambda: 0.0)
        calls = (appender.append(boundary, events, context) for _, boundary, events, context in lost)
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = await without_timers(now())
    assert {str(answer) for answer in answers} == {str(ContextChanged(NOTHING, first))}


async def test_many_small_events_are_counted_with_what_each_takes(database: Database, boundary: Boundary) -> None:
    appender = Appender(database, NoIndexes(), queue_bytes=100_000)
    calls = [[NewEvent(f"{call}{n}", "T", "{}", "{}") for n in range(200)] for call in "ab"]
    first, second = await asyncio.gather(
        *(appender.append(boundary, events, None) for events in calls), return_exceptions=True
    )
    assert isinstance(first, Position)
    assert isinstance(second, ResourceExhausted)
    assert appender.waiting == (0, 0)


async def test_numbers_are_counted_as_long_as_they_are_written_out(database: Database, boundary: Boundary) -> None:
    """So what a group writes out to be matched is no more than a group may have."""
    appender = Appender(database, NoIndexes(), queue_bytes=300_000)
    numbers = [NewEvent(f"n{n}", "T", '{"k": 1e131071}', "{}") for n in range(3)]
    answers = await asyncio.gather(*(appender.append(boundary, [one], None) for one in numbers), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Position, Position, ResourceExhausted]


async def test_after_an_unforeseen_error_who_waits_is_served_in_the_order_of_arrival(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    await appender.append(boundary, [event("before")], None)
    async with database.admin.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT pg_advisory_xact_lock($1)", boundary.names.lock_key)
        flushed = asyncio.create_task(appender.append(boundary, [event("flushed")], None))
        await eventually(
            lambda: database.read.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )
        waiting = [asyncio.create_task(appender.append(boundary, [event(f"w{n}")], None)) for n in range(3)]
        await asyncio.sleep(0)
        task = appender._lane(boundary)._task
        assert task is not None
        task.cancel()
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable, match="repeat the call unchanged"):
                await flushed
    answers = [await one for one in waiting]
    assert answers == sorted(answers)


async def test_a_caller_that_left_is_not_appended(appender: Appender, boundary: Boundary, database: Database) -> None:
    async with database.admin.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT pg_advisory_xact_lock($1)", boundary.names.lock_key)
        first = asyncio.create_task(appender.append(boundary, [event("first")], None))
        waiters = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: database.read.fetchval(waiters))
        waiting = asyncio.create_task(appender.append(boundary, [event("left")], None))
        staying = asyncio.create_task(appender.append(boundary, [event("stays")], None))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert [await first, await staying] == [Position(1, 0), Position(2, 1)]
    assert await database.read.fetchval(f"SELECT count(*) FROM {boundary.names.q_events}") == 2


async def test_a_backend_killed_before_its_commit_is_unavailable_and_the_repeat_stores(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    batch = [event(f"e{n}", n=n) for n in range(50)]
    async with database.admin.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT pg_advisory_xact_lock($1)", boundary.names.lock_key)
        task = asyncio.create_task(appender.append(boundary, batch, Context(NOTHING, about(n="7"))))
        kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: database.read.fetchval(kill))
        with pytest.raises(Unavailable, match="repeat the call unchanged, it is never stored twice"):
            await task
    assert await database.read.fetchval(f"SELECT count(*) FROM {boundary.names.q_events}") == 0
    assert await appender.append(boundary, batch, Context(NOTHING, about(n="7"))) == Position(50, 49)


async def test_an_answer_lost_after_the_commit_is_unavailable_and_the_repeat_gets_it(
    boundary: Boundary, database: Database, pg_settings: Settings
) -> None:
    """The network is frozen while PostgreSQL commits, and then cut: whether it is stored cannot be told from here."""
    batch = [event(f"e{n}", n=n) for n in range(50)]
    stored = f"SELECT count(*) FROM {boundary.names.q_events}"
    async with PostgresProxy(pg_settings) as proxy:
        behind = await Database.connect(proxy.settings)
        try:
            appender = Appender(behind, NoIndexes())
            await appender.append(boundary, [event("first")], None)
            async with database.admin.acquire() as blocker, blocker.transaction():
                await blocker.execute("SELECT pg_advisory_xact_lock($1)", boundary.names.lock_key)
                task = asyncio.create_task(appender.append(boundary, batch, Context(NOTHING, about(n="7"))))
                waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                await eventually(lambda: database.read.fetchval(waits))
                proxy.freeze()
            await eventually(lambda: is_51(database, stored))
            assert not task.done()
            await proxy.cut()
            with pytest.raises(Unavailable, match="repeat the call unchanged, it is never stored twice"):
                await task
            proxy.thaw()
            # its context has changed by its own events, and it gets the answer that was lost
            assert await appender.append(boundary, batch, Context(NOTHING, about(n="7"))) == Position(51, 50)
            assert await database.read.fetchval(stored) == 51
        finally:
            await behind.close()


async def is_51(database: Database, count: str) -> bool:
    return bool(await database.read.fetchval(count) == 51)


async def test_backends_killed_at_any_moment_store_all_or_nothing(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    stored = 0
    for number in range(12):
        batch = [event(f"e{number}-{n}", n=n) for n in range(50)]
        task = asyncio.create_task(appender.append(boundary, batch, Context(NOTHING, about(n="never"))))
        for _ in range(number):
            await asyncio.sleep(0)
        await database.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE $1 AND pid <> pg_backend_pid()",
            f"%{boundary.names.append}%",
        )
        try:
            position = await task
        except Unavailable:
            position = await appender.append(boundary, batch, Context(NOTHING, about(n="never")))
        assert position.commit == position.prepare + 1
        stored += 50
        assert await database.read.fetchval(f"SELECT count(*) FROM {boundary.names.q_events}") == stored


async def test_other_isolation_levels_are_refused(boundary: Boundary, database: Database, appender: Appender) -> None:
    await appender.append(boundary, [event("a")], None)
    async with database.admin.acquire() as connection:
        flush = Flush(boundary, Plans(()))
        flush.add(checked_events([event("b")], 1), None)
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        with pytest.raises(Exception, match="read committed only"):
            await connection.fetchrow(flush.statement, *flush.arguments())
        await transaction.rollback()


async def test_an_open_transaction_elsewhere_stalls_nothing(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    async with database.admin.acquire() as other, other.transaction():
        await other.execute("SELECT pg_current_xact_id()")
        async with asyncio.timeout(30):
            await appender.append(boundary, [event("a")], None)
        assert await database.read.fetchval(f"SELECT count(*) FROM {boundary.names.q_events}") == 1


async def _fill(appender: Appender, boundary: Boundary, count: int) -> None:
    await appender.append(boundary, [event(f"old-{number}", account="other") for number in range(count)], None)
    await appender.append(boundary, [event("newest", account="other")], None)  # shows that the log is long now


async def test_without_an_index_a_context_is_exact_although_it_is_looked_up_before_the_lock(
    appender: Appender, boundary: Boundary
) -> None:
    await _fill(appender, boundary, SHORT_LOG)
    won = 0
    expected = NOTHING
    for turn in range(5):
        answers = await asyncio.gather(
            *(
                appender.append(
                    boundary, [event(f"{turn}-{number}", account="x")], Context(expected, about(account="x"))
                )
                for number in range(20)
            ),
            return_exceptions=True,
        )
        (expected,) = (answer for answer in answers if isinstance(answer, Position))
        assert {type(answer) for answer in answers} == {Position, ContextChanged}
        won += 1
    assert won == 5


async def test_what_comes_between_the_look_and_the_lock_is_a_conflict(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    await _fill(appender, boundary, SHORT_LOG)
    await appender.append(boundary, [event("first", account="x")], None)
    context = Context(NOTHING, about(account="y"))
    async with database.write.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", boundary.names.lock_key)
        held = asyncio.create_task(appender.append(boundary, [event("late", account="y")], context))
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: database.admin.fetchval(waits))
        flush = Flush(boundary, Plans(()))
        flush.add(checked_events([event("between", account="y")], 10), None)
        await connection.fetchrow(flush.statement, *flush.arguments())
    with pytest.raises(ContextChanged):
        await held


async def test_it_is_quiet_while_nobody_appends(appender: Appender, boundary: Boundary, database: Database) -> None:
    assert appender.quiet_for > 3600
    async with database.write.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", boundary.names.lock_key)
        held = asyncio.create_task(appender.append(boundary, [event("one")], None))
        await eventually(lambda: appender.waiting[0])
        assert appender.quiet_for == 0
    await held
    assert 0 < appender.quiet_for < 60


async def test_a_long_look_holds_up_nobody(appender: Appender, boundary: Boundary, database: Database) -> None:
    """The events are locked against the look, not the boundary: others append meanwhile."""
    await _fill(appender, boundary, SHORT_LOG)
    survey = appender._survey
    looking, going_on = asyncio.Event(), asyncio.Event()

    class Slow(Survey):
        async def __call__(self, *arguments: object) -> Mapping[Criterion, Seen]:
            looking.set()
            await going_on.wait()
            return await survey(*arguments)  # type: ignore[arg-type]

    appender._survey = Slow(database)
    slow = asyncio.create_task(
        appender.append(boundary, [event("slow", account="y")], Context(NOTHING, about(account="y")))
    )
    await asyncio.wait_for(looking.wait(), 30)
    await appender.append(boundary, [event("quick")], None)
    assert not slow.done()
    going_on.set()
    assert await slow > NOTHING


async def test_a_look_that_takes_too_long_says_what_is_missing(
    appender: Appender, boundary: Boundary, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(appender, boundary, SHORT_LOG)
    monkeypatch.setattr(survey_module, "PATIENCE", 0.2)
    context = Context(NOTHING, about(account="y"))
    async with database.write.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {boundary.names.q_events} IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(FailedPrecondition, match=f'no index of boundary "{boundary.name}".*CreateIndex'):
            await appender.append(boundary, [event("late", account="y")], context)
    assert await appender.append(boundary, [event("late", account="y")], context) > NOTHING


async def test_callers_that_fight_for_one_context_take_turns(
    appender: Appender, boundary: Boundary, database: Database
) -> None:
    """Each reads the latest event, appends, and comes back at a conflict; told all at once, all but one lose again."""
    latest = f"SELECT max(transaction_id), max(global_id) FROM {boundary.names.q_events}"
    callers, turns = 40, 3
    needed: list[float] = []

    async def caller(number: int) -> int:
        attempts = 0
        for turn in range(turns):
            one = event(f"{len(needed)}-{number}-{turn}", account="hot")
            while True:
                attempts += 1
                commit, prepare = await database.read.fetchrow(latest)
                seen = NOTHING if commit is None else Position(commit, prepare)
                try:
                    await appender.append(boundary, [one], Context(seen, about(account="hot")))
                    break
                except ContextChanged:
                    continue
        return attempts

    # 22 attempts for each success when all are told at once; a machine that is busy with something else takes turns of
    # its own, and is given another chance
    while not needed or needed[-1] >= 5:
        assert len(needed) < 4, f"attempts for each success: {needed}"
        needed.append(sum(await asyncio.gather(*map(caller, range(callers)))) / (callers * turns))
    counts = appender._watch.metrics.boundaries[boundary.name]
    assert counts.appends == callers * turns * len(needed)
    assert counts.conflicts == round((sum(needed) - len(needed)) * callers * turns)
