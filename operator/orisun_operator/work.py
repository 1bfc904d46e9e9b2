"""The queue between what happens and who reconciles: each resource at most once at a time, soon again after a failure.

One that cannot go on is tried again after pauses as long as it has been so; whatever comes, changes, goes or gets on
has the others of its namespace tried at once, since they may have waited for that. A resource that is asked for
while it is being reconciled is reconciled once more afterwards. Every known resource is looked at again after the
timer's interval, with some jitter, so that nothing depends on a notice that got lost.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import structlog

from .kube import KubeError
from .metrics import Metrics
from .reconcile import Outcome

log = structlog.get_logger(__name__)

_FIRST_RETRY, _LONGEST_RETRY = 1.0, 120.0
#: Seconds after which what cannot go on is tried again at the latest.
_LONGEST_PAUSE = 60.0
#: Part of the timer's interval by which looks are spread.
_JITTER = 0.1
#: Seconds after which a reconcile counts as stuck, and the queue when nobody takes from it, or its clock stands still.
_STUCK = 900.0


class Key(NamedTuple):
    """Which resource."""

    kind: str
    namespace: str
    name: str


Reconcile = Callable[[str, str], Awaitable[Outcome]]


class WorkQueue:
    """``run`` works until it is cancelled; ``ask`` has a resource reconciled soon."""

    def __init__(self, reconcilers: Mapping[str, Reconcile], *, workers: int, timer: float, metrics: Metrics) -> None:
        self._reconcilers, self._workers, self._timer, self._metrics = reconcilers, workers, timer, metrics
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        #: Since when.
        self._queued: dict[Key, float] = {}
        self._running: dict[Key, float] = {}
        #: Most that run at once of one namespace: a PostgreSQL that answers late or never does not hold up all others.
        self._share = max(1, workers - workers // 4)
        #: By namespace, those that wait for another one of it to end.
        self._over: dict[str, deque[Key]] = {}
        self._again: set[Key] = set()
        self._gone: set[Key] = set()
        self._failures: dict[Key, int] = {}
        #: Since when.
        self._blocked: dict[Key, float] = {}
        #: Due time and key; an entry that is not the key's latest is void.
        self._later: list[tuple[float, int, Key]] = []
        self._due: dict[Key, int] = {}
        self._numbers = itertools.count()
        self._earlier = asyncio.Event()

    def ask(self, key: Key) -> None:
        """Reconcile it as soon as a worker is free."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._queued:
            self._queued[key] = time.monotonic()
            self._ready.put_nowait(key)
            self._metrics.queued(len(self._queued))

    def there(self, key: Key) -> None:
        """The resource exists: reconcile it, and again after each interval of the timer."""
        self._gone.discard(key)
        self.ask(key)
        self._wake(key.namespace)

    def gone(self, key: Key) -> None:
        """The resource does not exist any more: take a last look, and as many as that asks for."""
        self._gone.add(key)
        self.ask(key)
        self._wake(key.namespace)

    def problem(self) -> str:
        """What does not go on as it should, "" for nothing. May be called from any thread."""
        now = time.monotonic()
        for since, key in _oldest(self._running):
            if now - since > _STUCK:
                return f"a reconcile has taken {now - since:.0f} s: {_named(key)}"
        for since, key in _oldest(self._queued):
            if now - since > _STUCK:
                return f"{_named(key)} has waited {now - since:.0f} s to be reconciled"
        for due, _, key in self._later[:1]:
            if now - due > _STUCK:
                return f"the timer is {now - due:.0f} s late: {_named(key)}"
        return ""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._clock())
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            if sum(one.namespace == key.namespace for one in self._running) >= self._share:
                self._over.setdefault(key.namespace, deque()).append(key)
                continue
            self._queued.pop(key, None)
            self._metrics.queued(len(self._queued))
            self._running[key] = time.monotonic()
            try:
                pause = await self._reconcile(key)
            finally:
                del self._running[key]
                if over := self._over.get(key.namespace):
                    self._ready.put_nowait(over.popleft())
            if key in self._again:
                self._again.discard(key)
                self.ask(key)
            if pause is not None:
                self._schedule(key, pause)

    async def _reconcile(self, key: Key) -> float | None:
        """Seconds until the next look, None for none."""
        started = time.monotonic()
        regular = self._timer * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
        try:
            outcome = await self._reconcilers[key.kind](key.namespace, key.name)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            self._metrics.failed(key.kind, time.monotonic() - started)
            # what the API server says needs no traceback
            say = log.warning if isinstance(error, KubeError) else log.exception
            say("a reconcile failed", kind=key.kind, namespace=key.namespace, name=key.name, error=str(error))
            return float(min(_FIRST_RETRY * 2 ** min(failures - 1, 10), _LONGEST_RETRY))
        self._failures.pop(key, None)
        self._metrics.reconciled(key.kind, time.monotonic() - started)
        if outcome.blocked:
            since = self._blocked.setdefault(key, started)
        elif self._blocked.pop(key, None) is not None:
            self._wake(key.namespace)
        if outcome.gone or (outcome.requeue is None and key in self._gone):
            # also one whose end nobody saw, because the watch was away
            self._gone.discard(key)
            self._due.pop(key, None)
            self._blocked.pop(key, None)
            return None
        if outcome.requeue is None:
            return regular
        if outcome.blocked:
            return min(max(outcome.requeue, started - since), _LONGEST_PAUSE, regular)
        return min(outcome.requeue, regular)

    def _wake(self, namespace: str) -> None:
        """Try what cannot go on there."""
        for key in self._blocked:
            if key.namespace == namespace:
                self.ask(key)

    def _schedule(self, key: Key, pause: float) -> None:
        number = next(self._numbers)
        self._due[key] = number
        heapq.heappush(self._later, (time.monotonic() + pause, number, key))
        self._earlier.set()

    async def _clock(self) -> None:
        while True:
            self._earlier.clear()
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, number, key = heapq.heappop(self._later)
                if self._due.get(key) == number:
                    self.ask(key)
            pause = self._later[0][0] - now if self._later else None
            try:
                await asyncio.wait_for(self._earlier.wait(), pause)
            except TimeoutError:
                continue


def _oldest(since: Mapping[Key, float]) -> list[tuple[float, Key]]:
    """The one that is there longest; none when there is none."""
    # copied in one go: the loop's thread may change it meanwhile
    there = list(since.items())
    return [min((moment, key) for key, moment in there)] if there else []


def _named(key: Key) -> str:
    return f"{key.kind} {key.namespace}/{key.name}"
