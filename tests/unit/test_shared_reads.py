"""Who may share a read: those who asked before it began."""

from __future__ import annotations

import asyncio

import pytest

from orisun_server.storage.shared import SharedReads
from tests.harness import eventually


async def test_a_read_is_shared_by_those_who_asked_before_it_began() -> None:
    reads: SharedReads[int] = SharedReads()
    begun = 0
    go_on = asyncio.Event()

    async def read() -> int:
        nonlocal begun
        begun += 1
        number = begun
        await go_on.wait()
        return number

    first = [asyncio.create_task(reads("key", read)) for _ in range(3)]
    await eventually(lambda: begun == 1)
    later = [asyncio.create_task(reads("key", read)) for _ in range(3)]
    other = asyncio.create_task(reads("another", read))
    await eventually(lambda: begun == 2)
    go_on.set()
    assert await asyncio.gather(*first) == [1, 1, 1]
    assert await other == 2
    assert await asyncio.gather(*later) == [3, 3, 3]


async def test_a_caller_that_leaves_and_a_read_that_fails_harm_nobody_else() -> None:
    reads: SharedReads[int] = SharedReads()

    async def fail() -> int:
        raise ValueError("lost")

    callers = [asyncio.create_task(reads("key", fail)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    for caller in callers[1:]:
        with pytest.raises(ValueError, match="lost"):
            await caller

    async def succeed() -> int:
        return 1

    assert await reads("key", succeed) == 1


async def test_a_read_that_nobody_waits_for_is_cancelled() -> None:
    reads: SharedReads[int] = SharedReads()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def read() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 1

    running = [asyncio.create_task(reads("key", read)) for _ in range(2)]
    await begun.wait()
    waiting = asyncio.create_task(reads("key", read))
    await asyncio.sleep(0)
    waiting.cancel()
    running[0].cancel()
    await asyncio.wait([waiting, running[0]])
    assert not ended.is_set()
    running[1].cancel()
    async with asyncio.timeout(5):
        await ended.wait()

    async def succeed() -> int:
        return 2

    assert await reads("key", succeed) == 2
