"""What a scenario gets: the parts that it measures, and where its results go."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orisun_server.storage.names import BoundaryNames

from .client import is_serving
from .floors.inserts import Inserts
from .generator import Figures, Generator
from .measure import BenchError
from .parts import SCHEMA, Directory, Parts
from .processes import end, free_port, spawn, tail
from .results import Results, Row
from .sizes import Sizes
from .store import Store

IN_PROCESS = "in process"
_ROOT = Path(__file__).resolve().parents[1]


@dataclass
class InProcess:
    """For scenarios without a server: the parts themselves."""

    parts: Parts
    sizes: Sizes
    results: Results
    transport: str = IN_PROCESS

    def add(self, section: str, what: str, measured: float, unit: str, **more: Any) -> None:
        self.results.rows.append(Row(section, what, self.transport, measured, unit, **more))


@dataclass
class OverTheWire:
    """For scenarios on a server over one transport, and the same transport alone."""

    store: Store
    directory: Directory
    #: Address of the transport alone.
    floor: str
    sizes: Sizes
    results: Results
    generator: Generator | None

    @property
    def transport(self) -> str:
        return self.store.transport

    def add(self, section: str, what: str, measured: float, unit: str, **more: Any) -> None:
        """Keep a row, with the server's memory of now unless ``memory`` tells it."""
        more.setdefault("memory", self.store.memory)
        self.results.rows.append(Row(section, what, self.transport, measured, unit, **more))

    def inserts(self, boundary: str) -> Inserts:
        """The floor of appends to a boundary with such a table (and its indexes)."""
        names = BoundaryNames(SCHEMA, boundary)
        return Inserts(self.store.postgres, names, self.sizes.floor_rows, self.sizes.floor_seconds)

    @contextlib.asynccontextmanager
    async def doing(self, what: str, *more: str) -> AsyncIterator[str]:
        """The address of a server of ``floors.doing`` on the same transport."""
        log = self.directory.log(f"floor-{what}-{self.transport}")
        async with _floor("doing", self.transport, what, *more, log=log) as address:
            yield address

    async def generate(
        self, only: str, *, address: str = "", scale: float | None = None, **more: Any
    ) -> dict[str, Figures]:
        """Scenarios of the load generator against the store (or ``address``)."""
        if self.generator is None:
            raise BenchError("needs the load generator")
        scale = self.sizes.scale if scale is None else scale
        return await self.generator.run(
            address or self.store.address, only, scale=scale, pid=None if address else self.store.pid, **more
        )

    async def compare(
        self, only: str, *, preload: int, settle: float, boundary: str = ""
    ) -> dict[str, tuple[Figures, Figures]]:
        """Scenarios of the load generator against the store and the transport alone, in turns."""
        if self.generator is None:
            raise BenchError("needs the load generator")
        return await self.generator.compare(
            self.store.address,
            self.floor,
            only,
            rounds=self.sizes.rounds,
            scale=self.sizes.scale,
            preload=preload,
            settle=settle,
            boundary=boundary,
            pid=self.store.pid,
        )


@contextlib.asynccontextmanager
async def transport_alone(transport: str, events: int, log: Path) -> AsyncIterator[str]:
    """The address of a server that is nothing but its transport."""
    async with _floor("transport", transport, str(events), log=log) as address:
        yield address


@contextlib.asynccontextmanager
async def _floor(module: str, transport: str, *more: str, log: Path) -> AsyncIterator[str]:
    port = free_port()
    command = [sys.executable, "-m", f"benchmarks.floors.{module}", transport, str(port), *more]
    process = await spawn(command, output=log, cwd=_ROOT)
    try:
        address, deadline = f"127.0.0.1:{port}", time.monotonic() + 60
        while not await is_serving(address):
            if process.returncode is not None or time.monotonic() > deadline:
                raise BenchError(f"a floor did not start; it printed:\n{tail(log)}")
            await asyncio.sleep(0.1)
        yield address
    finally:
        await end(process)
