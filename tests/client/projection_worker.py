"""A projection's worker as a process of its own, to be killed: ``python -m tests.client.projection_worker JSON``."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import asyncpg

import orisun
from orisun.projections import PostgresCheckpoints, Processor, ProcessorConfig, Tables, stop_on_signals
from tests.client.shop import Deposits


async def main(asked: dict[str, Any]) -> None:
    config = ProcessorConfig(
        batch_size=7, partition_key=asked["partition"], total_partitions=asked["total"], repartition=False
    )
    async with (
        orisun.connect(asked["address"], username="admin", password="changeit") as client,
        asyncpg.create_pool(asked["dsn"], min_size=1, max_size=2) as pool,
        stop_on_signals() as stop,
    ):
        checkpoints = PostgresCheckpoints(pool, Tables(asked["schema"]))
        processor = Processor(checkpoints, client.boundary(asked["boundary"]), config)
        work = asyncio.create_task(processor.run(Deposits(asked["schema"])))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        processor.stop()
        await work
        stopping.cancel()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
