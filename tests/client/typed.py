"""What a type checker knows of the client's faces; mypy reads this file (make lint), nobody runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import orisun
from orisun import Decision, Event, NewEvent, Position, Projector, projections, sync, where
from orisun.sync import projections as plain


def balance_of(account: str) -> Projector[int]:
    return Projector("balance", where(account=account), 0, lambda state, event: state + int(event.data["amount"]))


async def with_asyncio(client: orisun.Client) -> None:
    accounts = client.boundary("accounts")
    assert_type(accounts, orisun.Boundary)
    assert_type(await accounts.append([NewEvent("A")]), Position)
    assert_type(accounts.read(where(a="b")), AsyncIterator[Event])
    assert_type((await accounts.latest(where(a="b"))).event, Event | None)
    decision = await accounts.decide(balance_of("a"))
    assert_type(decision, Decision)
    assert_type(decision[balance_of("a")], int)
    async with accounts.subscribe("mailer") as subscription:
        assert_type(await anext(subscription), Event)
        assert_type(await subscription.batch(10, timeout=1.0), list[Event])
    stream = accounts.stream("User", 1)
    assert_type((await stream.append([NewEvent("A")], expected=orisun.NO_STREAM)).version, int)
    assert_type((await stream.fold("", lambda state, event: state + event.event_type)).state, str)
    assert_type([user.roles async for user in _each(await client.admin.users())], list[tuple[str, ...]])
    executed = await orisun.CommandExecutor(accounts).execute(object(), command_id="1")
    assert_type(executed.repeated, bool)


async def _each(users: list[orisun.User]) -> AsyncIterator[orisun.User]:
    for user in users:
        yield user


def without(client: sync.Client, pool: plain.Pool) -> None:
    accounts = client.boundary("accounts")
    assert_type(accounts, sync.Boundary)
    assert_type(accounts.append([NewEvent("A")], timeout=1.0), Position)
    assert_type(accounts.read(where(a="b"), limit=1), Iterator[Event])
    assert_type(accounts.decide(balance_of("a"))[balance_of("a")], int)
    with accounts.subscribe("mailer") as subscription:
        assert_type(next(subscription), Event)
    assert_type(client.admin.users(), list[orisun.User])
    assert_type(accounts.stream("User", 1).fold(0, lambda state, event: state + 1).state, int)
    processor = plain.Processor(pool, accounts)
    assert_type(processor.lag(Plain()), projections.Lag)
    accounts.append(NewEvent("A"))  # type: ignore[arg-type] # a list is asked for
    accounts.read(where(a="b"), page="1")  # type: ignore[call-arg] # there is no such argument


class Plain(plain.Projection):
    name = "plain"

    def handle(self, tx: plain.Connection, event: Event) -> None:
        rows: list[Any] = tx.fetch("SELECT 1")
        assert_type(event.data, Any)
        del rows
