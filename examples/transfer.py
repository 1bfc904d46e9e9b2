"""Money transfer: a decision over two accounts, no stream and no lock for either, and an invariant that holds.

Many transfers run at once, between few accounts. A transfer rests on the source's balance and on both accounts being
open: it is recorded only if nothing that changes those came in between. At the end the log itself is checked, event by
event: no account was ever below zero, and no money was made or lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass

from examples.support import place, run
from orisun import CommandExecutor, Decision, Event, NewEvent, Projector, RetryPolicy, where

ACCOUNTS = [f"account-{number}" for number in range(6)]
OPENING, TRANSFERS, AT_ONCE = 100, 150, 12


class Refused(Exception):
    """The transfer breaks a rule."""


@dataclass(frozen=True)
class Transfer:
    """Move money from one account to another."""

    source: str
    target: str
    amount: int


def balance(name: str, account: str) -> Projector[int | None]:
    """What is on an account; None while it is not open."""

    def apply(before: int | None, event: Event) -> int | None:
        data = event.data
        if event.event_type == "AccountOpened":
            return int(data["amount"])
        amount = int(data["amount"])
        return (before or 0) + (amount if data["target"] == account else -amount)

    criteria = where("AccountOpened", account=account) | where(source=account) | where(target=account)
    return Projector(name, criteria, None, apply)


def transfer(command: Transfer, decision: Decision) -> list[NewEvent]:
    """The decision: pure, so that it can be tested without a store."""
    source, target = decision["source"], decision["target"]
    if source is None or target is None:
        raise Refused("an account is not open")
    if source < command.amount:
        raise Refused(f"{command.source} has {source}, not {command.amount}")
    data = {"source": command.source, "target": command.target, "amount": command.amount}
    return [NewEvent("MoneyTransferred", data)]


def check(history: list[Event]) -> dict[str, int]:
    """The invariants, over the whole log in its order. Returns the balances."""
    balances: dict[str, int] = defaultdict(int)
    for event in history:
        data = event.data
        if event.event_type == "AccountOpened":
            balances[data["account"]] = data["amount"]
        else:
            balances[data["source"]] -= data["amount"]
            balances[data["target"]] += data["amount"]
            if balances[data["source"]] < 0:
                raise AssertionError(f"{data['source']} is overdrawn at {event.position}")
    if sum(balances.values()) != OPENING * len(ACCOUNTS):
        raise AssertionError("money was made or lost")
    return balances


async def main() -> None:
    async with place("bank") as here:
        for key in ("account", "source", "target"):
            await here.index(f"by_{key}", key)
        await here.events.append(
            [NewEvent("AccountOpened", {"account": account, "amount": OPENING}) for account in ACCOUNTS]
        )
        executor = CommandExecutor(here.events, retry=RetryPolicy(attempts=100, first=0.002, longest=0.05))
        executor.register(Transfer, lambda c: [balance("source", c.source), balance("target", c.target)], transfer)
        done = refused = attempts = 0
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            nonlocal done, refused, attempts
            source, target = random.sample(ACCOUNTS, 2)
            async with slots:
                try:
                    command = Transfer(source, target, random.randint(1, 80))
                    executed = await executor.execute(command, command_id=f"transfer-{number}")
                    done, attempts = done + 1, attempts + executed.attempts
                except Refused:
                    refused += 1

        await asyncio.gather(*(one(number) for number in range(TRANSFERS)))
        history = [event async for event in here.events.read()]
        balances = check(history)
        print(f"{TRANSFERS} transfers, {AT_ONCE} at once: {done} done in {attempts} attempts, {refused} refused")
        print("balances:", ", ".join(f"{account} {amount}" for account, amount in sorted(balances.items())))
        print(f"the log has no overdraft, and {sum(balances.values())} in all as at the beginning")


if __name__ == "__main__":
    run(main)
