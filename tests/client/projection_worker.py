"""A projection's worker as a process of its own, to be killed: ``python -m tests.client.projection_worker JSON``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg

import orisun
from orisun.projections import (
    Checkpoints,
    FileCheckpoints,
    PostgresCheckpoints,
    Processor,
    ProcessorConfig,
    Tables,
    stop_on_signals,
)
from tests.client.shop import Deposits, OfDeposits


class Written(OfDeposits):
    """The number of each event as a line of a file, on disk before the next one is."""

    def handle(self, tx: Path, event: orisun.Event) -> None:
        with tx.open("a") as file:
            file.write(f"{event.position.prepare}\n")
            file.flush()
            os.fsync(file.fileno())


@contextlib.asynccontextmanager
async def kept(asked: dict[str, Any]) -> AsyncIterator[tuple[Checkpoints, OfDeposits]]:
    """Where checkpoints are kept, and the projection that fits."""
    if "directory" in asked:
        directory = Path(asked["directory"])
        yield FileCheckpoints(directory / "checkpoints", directory / "target"), Written("")
        return
    async with asyncpg.create_pool(asked["dsn"], min_size=1, max_size=2) as pool:
        yield PostgresCheckpoints(pool, Tables(asked["schema"])), Deposits(asked["schema"])


async def main(asked: dict[str, Any]) -> None:
    config = ProcessorConfig(
        batch_size=7, partition_key=asked["partition"], total_partitions=asked["total"], repartition=False
    )
    async with (
        orisun.connect(asked["address"], username="admin", password="changeit") as client,
        kept(asked) as (checkpoints, projection),
        stop_on_signals() as stop,
    ):
        processor = Processor(checkpoints, client.boundary(asked["boundary"]), config)
        work = asyncio.create_task(processor.run(projection))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        processor.stop()
        await work
        stopping.cancel()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
