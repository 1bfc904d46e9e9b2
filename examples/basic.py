"""The least that a projection needs: a function, a processor, a pool."""

from __future__ import annotations

import asyncio
from typing import Any

from examples.support import place, run
from orisun import Event, NewEvent, where
from orisun.projections import Processor, projection


@projection("newsletter", where("UserRegistered"))
async def newsletter(tx: Any, event: Event) -> None:
    # in the same transaction as the checkpoint: exactly one row for each user, whatever happens
    await tx.execute("INSERT INTO newsletter VALUES ($1)", event.data["email"])


async def main() -> None:
    async with place("users") as here, here.pool() as pool:
        await pool.execute("CREATE TABLE newsletter (email text)")
        users = [NewEvent("UserRegistered", {"email": f"{name}@example.com"}) for name in ("ann", "bob", "eve")]
        await here.events.append(users)
        processor = Processor(pool, here.events)
        working = asyncio.create_task(processor.run(newsletter))
        await processor.caught_up(newsletter)
        processor.stop()
        await working
        for row in await pool.fetch("SELECT email FROM newsletter"):
            print(row["email"])


if __name__ == "__main__":
    run(main)
