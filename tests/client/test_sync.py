"""The synchronous face: the same shape as the asynchronous one, from plain threads."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import orisun
from orisun import NewEvent, Projector, sync, where
from orisun.sync.background import LOOP
from orisun_server.settings import Settings
from tests.harness import ServerProcess

PAIRS = [
    (orisun.Client, sync.Client, {"calls", "types", "streams"}),
    (orisun.Boundary, sync.Boundary, {"client"}),
    (orisun.AggregateStream, sync.AggregateStream, {"query", "aggregate_id", "aggregate_type"}),
    (orisun.Admin, sync.Admin, set()),
    (orisun.CommandExecutor, sync.CommandExecutor, set()),
]


@pytest.mark.parametrize(("aio", "face", "left_out"), PAIRS)
def test_both_faces_have_the_same_shape(aio: type, face: type, left_out: set[str]) -> None:
    for name, original in inspect.getmembers(aio):
        if name.startswith("_") or name in left_out:
            continue
        mine = getattr(face, name)
        assert mine.__doc__, name
        assert "async with" not in mine.__doc__, name
        if callable(original):
            assert list(inspect.signature(mine).parameters.values()) != [], name
            theirs = [(p.name, p.kind, p.default) for p in inspect.signature(original).parameters.values()]
            assert [(p.name, p.kind, p.default) for p in inspect.signature(mine).parameters.values()] == theirs, name


def test_connect_has_the_same_shape() -> None:
    mine = inspect.signature(sync.connect, follow_wrapped=False)
    assert mine.parameters == inspect.signature(orisun.connect).parameters
    for original, face in ((orisun.connect, sync.connect), (orisun.decide, sync.decide)):
        assert face.__doc__ == original.__doc__


@pytest.fixture(scope="module")
async def address(make_settings: Callable[..., Settings]) -> AsyncIterator[tuple[str, str]]:
    """The address of a server and a boundary of it."""
    settings = make_settings()
    async with ServerProcess(settings) as process:
        yield process.address, settings.boundaries[0].name


@pytest.fixture
def client(address: tuple[str, str]) -> Iterator[sync.Client]:
    with sync.connect(address[0], username="admin", password="changeit") as made:
        yield made


@pytest.fixture
def orders(client: sync.Client, address: tuple[str, str]) -> sync.Boundary:
    return client.boundary(address[1])


def balance(account: str) -> Projector[int]:
    return Projector("balance", where(account=account), 0, lambda state, event: state + event.data["amount"])


def test_append_read_latest_decide(client: sync.Client, orders: sync.Boundary) -> None:
    client.ping()
    assert client.server_info().backend == "postgres"
    for number in range(250):
        orders.append([NewEvent("Changed", {"account": "s-1", "amount": number})])
    assert [event.data["amount"] for event in orders.read(where(account="s-1"), page_size=30)] == list(range(250))
    some = orders.read(where(account="s-1"))
    assert next(some).data["amount"] == 0
    some.close()  # type: ignore[attr-defined]
    latest = orders.latest(where(account="s-1"))
    assert latest.event is not None
    decision = orders.decide(balance("s-1"))
    assert decision["balance"] == sync.decide(orders, balance("s-1"))["balance"] == sum(range(250))
    orders.append([NewEvent("Changed", {"account": "s-1", "amount": 1})], condition=decision.condition)
    with pytest.raises(orisun.Conflict):
        orders.append([NewEvent("Changed", {"account": "s-1", "amount": 1})], condition=latest.condition)
    assert [boundary.name for boundary in client.admin.boundaries() if boundary.name == orders.name]


def test_subscriptions(orders: sync.Boundary) -> None:
    orders.append([NewEvent("Sync", {"n": 0}), NewEvent("Sync", {"n": 1})])
    with orders.subscribe("sync", where("Sync")) as subscription:
        first = next(subscription)
        assert (first.data, subscription.position) == ({"n": 0}, first.position)
        assert next(subscription).data == {"n": 1}
        assert subscription.batch(5, timeout=0.05) == []
        timer = threading.Timer(0.05, lambda: orders.append([NewEvent("Sync", {"n": 2})]))
        timer.start()
        assert [event.data for event in subscription.batch(5)] == [{"n": 2}]
        timer.join()
    with orders.subscribe("sync", where("Sync"), after=first.position) as subscription:
        assert [event.data["n"] for _, event in zip(range(2), subscription, strict=False)] == [1, 2]
        ended = threading.Timer(0.05, subscription.close)
        ended.start()
        assert list(subscription) == []
        ended.join()
    orders.append([NewEvent("Sync", {"n": n}) for n in range(3, 9)])
    with orders.subscribe("sync", where("Sync")) as subscription:
        assert (subscription.boundary, subscription.name, subscription.reconnects) == (orders.name, "sync", 0)
        next(subscription)
        subscription.close()
        assert list(subscription) == []  # what was received ahead is dropped too


def test_many_threads(orders: sync.Boundary) -> None:
    def work(number: int) -> orisun.Position:
        return orders.append([NewEvent("Threaded", {"number": number})])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(100)))) == 100


@dataclass(frozen=True)
class Withdraw:
    account: str
    amount: int


def test_commands_streams_and_snapshots(orders: sync.Boundary) -> None:
    orders.append([NewEvent("Changed", {"account": "s-2", "amount": 10})])
    executor = sync.CommandExecutor(orders)

    @executor.handler(Withdraw, lambda command: [balance(command.account)])
    def withdraw(command: Withdraw, decision: orisun.Decision) -> Iterator[NewEvent]:
        # a handler may block, and use the client
        assert orders.latest(where(account=command.account)).event is not None
        if decision["balance"] < command.amount:
            raise ValueError("not enough")
        yield NewEvent("Changed", {"account": command.account, "amount": -command.amount})

    assert executor.execute(Withdraw("s-2", 4), command_id="s").position is not None
    assert executor.execute(Withdraw("s-2", 4), command_id="s").repeated
    with pytest.raises(ValueError, match="not enough"):
        executor.execute(Withdraw("s-2", 7))
    with pytest.raises(orisun.InvalidArgument, match="plain functions"):
        executor.register(str, lambda _: [], withdraw_later)  # type: ignore[arg-type]

    user = orders.stream("User", "s-3")
    assert user.append([NewEvent("Named", {"name": name}) for name in "abc"], expected=orisun.NO_STREAM).version == 3
    assert user.version() == 3
    assert [event.data["name"] for event in user.read(2)] == ["b", "c"]
    snapshots: Any = sync.event_snapshots(orders)
    for _ in range(2):
        folded = user.fold("", lambda state, event: state + event.data["name"], snapshots=snapshots, every=1)
        assert (folded.state, folded.version) == ("abc", 3)


async def withdraw_later(command: str, decision: orisun.Decision) -> list[NewEvent]:
    return []


def test_handlers_run_where_commands_are_executed(orders: sync.Boundary) -> None:
    executor = sync.CommandExecutor(orders)
    mine = threading.local()

    @executor.handler(Withdraw, lambda command: [balance(command.account)])
    def withdraw(command: Withdraw, decision: orisun.Decision) -> list[NewEvent]:
        assert mine.number == command.amount
        if command.account.startswith("outer"):  # a command inside of a command
            executor.execute(Withdraw(f"inner {command.amount}", command.amount))
        return [NewEvent("Withdrawn", {"account": command.account, "amount": 0})]

    def work(number: int) -> orisun.Position | None:
        mine.number = number
        return executor.execute(Withdraw(f"outer {number}", number)).position

    with ThreadPoolExecutor(12) as pool:  # more than the loop has threads of its own
        assert None not in list(pool.map(work, range(12)))


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration(), SystemExit(3)])
def test_what_handlers_raise_comes_out(orders: sync.Boundary, error: BaseException) -> None:
    executor = sync.CommandExecutor(orders)

    def fails(command: Withdraw, decision: orisun.Decision) -> list[NewEvent]:
        raise error

    executor.register(Withdraw, lambda command: [balance(command.account)], fails)
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        executor.execute(Withdraw("s-9", 1))
    assert list(orders.read(where(account="s-9"))) == []  # and everything else goes on


def test_messages(client: sync.Client) -> None:
    with client.messages("sync.news", "a") as messages:
        heard: list[orisun.Message] = []
        while not heard:
            client.publish("sync.news", "x")
            heard = messages.batch(1, timeout=0.1)
        assert heard[0].data == "x"


async def test_it_may_be_used_beside_another_loop(orders: sync.Boundary) -> None:
    assert await asyncio.to_thread(orders.append, [NewEvent("Beside")])

    async def inside() -> None:
        orders.append([NewEvent("Never")])

    with pytest.raises(orisun.OrisunError, match="its own event loop"):
        await asyncio.to_thread(sync.background.LOOP.run, inside())


def test_a_script_ends_without_a_word(address: tuple[str, str]) -> None:
    script = (
        "import sys\nfrom orisun import NewEvent, sync\n"
        "client = sync.connect(sys.argv[1], username='admin', password='changeit')\n"
        "orders = client.boundary(sys.argv[2])\n"
        "print(orders.append([NewEvent('A')]) > (0, 0))\n"
        "stream = orders.subscribe('script').__enter__()\n"
        "print(next(stream).position >= (0, 0))\n"
        "orders.append([NewEvent('A') for _ in range(200)])\n"
        "left = orders.read()\n"
        "next(left)\n"
    )  # it closes nothing, as scripts do
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *address], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\nTrue\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_is_refused_where_grpc_was_used_before(address: tuple[str, str]) -> None:
    script = (
        "import os, sys\nfrom orisun import OrisunError, sync\n"
        "def connect(): return sync.connect(sys.argv[1], username='admin', password='changeit')\n"
        "def fork(what):\n"
        "    if child := os.fork(): return os.waitpid(child, 0)\n"
        "    try: what()\n"
        "    except OrisunError as error: print('forked' in str(error), flush=True)\n"
        "    else: print('done', flush=True)\n"
        "    os._exit(0)\n"
        "def again():\n"
        "    global client\n"
        "    client = connect()\n"
        "    client.ping()\n"
        "client = connect()\n"
        "fork(lambda: client.ping())\n"  # a client that nobody used: workers may have it
        "client.ping()\n"
        "fork(lambda: client.ping())\n"
        "fork(again)\n"
        "client.ping()\n"
        "print('end')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *address], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "done\nTrue\nTrue\nend\n"), ended.stderr


def test_threads_share_one_subscription(client: sync.Client, orders: sync.Boundary) -> None:
    """Each event goes to one of them, and none is told that it ends while it goes on."""
    count = 2_000
    last = [event.position for event in orders.read(page_size=10_000)][-1:]
    for first in range(0, count, 500):
        orders.append([NewEvent("Shared", {"number": number}) for number in range(first, first + 500)])
    seen: list[int] = []
    with orders.subscribe("shared", where("Shared"), after=last[0] if last else None) as subscription:

        def take() -> None:
            for event in subscription:
                seen.append(event.data["number"])
                if len(seen) == count:
                    subscription.close()

        with ThreadPoolExecutor(4) as threads:
            for work in [threads.submit(take) for _ in range(4)]:
                work.result(30)
    assert sorted(seen) == list(range(count))


def test_who_is_interrupted_while_waiting_loses_no_item(orders: sync.Boundary, monkeypatch: pytest.MonkeyPatch) -> None:
    with orders.subscribe("interrupted", where("Interrupted")) as subscription:
        orders.append([NewEvent("Interrupted", {"number": 0}), NewEvent("Interrupted", {"number": 1})])
        run = LOOP.run

        def interrupted(coroutine: Any) -> None:
            run(coroutine)
            raise KeyboardInterrupt  # the loop was done, and its answer came too late

        monkeypatch.setattr(LOOP, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(subscription)
        monkeypatch.setattr(LOOP, "run", run)
        assert [next(subscription).data["number"] for _ in range(2)] == [0, 1]


def test_a_batch_waits_no_longer_than_asked_while_another_thread_waits(orders: sync.Boundary) -> None:
    with orders.subscribe("patient", where("Late")) as subscription, ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(next, subscription)
        while not subscription._lock.locked():
            time.sleep(0.001)
        hurried = threads.submit(subscription.batch, 10, timeout=0.05)
        try:
            assert hurried.result(10) == []
            assert not waiting.done()
        finally:
            orders.append([NewEvent("Late"), NewEvent("Late")])
        assert waiting.result(30).event_type == "Late"


def test_a_stream_may_be_closed_while_another_thread_takes_its_items(client: sync.Client) -> None:
    class Emptied(deque[Any]):
        """Is emptied by whoever closes the stream after the second look at how many there are."""

        looks = 0

        def __len__(self) -> int:
            count, self.looks = super().__len__(), self.looks + 1
            if self.looks == 2:
                self.clear()
            return count

    messages = client.messages("news", "reader")
    messages.close()
    messages._items = Emptied([1, 2])
    assert list(messages) == [1]
    messages._items = Emptied([1, 2])
    assert messages.batch(10) == [1, 2]
