"""Several processes, each with a partition of its own: the same program, started with another partition key.

python -m examples.partitioned                                      starts four workers, feeds and checks them
python -m examples.partitioned projections --partition-key=0 --total-partitions=4     is one of them
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import asyncpg

import orisun
from examples.support import Place, place, run, until
from examples.views import ACCOUNTS, Balances, deposit, taken_in
from orisun.projections import Administration, PostgresCheckpoints, ProjectionApp, Tables, commands

TOTAL, EVENTS = 4, 2_000


def app() -> ProjectionApp:
    """What a worker is told by its environment."""
    settings = os.environ
    schema = settings["EXAMPLE_SCHEMA"]
    return ProjectionApp(
        [Balances()],
        boundary=settings["EXAMPLE_BOUNDARY"],
        connect=lambda: orisun.connect(
            settings["ORISUN_ADDRESS"], username=settings["ORISUN_USERNAME"], password=settings["ORISUN_PASSWORD"]
        ),
        pool=lambda: asyncpg.create_pool(
            settings["READ_MODEL_DSN"], min_size=1, max_size=3, server_settings={"search_path": f"{schema}, public"}
        ),
        tables=Tables(schema),
    )


async def start_worker(here: Place, partition: int) -> asyncio.subprocess.Process:
    told = {"ORISUN_ADDRESS": here.address, "ORISUN_USERNAME": here.username, "ORISUN_PASSWORD": here.password}
    told |= {"READ_MODEL_DSN": here.dsn, "EXAMPLE_BOUNDARY": here.events.name, "EXAMPLE_SCHEMA": here.schema}
    arguments = ["projections", f"--partition-key={partition}", f"--total-partitions={TOTAL}"]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.partitioned", *arguments, env=os.environ | told
    )


async def main() -> None:
    async with place("bank") as here, here.pool() as pool:
        workers = [await start_worker(here, partition) for partition in range(TOTAL)]
        try:
            await deposit(here, EVENTS)

            async def complete() -> bool:
                return await taken_in(pool) == EVENTS

            await until(complete, f"{TOTAL} processes have taken in {EVENTS} events, each once")
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            codes = [await worker.wait() for worker in workers]
        print("they stopped with", codes)
        status = await Administration(PostgresCheckpoints(pool, Tables(here.schema)), here.events).status(Balances())
        for one in status:
            print(f"  partition {one.partition} of {one.total}: {one.handled} events")
        amounts = await pool.fetch("SELECT DISTINCT amount FROM balance")
        print(f"each of {len(ACCOUNTS)} accounts has", *(row["amount"] for row in amounts))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        commands(app)(sys.argv[2:], prog_name="python -m examples.partitioned projections")
    else:
        run(main)
