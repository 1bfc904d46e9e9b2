"""Measuring on a machine that is never quiet: what is compared runs in turns, and medians count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class BenchError(Exception):
    """A scenario cannot be measured; the others go on."""


@dataclass
class Timings:
    """Milliseconds that operations took."""

    milliseconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        if not self.milliseconds:
            raise BenchError("nothing was measured")
        ordered = sorted(self.milliseconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    @property
    def p50(self) -> float:
        return self.quantile(0.5)

    async def time(self, operation: Awaitable[T]) -> T:
        """Await an operation and keep how long it took."""
        began = time.perf_counter()
        result = await operation
        self.milliseconds.append((time.perf_counter() - began) * 1000)
        return result


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


async def interleaved(rounds: int, *measures: Callable[[], Awaitable[T]]) -> list[list[T]]:
    """Each measure ``rounds`` times, in turns: A B, B A, A B ...; the results by measure."""
    results: list[list[T]] = [[] for _ in measures]
    for number in range(rounds):
        order = range(len(measures))
        for index in order if number % 2 == 0 else reversed(order):
            results[index].append(await measures[index]())
    return results


async def paired(
    count: int, first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[object]]
) -> tuple[Timings, Timings]:
    """Single operations of two kinds, in turns; some before that are not counted."""
    timings = Timings(), Timings()
    for operation in (first, second) * min(10, count):
        await operation()
    for number in range(count):
        pairs = [(timings[0], first), (timings[1], second)]
        for kept, operation in pairs if number % 2 == 0 else pairs[::-1]:
            await kept.time(operation())
    return timings
