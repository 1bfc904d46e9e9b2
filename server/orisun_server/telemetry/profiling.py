"""CPU and heap profiles of the running server, as pprof's format has them (profile.proto of google/pprof, gzipped).

CPU: pyinstrument samples the stack of the event loop's thread, which does all the work, every few milliseconds. Heap:
tracemalloc notes where memory is allocated while it is on; what was allocated before it began is not seen. Both cost
nothing while nobody asks. One profile is taken at a time.
"""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..errors import FailedPrecondition

#: Seconds between two samples of the stack.
_INTERVAL = 0.002
_HEAP_FRAMES = 25
_NANOSECONDS = 1_000_000_000

_busy = asyncio.Lock()


class Frame(NamedTuple):
    """A line of code that runs, or that asked for memory."""

    function: str
    filename: str
    line: int


#: From the innermost frame outwards.
Stack = tuple[Frame, ...]


class AlreadyProfiling(FailedPrecondition):
    """A profile is being taken already; wait until it is done."""


async def cpu(seconds: float) -> bytes:
    """A profile of what the server does in the coming seconds. Raises AlreadyProfiling."""
    if _busy.locked():
        raise AlreadyProfiling
    from pyinstrument import Profiler  # takes a while to import, and mostly nobody asks

    async with _busy:
        began = time.time_ns()
        profiler = Profiler(interval=_INTERVAL, async_mode="disabled")
        profiler.start()
        try:
            await asyncio.sleep(seconds)
        finally:
            session = profiler.stop()
        samples: Counter[Stack] = Counter()
        for identifiers, _ in session.frame_records:
            # a sample after a pause counts as one: waiting is not work
            stack = tuple(map(_frame, reversed(identifiers)))
            samples[stack] += 1
        values = {stack: (number, int(number * _INTERVAL * _NANOSECONDS)) for stack, number in samples.items()}
        kinds = (("samples", "count"), ("cpu", "nanoseconds"))
        period = int(_INTERVAL * _NANOSECONDS)
        return await asyncio.to_thread(encode, kinds, values, began=began, seconds=seconds, period=period)


async def heap(seconds: float) -> bytes:
    """What was allocated in the coming seconds and is still there at their end. Raises AlreadyProfiling."""
    if _busy.locked() or tracemalloc.is_tracing():
        raise AlreadyProfiling
    async with _busy:
        began = time.time_ns()
        tracemalloc.start(_HEAP_FRAMES)
        try:
            await asyncio.sleep(seconds)
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()

        def work() -> bytes:
            values = {}
            for statistic in snapshot.statistics("traceback"):
                frames = (Frame("", frame.filename, frame.lineno) for frame in reversed(statistic.traceback))
                values[tuple(frames)] = (statistic.count, statistic.size)
            kinds = (("inuse_objects", "count"), ("inuse_space", "bytes"))
            return encode(kinds, values, began=began, seconds=seconds, period=1)

        return await asyncio.to_thread(work)


def _frame(text: str) -> Frame:
    from pyinstrument.frame_info import parse_frame_info

    identifier, _ = parse_frame_info(text)
    function, filename, line = (*identifier.split("\0"), "", "0")[:3]
    return Frame(function, filename, int(line) if line.isdecimal() else 0)


def encode(
    kinds: Sequence[tuple[str, str]],
    samples: Mapping[Stack, Sequence[int]],
    *,
    began: int,
    seconds: float,
    period: int,
) -> bytes:
    """A gzipped Profile message: ``samples`` has for each stack a value of each kind (name, unit).

    Field numbers are those of profile.proto.
    """
    strings: dict[str, int] = {"": 0}
    functions: dict[tuple[str, str], int] = {}
    locations: dict[Frame, int] = {}

    def text(value: str) -> int:
        return strings.setdefault(value, len(strings))

    out = bytearray()
    for kind in kinds:
        out += _message(1, _number(1, text(kind[0])) + _number(2, text(kind[1])))
    for stack, values in samples.items():
        ids = [locations.setdefault(frame, len(locations) + 1) for frame in stack]
        out += _message(2, _packed(1, ids) + _packed(2, values))
    for frame, number in locations.items():
        # tracemalloc knows lines, not functions
        name = frame.function or f"{frame.filename}:{frame.line}"
        function = functions.setdefault((name, frame.filename), len(functions) + 1)
        line = _number(1, function) + _number(2, frame.line)
        out += _message(4, _number(1, number) + _message(4, line))
    for (name, filename), number in functions.items():
        body = _number(1, number) + _number(2, text(name)) + _number(3, text(name)) + _number(4, text(filename))
        out += _message(5, body)
    period_type = _number(1, text(kinds[-1][0])) + _number(2, text(kinds[-1][1]))
    default = text(kinds[-1][0])
    for value in strings:
        out += _message(6, value.encode())
    out += _number(9, began) + _number(10, int(seconds * _NANOSECONDS))
    out += _message(11, period_type) + _number(12, period) + _number(14, default)
    return gzip.compress(bytes(out), mtime=0)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _message(field, b"".join(map(_varint, values)))
