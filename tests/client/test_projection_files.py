"""Projections whose target is no PostgreSQL: checkpoints in files, at least once, and who looks after them."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import orisun
from orisun import NOTHING
from orisun.projections import (
    Administration,
    Assignment,
    FileCheckpoints,
    NotParked,
    PartitionMismatch,
    PoisonPolicy,
    Processor,
    ProcessorConfig,
    Projection,
    ProjectionApp,
    ProjectionError,
    VersionMismatch,
    by_key,
    kept_files,
    projection,
)
from tests.client.shop import Shop, running
from tests.harness import Connection, eventually


class Search(Projection):
    """Amounts by their number; a repetition does no harm, and shows in ``handled``."""

    name = "search/index"
    key_of = by_key("account")  # type: ignore[assignment]

    def __init__(self) -> None:
        self.poison: set[int] = set()
        self.handled: list[int] = []
        self.going_on, self.waiting = asyncio.Event(), asyncio.Event()
        self.going_on.set()

    async def handle(self, tx: Any, event: orisun.Event) -> None:
        if not self.going_on.is_set():
            self.waiting.set()
            await self.going_on.wait()
        if event.data["amount"] in self.poison:
            raise ConnectionError("the target refuses")
        self.handled.append(event.data["amount"])
        tx[event.data["amount"]] = event.data["account"]

    async def reset(self, tx: Any) -> None:
        tx.clear()


PARKING = ProcessorConfig(poison=PoisonPolicy("park", attempts=2, first_pause=0.01))


async def test_files_keep_checkpoints_at_least_once(shop: Shop, tmp_path: Path) -> None:
    search, target = Search(), dict[int, str]()
    search.poison = {666}

    checkpoints = FileCheckpoints(tmp_path / "checkpoints", target)
    await shop.append(1, 2, 666, 3, account="x")
    await shop.append(4, account="y")
    async with running(Processor(checkpoints, shop.boundary, PARKING), search) as processor:
        await eventually(lambda: processor.stats.position == (5, 4))
    assert target == {1: "x", 2: "x", 4: "y"}
    # what follows a parked event waits; a new worker knows
    async with running(Processor(checkpoints, shop.boundary, PARKING), search) as processor:
        await shop.append(5, account="x")
        await shop.append(6, account="y")
        await eventually(lambda: processor.stats.handled == 1)
    assert 5 not in target
    with pytest.raises(PartitionMismatch):
        await Processor(checkpoints, shop.boundary, replace(PARKING, total_partitions=2)).run(search)
    two = replace(PARKING, total_partitions=2, repartition=True)
    async with running(Processor(checkpoints, shop.boundary, two), search) as processor:
        await eventually(lambda: processor.stats.position == (7, 6))


async def test_checkpoints_of_ones_own_need_no_look(shop: Shop, tmp_path: Path) -> None:
    class Own:
        """Has what a processor cannot do without."""

        def __init__(self) -> None:
            kept = FileCheckpoints(tmp_path, dict[int, str]())
            self.assign, self.batch = kept.assign, kept.batch

    search, own = Search(), Own()
    await shop.append(1)
    async with running(Processor(own, shop.boundary), search) as processor:
        await asyncio.wait_for(processor.caught_up(search), 30)  # which looks
        await shop.append(2)
        await eventually(lambda: search.handled == [1, 2])


class Broker(dict[int, str]):
    """The client of a target that tells whether it is closed by a property, as many do."""

    is_closed = False


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError])
async def test_the_policy_is_for_what_the_target_refuses_whatever_its_client_calls_is_closed(
    shop: Shop, tmp_path: Path, error: type[OSError]
) -> None:
    class Slow(Search):
        async def handle(self, tx: Any, event: orisun.Event) -> None:
            if event.data["amount"] in self.poison:
                raise error("the target does not answer")
            await super().handle(tx, event)

    search, broker = Slow(), Broker()
    search.poison = {2}
    await shop.append(1, account="x")
    await shop.append(2, account="y")
    await shop.append(3, account="z")
    async with running(Processor(FileCheckpoints(tmp_path, broker), shop.boundary, PARKING), search) as processor:
        await asyncio.wait_for(processor.caught_up(search), 30)
        assert (processor.stats.failures, processor.stats.parked) == (2, 1)
    assert broker == {1: "x", 3: "z"}


async def test_files_repeat_what_was_not_yet_written_down_and_lose_nothing(shop: Shop, tmp_path: Path) -> None:
    seen: list[int] = []
    handled, going_on = asyncio.Event(), asyncio.Event()

    @projection("mails", orisun.where("Deposited"))
    async def send(tx: Any, event: orisun.Event) -> None:
        seen.append(event.data["amount"])
        if event.data["amount"] == 2:
            handled.set()
            await going_on.wait()

    await shop.append(1, 2, 3)
    first = asyncio.create_task(Processor(FileCheckpoints(tmp_path), shop.boundary).run(send))
    await asyncio.wait_for(handled.wait(), 30)
    first.cancel()  # as a crash would, between the work and the checkpoint
    with pytest.raises(asyncio.CancelledError):
        await first
    going_on.set()
    async with running(Processor(FileCheckpoints(tmp_path), shop.boundary), send) as processor:
        await processor.caught_up(send)
    assert sorted(set(seen)) == [1, 2, 3]
    assert seen[-2:] == [2, 3]
    assert seen.count(2) == 2
    again = len(seen)
    async with running(Processor(FileCheckpoints(tmp_path), shop.boundary), send) as processor:
        await processor.caught_up(send)
    assert len(seen) == again


async def test_a_directory_that_cannot_be_used_is_refused_at_the_start(shop: Shop, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    search = Search()
    for directory in (file, file / "below", tmp_path / ("x" * 300)):
        with pytest.raises(ProjectionError, match='projection "search/index": checkpoints cannot be kept in'):
            await asyncio.wait_for(Processor(FileCheckpoints(directory), shop.boundary).run(search), 30)


async def test_directories_do_not_know_each_other(shop: Shop, tmp_path: Path) -> None:
    one, two = Search(), Search()
    await shop.append(1)
    first = Processor(FileCheckpoints(tmp_path / "one", {}), shop.boundary)
    second = Processor(FileCheckpoints(tmp_path / "two", {}), shop.boundary)
    async with running(first, one), running(second, two):
        await asyncio.wait_for(asyncio.gather(first.caught_up(one), second.caught_up(two)), 30)
        same = Processor(FileCheckpoints(tmp_path / "one", {}), shop.boundary)
        async with running(same, one):
            await eventually(lambda: same.stats.standby)
    assert (one.handled, two.handled) == ([1], [1])


async def test_who_waits_before_the_worker_has_begun_learns_that_it_is_there_already(
    shop: Shop, tmp_path: Path
) -> None:
    class Slow(FileCheckpoints):
        going_on = asyncio.Event()

        async def assign(self, *given: Any) -> Assignment:
            await self.going_on.wait()
            return await super().assign(*given)

    search = Search()
    await shop.append(1)
    async with running(Processor(FileCheckpoints(tmp_path, {}), shop.boundary), search) as processor:
        await processor.caught_up(search)
    async with running(Processor(slow := Slow(tmp_path, {}), shop.boundary), search) as processor:
        waiting = asyncio.create_task(processor.caught_up(search))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        slow.going_on.set()
        await asyncio.wait_for(waiting, 30)
    assert search.handled == [1]


async def test_parked_events_are_listed_and_replayed_while_a_worker_runs(shop: Shop, tmp_path: Path) -> None:
    search, target = Search(), dict[int, str]()
    search.poison = {666}
    checkpoints = FileCheckpoints(tmp_path, target)
    admin = Administration(checkpoints, shop.boundary)
    await shop.append(1, 666, 2, account="x")
    await shop.append(3, account="y")
    async with running(Processor(checkpoints, shop.boundary, PARKING), search) as processor:
        await eventually(lambda: processor.stats.position == (4, 3))
        first, second = await admin.parked(search)
        assert (first.key, first.attempts, second.attempts) == ("x", 2, 0)
        assert "ConnectionError at test_projection_files.py" in first.reason
        assert (await admin.status(search))[0].handled == 2
        with pytest.raises(NotParked, match="waits behind"):
            _ = [one async for one in admin.replay(search, [second.event_id])]
        assert [bool(one.failure) async for one in admin.replay(search)] == [True, True]
        assert (await admin.parked(search))[0].attempts == 3
        search.poison = set()
        assert [one.failure async for one in admin.replay(search)] == ["", ""]
        assert await admin.parked(search) == []
        await shop.append(4, account="x")
        await processor.caught_up(search)
        search.poison = {5}
        await shop.append(5, account="y")
        await processor.caught_up(search)
        (parked,) = await admin.parked(search)
        assert await admin.discard(search, [parked.event_id]) == 1
        await shop.append(6, account="y")
        await processor.caught_up(search)
    assert search.handled == [1, 3, 666, 2, 4, 6]
    with pytest.raises(ProjectionError, match="for read models in PostgreSQL"):
        await admin.rebuild(search)


async def test_a_replay_waits_for_the_batch_in_hand_and_neither_forgets_the_other(shop: Shop, tmp_path: Path) -> None:
    search, target = Search(), dict[int, str]()
    search.poison = {666}
    checkpoints = FileCheckpoints(tmp_path, target)
    await shop.append(666, account="x")
    async with running(Processor(checkpoints, shop.boundary, PARKING), search) as processor:
        await processor.caught_up(search)
        search.poison = set()
        search.going_on.clear()
        await shop.append(1, account="y")
        await asyncio.wait_for(search.waiting.wait(), 30)  # it is being handled, and holds the partition

        async def replay() -> list[str]:
            # as a command line of its own would: other objects on the same files
            other = Administration(FileCheckpoints(tmp_path, target), shop.boundary)
            return [one.failure async for one in other.replay(search)]

        replaying = asyncio.create_task(replay())
        done, _ = await asyncio.wait([replaying], timeout=0.3)
        assert not done
        search.going_on.set()
        assert await asyncio.wait_for(replaying, 30) == [""]
        await processor.caught_up(search)
    assert sorted(search.handled) == [1, 666]
    (kept,) = checkpoints.found(search.name, shop.boundary.name).values()
    assert (kept["parked"], kept["position"]) == ([], [2, 1])


async def test_reset_begins_again_and_takes_another_version(shop: Shop, tmp_path: Path) -> None:
    search, target = Search(), dict[int, str]()
    checkpoints = FileCheckpoints(tmp_path, target)
    admin = Administration(checkpoints, shop.boundary)
    with pytest.raises(orisun.NotFound, match="never started"):
        await admin.reset(search)
    await shop.append(1, 2)
    async with running(Processor(checkpoints, shop.boundary), search) as processor:
        await processor.caught_up(search)
        await admin.reset(search)
        await shop.append(3)
        await eventually(lambda: len(target) == 3)
    assert search.handled == [1, 2, 1, 2, 3]
    search.version = 2
    with pytest.raises(VersionMismatch, match="reset"):
        await Processor(checkpoints, shop.boundary).run(search)
    await admin.reset(search)
    async with running(Processor(checkpoints, shop.boundary), search) as processor:
        await processor.caught_up(search)
        assert len(search.handled) == 8
        # also where nothing is appended that would show it
        await admin.reset(search)
        await asyncio.wait_for(processor.caught_up(search), 30)
    assert len(search.handled) == 11


async def test_another_layout_leaves_nothing_out(shop: Shop, tmp_path: Path) -> None:
    """Neither what a partition that was never started would have done, nor what comes back from an old worker."""
    search, target = Search(), dict[int, str]()
    checkpoints = FileCheckpoints(tmp_path, target)
    admin = Administration(checkpoints, shop.boundary)
    two = ProcessorConfig(partition_key=0, total_partitions=2)
    for number in range(20):
        await shop.append(number, account=f"a{number}")
    processor = Processor(checkpoints, shop.boundary, two)
    async with running(processor, search, ends=PartitionMismatch):
        await processor.caught_up(search)
        assert 0 < len(target) < 20
        # it has a batch in hand when the layout changes
        search.going_on.clear()
        for number in range(20, 30):
            await shop.append(number, account=f"a{number}")
        await asyncio.wait_for(search.waiting.wait(), 30)
        changing = asyncio.create_task(admin.repartition(search, ProcessorConfig(total_partitions=1)))
        done, _ = await asyncio.wait([changing], timeout=0.3)
        assert not done, "the batch is finished first"
        search.going_on.set()
        await asyncio.wait_for(changing, 30)
    assert list(checkpoints.found(search.name, shop.boundary.name)) == [0]
    with pytest.raises(PartitionMismatch, match="laid out for 1"):
        await Processor(checkpoints, shop.boundary, two).run(search)
    async with running(Processor(checkpoints, shop.boundary), search) as processor:
        await processor.caught_up(search)
    assert sorted(target) == list(range(30))


_APP = """
import orisun, pathlib, json
from orisun.projections import FileCheckpoints, PoisonPolicy, ProcessorConfig, Projection, ProjectionApp, commands

class Names(Projection):
    name = "names"

    def handle(self, tx, event):
        if event.data["name"] == "bad" and not pathlib.Path("mended").exists():
            raise KeyError("bad")
        with tx.open("a") as file:
            print(event.data["name"], file=file)

app = ProjectionApp(
    [Names()],
    boundary={boundary!r},
    connect=lambda: orisun.connect({address!r}, username="admin", password="changeit"),
    checkpoints=lambda: FileCheckpoints("checkpoints", pathlib.Path("names.txt")),
    config=ProcessorConfig(poison=PoisonPolicy("park", attempts=1)),
)

if __name__ == "__main__":
    commands(app)(prog_name="app")
"""


async def test_the_command_line(server: Connection, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(_APP.format(boundary=shop.boundary.name, address=server.address))

    async def command(*arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orisun", "projections", "--app", "shop:app", *arguments, cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, output.decode()
        return output.decode()

    for name in ("one", "bad", "two"):
        await shop.boundary.append([orisun.NewEvent("Named", {"name": name})])
    names = tmp_path / "names.txt"
    worker = await asyncio.create_subprocess_exec(sys.executable, "shop.py", cwd=tmp_path)
    try:
        await eventually(lambda: names.exists() and names.read_text() == "one\ntwo\n", 30)
    finally:
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), 30) == 0
    shown = await command("status")
    assert "0/1" in shown
    assert "1 parked" in shown
    assert "KeyError at shop.py" in await command("parked", "names")
    assert "parked still: KeyError" in await command("replay", "names", code=1)
    (tmp_path / "mended").touch()
    assert "1 handled" in await command("replay", "names")
    assert names.read_text() == "one\ntwo\nbad\n"
    assert "Laid out for 2" in await command("repartition", "names", "--total-partitions", "2")
    assert "1/2" in await command("status")
    refused = await command("reset", "names", "--yes", code=1)
    assert "write reset(tx)" in refused
    assert "for read models in PostgreSQL" in await command("rebuild", "names", code=1)
    assert "Traceback" not in refused


def test_an_application_has_one_place_for_its_checkpoints() -> None:
    with pytest.raises(orisun.InvalidArgument, match="one of the two"):
        ProjectionApp([Search()], boundary="shop", connect=orisun.connect)


async def test_who_is_cancelled_while_writing_gives_no_lock_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written late would undo what the next one writes, and what that has parked."""
    began, going_on, write = threading.Event(), threading.Event(), kept_files.write
    path, lock = tmp_path / "search.json", tmp_path / "search.lock"

    def slow(path: Path, kept: dict[str, Any]) -> None:
        began.set()
        assert going_on.wait(30)
        write(path, kept)

    async def work() -> None:
        async with kept_files.locked(lock):
            await kept_files.save(path, kept_files.new_kept(1, NOTHING, 1))

    async def follow() -> None:
        async with kept_files.locked(lock):
            assert kept_files.read(path)["total"] == 1

    monkeypatch.setattr(kept_files, "write", slow)
    working = asyncio.create_task(work())
    assert await asyncio.to_thread(began.wait, 30)
    working.cancel()
    following = asyncio.create_task(follow())
    done, _ = await asyncio.wait([following], timeout=0.3)
    assert not done
    going_on.set()
    await asyncio.wait_for(following, 10)
    with pytest.raises(asyncio.CancelledError):
        await working
