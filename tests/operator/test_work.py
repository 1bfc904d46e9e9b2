"""The queue: each resource once at a time, again after failures, again after a while."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import re
from collections.abc import AsyncIterator

import pytest

from orisun_operator import work
from orisun_operator.metrics import Metrics
from orisun_operator.reconcile import Outcome
from orisun_operator.work import Key, Reconcile, WorkQueue
from tests.harness import eventually, is_quick

_KEY = Key("things", "shop", "one")


@contextlib.asynccontextmanager
async def _queue(
    reconcile: Reconcile, *, timer: float = 60.0, workers: int = 4, metrics: Metrics | None = None
) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue({"things": reconcile}, workers=workers, timer=timer, metrics=metrics or Metrics())
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_resource_is_never_reconciled_twice_at_once_and_no_notice_is_lost() -> None:
    running, most, count, gate = 0, 0, 0, asyncio.Event()

    async def reconcile(namespace: str, name: str) -> Outcome:
        nonlocal running, most, count
        running += 1
        most, count = max(most, running), count + 1
        await gate.wait()
        running -= 1
        return Outcome()

    async with _queue(reconcile) as queue:
        for _ in range(5):
            queue.ask(_KEY)
        await eventually(lambda: count == 1)
        for _ in range(5):
            queue.ask(_KEY)
        gate.set()
        await eventually(lambda: count == 2 and running == 0)
        await asyncio.sleep(0.05)
        assert (most, count) == (1, 2)


async def test_different_resources_are_reconciled_at_once() -> None:
    inside, gate = set(), asyncio.Event()

    async def reconcile(namespace: str, name: str) -> Outcome:
        inside.add(name)
        await gate.wait()
        return Outcome()

    async with _queue(reconcile, workers=3) as queue:
        for number in range(5):
            queue.ask(Key("things", "shop", str(number)))
        await eventually(lambda: len(inside) == 3)
        gate.set()
        await eventually(lambda: len(inside) == 5)


async def test_one_namespace_never_has_all_workers() -> None:
    done, gate = set(), asyncio.Event()

    async def reconcile(namespace: str, name: str) -> Outcome:
        if namespace == "shop":
            await gate.wait()
        done.add(f"{namespace}/{name}")
        return Outcome()

    async with _queue(reconcile, workers=4) as queue:
        keys = [Key("things", namespace, str(number)) for namespace in ("shop", "office") for number in range(6)]
        for key in keys:
            queue.ask(key)
        await eventually(lambda: len(done) == 6)
        assert {one.partition("/")[0] for one in done} == {"office"}
        gate.set()
        await eventually(lambda: len(done) == 12)


async def test_what_does_not_go_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def reconcile(namespace: str, name: str) -> Outcome:
        await gate.wait()
        return Outcome(0.01)

    async with _queue(reconcile, workers=1) as queue:
        queue.ask(_KEY)
        await eventually(lambda: bool(queue._running))
        queue.ask(Key("things", "shop", "two"))
        assert queue.problem() == ""
        monkeypatch.setattr(work, "_STUCK", 0.0)
        assert re.fullmatch(r"a reconcile has taken \d+ s: things shop/one", queue.problem())
        queue._running.clear()
        assert re.fullmatch(r"things shop/two has waited \d+ s to be reconciled", queue.problem())
        queue._queued.clear()
        assert queue.problem() == ""
        queue._schedule(_KEY, -100.0)
        assert re.fullmatch(r"the timer is 1\d\d s late: things shop/one", queue.problem())


async def test_the_timer_and_a_requeue_bring_it_back() -> None:
    async def late() -> float:
        """How much later than asked for it came."""
        outcomes = iter([Outcome(0.01), Outcome(), Outcome(), Outcome()])
        times: list[float] = []

        async def reconcile(namespace: str, name: str) -> Outcome:
            times.append(asyncio.get_running_loop().time())
            return next(outcomes, Outcome(60.0))

        async with _queue(reconcile, timer=0.2) as queue:
            queue.ask(_KEY)
            await eventually(lambda: len(times) >= 4)
        assert times[2] - times[1] > 0.15
        return max(times[1] - times[0], times[2] - times[1] - 0.35)

    await is_quick(late, 0.15)


async def test_a_failure_is_tried_again_and_counted() -> None:
    metrics, count = Metrics(), 0

    async def reconcile(namespace: str, name: str) -> Outcome:
        nonlocal count
        count += 1
        if count == 1:
            raise RuntimeError("once")
        return Outcome()

    async with _queue(reconcile, metrics=metrics) as queue:
        queue.ask(_KEY)
        await eventually(lambda: count == 2)
        value = metrics.registry.get_sample_value
        await eventually(lambda: value("orisun_operator_reconciles_total", {"kind": "things"}) == 2)
        assert value("orisun_operator_reconcile_errors_total", {"kind": "things"}) == 1
        assert value("orisun_operator_reconcile_duration_seconds_count", {"kind": "things"}) == 2


async def test_what_is_gone_is_looked_at_once_more_and_not_for_ever() -> None:
    outcomes, count = iter([Outcome(), Outcome(0.01)]), 0

    async def reconcile(namespace: str, name: str) -> Outcome:
        nonlocal count
        count += 1
        return next(outcomes, Outcome())

    async with _queue(reconcile, timer=0.5) as queue:
        queue.there(_KEY)
        await eventually(lambda: count == 1)
        queue.gone(_KEY)
        # what the last look asked for is granted; the timer does not come back
        await eventually(lambda: count == 3)
        await asyncio.sleep(0.8)
        assert count == 3
        queue.there(_KEY)
        await eventually(lambda: count >= 5)


async def test_what_went_unseen_is_forgotten_too() -> None:
    count = 0

    async def reconcile(namespace: str, name: str) -> Outcome:
        nonlocal count
        count += 1
        return Outcome(gone=count >= 2)

    async with _queue(reconcile, timer=0.05) as queue:
        queue.there(_KEY)
        await eventually(lambda: count == 2)
        await asyncio.sleep(0.2)
        assert count == 2
        queue.there(_KEY)
        await eventually(lambda: count == 3)


async def test_what_cannot_go_on_is_tried_after_pauses_as_long_as_that_has_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "_LONGEST_PAUSE", 0.5)
    times: list[float] = []

    async def reconcile(namespace: str, name: str) -> Outcome:
        times.append(asyncio.get_running_loop().time())
        return Outcome(0.05, blocked=len(times) < 9)

    async with _queue(reconcile) as queue:
        queue.ask(_KEY)
        await eventually(lambda: len(times) >= 12, 20)
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    for since, pause in list(zip(times, pauses, strict=False))[:8]:
        assert pause > 0.95 * min(max(0.05, since - times[0]), 0.5)
    assert sum(pauses[5:8]) > 3 * 0.45
    # what gets on is looked at as it asks to be
    assert min(pauses[8:]) < 0.4


async def test_what_gets_on_has_those_tried_that_may_have_waited_for_the_same() -> None:
    is_back, looks = False, collections.Counter[str]()

    async def reconcile(namespace: str, name: str) -> Outcome:
        looks[f"{namespace}/{name}"] += 1
        return Outcome(None if is_back else 30.0, blocked=not is_back)

    async with _queue(reconcile) as queue:
        for namespace, name in (("shop", "one"), ("shop", "two"), ("office", "one")):
            queue.ask(Key("things", namespace, name))
        await eventually(lambda: looks.total() == 3 and not queue._running)
        is_back = True
        queue.ask(_KEY)
        await eventually(lambda: looks["shop/two"] == 2)
        assert looks["office/one"] == 1
        # one that comes may be what was waited for, and so may the end of another
        is_back = False
        queue.ask(_KEY)
        await eventually(lambda: looks["shop/one"] == 3 and not queue._running)
        queue.there(Key("things", "shop", "three"))
        await eventually(lambda: looks["shop/one"] == 4 and not queue._running)
        queue.gone(Key("things", "shop", "four"))
        await eventually(lambda: looks["shop/one"] == 5)
        assert looks["office/one"] == 1
