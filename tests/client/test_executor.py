"""Commands: decided again after conflicts, once for each id, refused at once beyond the limit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

import orisun
from orisun import CommandExecutor, Decision, NewEvent, Projector, where


@dataclass(frozen=True)
class Withdraw:
    account: str
    amount: int


class NotEnough(Exception):
    pass


def balance(account: str) -> Projector[int]:
    return Projector("balance", where("Changed", account=account), 0, lambda state, event: state + event.data["amount"])


def changed(account: str, amount: int) -> NewEvent:
    return NewEvent("Changed", {"account": account, "amount": amount})


def withdraw(command: Withdraw, decision: Decision) -> list[NewEvent]:
    if decision["balance"] < command.amount:
        raise NotEnough
    return [changed(command.account, -command.amount)]


@pytest.fixture
def executor(orders: orisun.Boundary) -> CommandExecutor:
    made = CommandExecutor(orders)
    made.register(Withdraw, lambda command: [balance(command.account)], withdraw)
    return made


async def state(orders: orisun.Boundary) -> int:
    return (await orders.decide(balance("a")))["balance"]


async def test_a_command_leads_to_events(orders: orisun.Boundary, executor: CommandExecutor) -> None:
    await orders.append([changed("a", 10)])
    done = await executor.execute(Withdraw("a", 4), metadata={"user": "u-1"})
    assert (done.attempts, done.repeated, await state(orders)) == (1, False, 6)
    (event,) = [event async for event in orders.read(descending=True, limit=1)]
    assert event.position == done.position
    assert event.metadata == {"user": "u-1", "correlation_id": done.command_id, "causation_id": done.command_id}
    with pytest.raises(NotEnough):
        await executor.execute(Withdraw("a", 7))
    assert await state(orders) == 6


async def test_conflicts_are_decided_again(orders: orisun.Boundary) -> None:
    await orders.append([changed("a", 10)])
    disturbed = []

    async def slow(command: Withdraw, decision: Decision) -> list[NewEvent]:
        if len(disturbed) < 2:
            disturbed.append(await orders.append([changed("a", -1)]))
        return withdraw(command, decision)

    executor = CommandExecutor(orders)
    executor.register(Withdraw, lambda command: [balance(command.account)], slow)
    done = await executor.execute(Withdraw("a", 8))
    assert (done.attempts, await state(orders)) == (3, 0)


async def test_the_policy_ends_retries(orders: orisun.Boundary) -> None:
    async def disturbed(command: Withdraw, decision: Decision) -> list[NewEvent]:
        await orders.append([changed("a", 1)])
        return [changed("a", -1)]

    executor = CommandExecutor(orders, retry=orisun.RetryPolicy(attempts=3, first=0, longest=0))
    executor.register(Withdraw, lambda command: [balance(command.account)], disturbed)
    with pytest.raises(orisun.Conflict):
        await executor.execute(Withdraw("a", 1))
    assert await state(orders) == 3


async def test_many_at_once_keep_the_rule(orders: orisun.Boundary, executor: CommandExecutor) -> None:
    await orders.append([changed("a", 10)])
    done = await asyncio.gather(*(executor.execute(Withdraw("a", 3)) for _ in range(12)), return_exceptions=True)
    assert sum(isinstance(one, orisun.Executed) for one in done) == 3
    assert await state(orders) == 1


async def test_a_command_id_has_its_effect_once(orders: orisun.Boundary, executor: CommandExecutor) -> None:
    await orders.append([changed("a", 10)])
    first = await executor.execute(Withdraw("a", 10), command_id="w-1")
    # decided again it would be refused: the balance is gone
    again = await executor.execute(Withdraw("a", 10), command_id="w-1")
    assert (again.repeated, again.position, await state(orders)) == (True, first.position, 0)
    (event,) = again.events
    assert isinstance(event, orisun.Event)
    assert event.data["command_id"] == "w-1"


async def test_a_command_id_sent_many_times_at_once(orders: orisun.Boundary, executor: CommandExecutor) -> None:
    await orders.append([changed("a", 100)])
    done = await asyncio.gather(*(executor.execute(Withdraw("a", 3), command_id="w-1") for _ in range(10)))
    assert len({one.position for one in done}) == 1
    assert sorted(one.repeated for one in done) == [False] + [True] * 9  # one has done it, and knows it
    assert await state(orders) == 97


async def test_a_command_may_lead_to_nothing(orders: orisun.Boundary) -> None:
    executor = CommandExecutor(orders)

    @executor.handler(Withdraw, lambda command: [balance(command.account)])
    def nothing(command: Withdraw, decision: Decision) -> list[NewEvent]:
        return []

    done = await executor.execute(Withdraw("a", 1))
    assert (done.position, done.events) == (None, ())


async def test_limits_refuse_at_once(orders: orisun.Boundary) -> None:
    executor = CommandExecutor(orders, max_commands=2)
    go = asyncio.Event()

    @executor.handler(Withdraw, lambda command: [balance(command.account)])
    async def waits(command: Withdraw, decision: Decision) -> list[NewEvent]:
        await go.wait()
        return []

    running = [asyncio.ensure_future(executor.execute(Withdraw("a", 1))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(orisun.TooManyCalls, match="2 commands"):
        await executor.execute(Withdraw("a", 1))
    go.set()
    await asyncio.gather(*running)
    await executor.execute(Withdraw("a", 1))


async def test_mistakes(executor: CommandExecutor) -> None:
    with pytest.raises(orisun.InvalidArgument, match="no handler takes commands of class str"):
        await executor.execute("text")
    for command_id in ("", 7):
        with pytest.raises(orisun.InvalidArgument, match=f"command_id {command_id!r} is no text"):
            await executor.execute(Withdraw("a", 1), command_id=command_id)  # type: ignore[arg-type]
    with pytest.raises(orisun.InvalidArgument, match="Withdraw have a handler already"):
        executor.register(Withdraw, lambda command: [], withdraw)


async def test_a_timeout_bounds_the_whole(orders: orisun.Boundary) -> None:
    executor = CommandExecutor(orders)

    @executor.handler(Withdraw, lambda command: [balance(command.account)])
    async def waits(command: Withdraw, decision: Decision) -> list[NewEvent]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(orisun.DeadlineExceeded, match=r"Withdraw was not done within 0.05 seconds"):
        await executor.execute(Withdraw("a", 1), timeout=0.05)


async def test_a_timeout_of_the_handler_is_its_own(orders: orisun.Boundary) -> None:
    executor = CommandExecutor(orders)

    @executor.handler(Withdraw, lambda command: [balance(command.account)])
    def late(command: Withdraw, decision: Decision) -> list[NewEvent]:
        raise TimeoutError("the bank did not answer")

    with pytest.raises(TimeoutError, match="the bank"):
        await executor.execute(Withdraw("a", 1), timeout=5)


@pytest.mark.parametrize("returned", [None, NewEvent("Withdrawn"), "text"])
async def test_what_is_no_list_of_events(orders: orisun.Boundary, returned: Any) -> None:
    executor = CommandExecutor(orders)
    executor.register(Withdraw, lambda command: [balance(command.account)], lambda command, decision: returned)
    with pytest.raises(orisun.InvalidArgument, match=f"returned a {type(returned).__name__}"):
        await executor.execute(Withdraw("a", 1))


async def test_commands_are_stored_with_their_events(orders: orisun.Boundary, executor: CommandExecutor) -> None:
    await orders.append([changed("a", 10)], command=orisun.Command("d-1", "Deposit", {"amount": 10}))
    done = await executor.execute(Withdraw("a", 4), command_id="w-1", metadata={"user": "u-1"})
    commands = [command async for command in orders.commands(page_size=1)]
    assert [command.command_id for command in commands] == ["d-1", "w-1"]
    stored = commands[-1]
    assert (stored.type, stored.data, stored.metadata["user"]) == ("Withdraw", {"account": "a", "amount": 4}, "u-1")
    assert stored.position == done.position
    assert [command.command_id async for command in orders.commands(after=commands[0].position)] == ["w-1"]


async def test_commands_may_be_kept_to_oneself(orders: orisun.Boundary) -> None:
    class Secret:
        """A command without a codec."""

    executor = CommandExecutor(orders, track=False)
    executor.register(Secret, lambda command: [balance("a")], lambda command, decision: [changed("a", 1)])
    assert (await executor.execute(Secret())).position is not None
    assert [command async for command in orders.commands()] == []
    tracking = CommandExecutor(orders)
    tracking.register(Secret, lambda command: [balance("a")], lambda command, decision: [changed("a", 1)])
    with pytest.raises(orisun.InvalidArgument, match="Secret is no dataclass"):
        await tracking.execute(Secret())


async def test_an_id_that_others_bear_is_not_taken_for_the_command(
    orders: orisun.Boundary, executor: CommandExecutor
) -> None:
    await orders.append([changed("a", 10), NewEvent("Seen", {"command_id": "c-1"})])
    assert not (await executor.execute(Withdraw("a", 4), command_id="c-1")).repeated
    assert await state(orders) == 6

    @dataclass(frozen=True)
    class Close:
        account: str

    executor.register(Close, lambda command: [balance(command.account)], lambda command, decision: [changed("a", -6)])
    with pytest.raises(orisun.InvalidArgument, match='command_id "c-1" is that of a Withdraw: give this Close another'):
        await executor.execute(Close("a"), command_id="c-1")
    assert await state(orders) == 6


async def test_the_origin_in_force_is_that_of_command_and_events(
    orders: orisun.Boundary, executor: CommandExecutor
) -> None:
    await orders.append([changed("a", 10)])
    with orisun.origin(correlation_id="request", causation_id="click", trace_id="t"):
        done = await executor.execute(Withdraw("a", 4))
    (event,) = [event async for event in orders.read(descending=True, limit=1)]
    (stored,) = [command async for command in orders.commands()]
    wanted = {"correlation_id": "request", "causation_id": done.command_id, "trace_id": "t"}
    assert event.metadata == wanted == stored.metadata


async def test_a_command_may_rest_on_nothing(orders: orisun.Boundary) -> None:
    executor = CommandExecutor(orders)
    executor.register(Withdraw, lambda command: [], lambda command, decision: [changed("a", command.amount)])
    await asyncio.gather(*(executor.execute(Withdraw("a", 1)) for _ in range(5)))
    assert (await executor.execute(Withdraw("a", 1), command_id="once")).attempts == 1
    assert (await executor.execute(Withdraw("a", 1), command_id="once")).repeated
    assert await state(orders) == 6
