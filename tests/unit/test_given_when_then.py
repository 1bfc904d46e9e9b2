"""given/when/then: decisions are tested on the codecs, projectors and criteria that a store would use."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from orisun import CommandExecutor, Decision, EventTypes, NewEvent, Projector, sync, where
from orisun.testing import given


@dataclass
class Withdraw:
    account: str
    amount: int


class NotEnough(Exception):
    """There is not enough on the account."""


def balance_of(account: str) -> Projector[int]:
    signs = {"Deposited": 1, "Withdrawn": -1}
    return Projector(
        "balance",
        where("Deposited", "Withdrawn", account=account),
        0,
        lambda sum, event: sum + signs[event.event_type] * event.data["amount"],
    )


def withdraw(command: Withdraw, decision: Decision) -> list[NewEvent]:
    if decision["balance"] < command.amount:
        raise NotEnough(command.account)
    return [withdrawn(command.account, command.amount)] if command.amount else []


def deposited(account: str, amount: int) -> NewEvent:
    return NewEvent("Deposited", {"account": account, "amount": amount})


def withdrawn(account: str, amount: int) -> NewEvent:
    return NewEvent("Withdrawn", {"account": account, "amount": amount})


HISTORY = (deposited("a", 10), deposited("b", 99), withdrawn("a", 3))


def test_events_and_the_condition_that_they_are_appended_under() -> None:
    outcome = given(*HISTORY).when(withdraw, Withdraw("a", 7), [balance_of("a")])
    outcome.then(withdrawn("a", 7)).conflicts_with(withdrawn("a", 1)).ignores(deposited("b", 1))
    assert outcome.decision.position == (3, 2)
    assert given(*HISTORY).decision(balance_of("b"))["balance"] == 99


def test_refusals_and_nothing() -> None:
    error = given(*HISTORY).when(withdraw, Withdraw("a", 8), [balance_of("a")]).then_raises(NotEnough, "a")
    assert isinstance(error, NotEnough)
    given().when(withdraw, Withdraw("a", 0), [balance_of("a")]).then_nothing()


def test_what_does_not_hold_is_told() -> None:
    outcome = given(*HISTORY).when(withdraw, Withdraw("a", 7), [balance_of("a")])
    with pytest.raises(AssertionError, match=r"(?s)expected  Withdrawn .*6.*found     Withdrawn .*7"):
        outcome.then(withdrawn("a", 6))
    with pytest.raises(AssertionError, match="raised no NotEnough"):
        outcome.then_raises(NotEnough)
    with pytest.raises(AssertionError, match="would not be noticed"):
        outcome.conflicts_with(deposited("b", 1))
    with pytest.raises(AssertionError, match="would conflict"):
        outcome.ignores(deposited("a", 1))
    with pytest.raises(AssertionError, match="NotEnough"):
        given().when(withdraw, Withdraw("a", 7), [balance_of("a")]).then_nothing()


def test_synchronous_executors() -> None:
    client = sync.connect("nowhere")  # never called
    executor = sync.CommandExecutor(client.boundary("accounts"))
    executor.register(Withdraw, lambda command: [balance_of(command.account)], withdraw)
    given(*HISTORY).when(executor, Withdraw("a", 7)).then(withdrawn("a", 7))
    given(*HISTORY).when(executor, Withdraw("a", 7_000)).then_raises(NotEnough)
    client.close()


def test_executors_and_coroutines() -> None:
    executor = CommandExecutor(None)  # type: ignore[arg-type] # no store is needed to decide

    @executor.handler(Withdraw, lambda command: [balance_of(command.account)])
    async def handle(command: Withdraw, decision: Decision) -> list[NewEvent]:
        return withdraw(command, decision)

    given(*HISTORY).when(executor, Withdraw("a", 7)).then(withdrawn("a", 7))


async def test_inside_a_loop() -> None:
    async def handle(command: Withdraw, decision: Decision) -> list[NewEvent]:
        return withdraw(command, decision)

    outcome = await given(*HISTORY).when_async(handle, Withdraw("a", 8), [balance_of("a")])
    outcome.then_raises(NotEnough)


def test_classes_and_old_versions() -> None:
    types = EventTypes()

    @types.event("Opened", version=2)
    @dataclass
    class Opened:
        account: str
        currency: str

    @types.upcaster("Opened", from_version=1)
    def with_currency(data: dict[str, object]) -> dict[str, object]:
        return {**data, "currency": "EUR"}

    currencies = Projector("currency", where("Opened", account="a"), "", lambda _, event: event.data.currency)
    old = NewEvent("Opened", {"account": "a"}, metadata={"event_version": 1})
    assert given(old, types=types).decision(currencies)["currency"] == "EUR"
    assert given(old, Opened("a", "USD"), types=types).decision(currencies)["currency"] == "USD"
    new = NewEvent("Opened", {"account": "a", "currency": "USD"})
    given(old, types=types).when(lambda *_: [new], None, [currencies]).then(Opened("a", "USD"))


def test_true_is_not_one() -> None:
    outcome = given().when(lambda *_: [NewEvent("A", {"flag": 1})], None, [balance_of("a")])
    with pytest.raises(AssertionError):
        outcome.then(NewEvent("A", {"flag": True}))
