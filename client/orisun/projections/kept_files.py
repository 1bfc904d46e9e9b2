"""The files of ``FileCheckpoints``: what is kept of one partition, and the locks beside it."""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..position import Position
from .errors import Fenced

#: Seconds between two looks at a lock that another process holds, at first and at most.
_LOOK, _LONGEST_LOOK = 0.005, 0.2


def new_kept(total: int, position: Position, version: int) -> dict[str, Any]:
    """What is kept of a partition at its beginning."""
    return {"total": total, "position": list(position), "version": version, "handled": 0, "parked": []}


def now() -> str:
    """The time as it is written into files."""
    return datetime.datetime.now(datetime.UTC).isoformat()


def read(path: Path) -> dict[str, Any]:
    """What is kept of a partition. Raises Fenced where it is gone."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fenced(f"the checkpoint {path.name} was removed by somebody else") from None
    return kept


def place(directory: Path) -> str:
    """What tells a directory of checkpoints from others; made where it is missing, by whoever has the lock."""
    path = directory / "place.id"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}.new")
        unfinished.write_text(uuid.uuid4().hex, encoding="ascii")
        unfinished.replace(path)
    return path.read_text(encoding="ascii")


def write(path: Path, kept: dict[str, Any]) -> None:
    """Replace what is kept of a partition, in one step."""
    kept["updated_at"] = now()
    unfinished = path.with_suffix(f".{os.getpid()}.new")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(kept, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


async def save(path: Path, kept: dict[str, Any]) -> None:
    """``write`` in a thread. Whoever is cancelled waits for it all the same: the lock, which is given back then, is not
    to be another's while it writes."""
    writing = asyncio.ensure_future(asyncio.to_thread(write, path, kept))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds a lock file, against other processes and against others of this one."""
    descriptor = await asyncio.to_thread(_opened, path)
    try:
        pause = _LOOK
        # not by a thread that waits: whoever is cancelled would leave it waiting
        while not _taken(descriptor):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)
        yield
    finally:
        os.close(descriptor)  # which gives it back


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
