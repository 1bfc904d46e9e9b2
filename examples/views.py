"""A read model and its events, which the examples of projections share."""

from __future__ import annotations

from typing import Any

from examples.support import Place
from orisun import Event, NewEvent, where
from orisun.projections import Projection, by_key

ACCOUNTS = [f"account-{number}" for number in range(20)]


class Balances(Projection):
    """The balance of each account, and how many events made it."""

    name = "balances"
    query = where("Deposited")
    # events of one account stay together and in order, however many partitions there are
    key_of = by_key("account")  # type: ignore[assignment]

    async def setup(self, tx: Any) -> None:
        await tx.execute("CREATE TABLE balance (account text PRIMARY KEY, amount bigint, events bigint)")

    async def handle(self, tx: Any, event: Event) -> None:
        await tx.execute(
            "INSERT INTO balance VALUES ($1, $2, 1) ON CONFLICT (account) DO UPDATE"
            " SET amount = balance.amount + excluded.amount, events = balance.events + 1",
            event.data["account"],
            event.data["amount"],
        )


async def deposit(here: Place, count: int) -> None:
    """Append deposits of 1, one after the other over all accounts."""
    for first in range(0, count, 500):
        numbers = range(first, min(first + 500, count))
        await here.events.append(
            [NewEvent("Deposited", {"account": ACCOUNTS[number % len(ACCOUNTS)], "amount": 1}) for number in numbers]
        )


async def taken_in(pool: Any) -> int:
    """How many events are in the read model. Were one handled twice, or left out, this would tell."""
    if not await pool.fetchval("SELECT to_regclass('balance') IS NOT NULL"):
        return 0
    return int(await pool.fetchval("SELECT coalesce(sum(events), 0) FROM balance"))
