"""Workers of a projection in processes of their own, killed without warning; and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

import orisun
from orisun.projections import (
    Administration,
    FileCheckpoints,
    PostgresCheckpoints,
    Processor,
    ProcessorConfig,
    Tables,
)
from orisun_server.settings import Settings
from tests.client.projection_worker import Deposits
from tests.harness import Connection, ServerProcess, eventually

#: Some in each of three partitions: a worker without any may be asked to stop before it has begun to listen.
ACCOUNTS = [f"acct-{n}" for n in range(9)]


class Workers:
    """Starts workers, one for a partition."""

    def __init__(self, asked: dict[str, object]) -> None:
        self._asked = asked
        self.processes: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, partition: int, total: int) -> None:
        asked = json.dumps(self._asked | {"partition": partition, "total": total})
        self.processes[partition] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.client.projection_worker", asked
        )

    async def end(self, partition: int, number: signal.Signals) -> int:
        process = self.processes.pop(partition)
        process.send_signal(number)
        return await asyncio.wait_for(process.wait(), 30)


@pytest.fixture
async def schema(pg_dsn: str) -> AsyncIterator[str]:
    schema = f"shop_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(pg_dsn)
    await connection.execute(f'CREATE SCHEMA "{schema}"')
    yield schema
    await connection.execute(f'DROP SCHEMA "{schema}" CASCADE')
    await connection.close()


@pytest.mark.fault
async def test_killed_workers_do_everything_once_over_repartitioning(
    server: Connection, settings: Settings, schema: str, pg_dsn: str
) -> None:
    name = settings.boundaries[0].name
    workers = Workers({"address": server.address, "boundary": name, "dsn": pg_dsn, "schema": schema})
    written = 0
    stop = asyncio.Event()

    async def write(boundary: orisun.Boundary) -> None:
        nonlocal written
        while not stop.is_set():
            events = [orisun.NewEvent("Deposited", {"account": account, "amount": written}) for account in ACCOUNTS]
            await boundary.append(events)
            written += 1
            await asyncio.sleep(0.005)

    async with (
        orisun.connect(server.address, username="admin", password="changeit") as client,
        asyncpg.create_pool(pg_dsn, min_size=1, max_size=2) as pool,
        contextlib.AsyncExitStack() as stack,
    ):

        def kill_all() -> None:
            for process in workers.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

        stack.callback(kill_all)
        checkpoints = PostgresCheckpoints(pool, Tables(schema))
        writing = asyncio.create_task(write(client.boundary(name)))

        async def rows() -> int:
            if not await pool.fetchval("SELECT to_regclass($1) IS NOT NULL", f'"{schema}".deposit'):
                return 0
            return int(await pool.fetchval(f'SELECT count(*) FROM "{schema}".deposit'))

        async def goes_on(more: int = 30) -> None:
            before = await rows()

            async def more_rows() -> bool:
                return await rows() > before + more

            await eventually(more_rows, 30, 0.005)

        await workers.start(0, 1)
        await goes_on()
        await workers.end(0, signal.SIGKILL)
        admin = Administration(checkpoints, client.boundary(name))
        await admin.repartition(Deposits(schema), ProcessorConfig(total_partitions=3))
        for partition in range(3):
            await workers.start(partition, 3)
        for _ in range(3):
            await goes_on()
            victim = random.choice(list(workers.processes))
            await workers.end(victim, signal.SIGKILL)
            await workers.start(victim, 3)
        await goes_on()
        stop.set()
        await writing

        async def complete() -> bool:
            return await rows() >= written * len(ACCOUNTS)

        await eventually(complete, 30)
        for partition in list(workers.processes):
            assert await workers.end(partition, signal.SIGTERM) == 0, "a graceful stop"
        found = await pool.fetch(f'SELECT account, amount FROM "{schema}".deposit ORDER BY n')
    for account in ACCOUNTS:
        assert [row["amount"] for row in found if row["account"] == account] == list(range(written))


@pytest.mark.fault
async def test_killed_workers_whose_checkpoints_are_files_leave_nothing_out_and_are_never_ahead(
    server: Connection, settings: Settings, client: orisun.Client, tmp_path: Path
) -> None:
    boundary, target = client.boundary(settings.boundaries[0].name), tmp_path / "target"
    workers = Workers({"address": server.address, "boundary": boundary.name, "directory": str(tmp_path)})
    checkpoints = FileCheckpoints(tmp_path / "checkpoints")
    events = [orisun.NewEvent("Deposited", {"account": "a", "amount": number}) for number in range(400)]
    await boundary.append(events)

    def handled() -> list[int]:
        # the last line may be half of one
        return [int(line) for line in target.read_text().split("\n")[:-1]] if target.exists() else []

    def position() -> int:
        (found,) = checkpoints.found("deposits", boundary.name).values()
        return int(found["position"][1])

    await workers.start(0, 1)
    try:
        for part in range(1, 4):
            await eventually(lambda part=part: len(set(handled())) > part * 100, 30, 0.001)  # type: ignore[misc]
            await workers.end(0, signal.SIGKILL)
            assert set(range(position() + 1)) <= set(handled()), "what is kept as done is done"
            await workers.start(0, 1)
        await eventually(lambda: len(set(handled())) == len(events), 30)
        assert await workers.end(0, signal.SIGTERM) == 0
    finally:
        for process in workers.processes.values():
            process.kill()
    assert position() == len(events) - 1
    assert list(dict.fromkeys(handled())) == list(range(len(events))), "each at least once, in order"


_APP = """
import asyncpg, orisun
from orisun.projections import PoisonPolicy, ProcessorConfig, Projection, ProjectionApp, Tables, commands
import pathlib

class Names(Projection):
    name = "names"
    schema = {view!r}

    async def setup(self, tx):
        await tx.execute("CREATE TABLE names (name text)")

    async def handle(self, tx, event):
        if event.data["name"] == "bad" and not pathlib.Path("mended").exists():
            raise KeyError("bad")
        await tx.execute("INSERT INTO names VALUES ($1)", event.data["name"])

app = ProjectionApp(
    [Names()],
    boundary={boundary!r},
    connect=lambda: orisun.connect({address!r}, username="admin", password="changeit"),
    pool=lambda: asyncpg.create_pool({dsn!r}, min_size=1, max_size=4),
    config=ProcessorConfig(poison=PoisonPolicy("park", attempts=1)),
    tables=Tables({schema!r}),
)

if __name__ == "__main__":
    commands(app)(prog_name="app")
"""


async def test_the_command_line(
    server: Connection, settings: Settings, schema: str, pg_dsn: str, tmp_path: Path
) -> None:
    view, boundary = f"{schema}_view", settings.boundaries[0].name
    (tmp_path / "shop.py").write_text(
        _APP.format(view=view, boundary=boundary, address=server.address, dsn=pg_dsn, schema=schema)
    )

    async def command(*arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, output.decode()
        return output.decode()

    async def orisun_command(*arguments: str, code: int = 0) -> str:
        return await command("orisun", "projections", "--app", "shop:app", *arguments, code=code)

    async with (
        orisun.connect(server.address, username="admin", password="changeit") as client,
        asyncpg.create_pool(pg_dsn, min_size=1, max_size=2) as pool,
    ):
        events = client.boundary(boundary)
        for name in ("one", "bad", "two"):
            await events.append(
                [orisun.NewEvent("Named", {"name": name})],
            )
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "shop.py", "--partition-key=0", "--total-partitions=1", cwd=tmp_path
        )
        try:

            async def two_names() -> bool:
                there = await pool.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{view}.names")
                return there and await pool.fetchval(f'SELECT count(*) FROM "{view}".names') == 2

            await eventually(two_names, 30)
        finally:
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), 30) == 0
        shown = await orisun_command("status")
        assert "0/1" in shown
        assert "1 parked" in shown
        listed = await orisun_command("parked", "names")
        assert "KeyError at shop.py" in listed
        assert "1 parked" in listed
        assert "parked still: KeyError" in await orisun_command("replay", "names", code=1)
        (tmp_path / "mended").touch()
        assert "1 handled" in await orisun_command("replay", "names")
        assert "Rebuilt: 3 events" in await orisun_command("rebuild", "names")
        assert "Laid out for 2" in await orisun_command("repartition", "names", "--total-partitions", "2")
        assert "1/2" in await orisun_command("status")
        wrong = await orisun_command("status", "--help")
        assert "behind" in wrong
        assert 'no projection "x"' in await orisun_command("parked", "x", code=1)
        refused = await command("orisun", "projections", "--app", "no_such:app", "status", code=1)
        assert "Traceback" not in refused
        await pool.execute(f'DROP SCHEMA "{view}" CASCADE')


@pytest.mark.fault
async def test_a_worker_that_stands_by_outlives_the_servers(
    settings: Settings, server_process: ServerProcess, schema: str, pg_dsn: str
) -> None:
    """It makes a subscription again and again; that no server takes one for a while is no reason to end."""
    impatient = orisun.RetryPolicy(attempts=1)
    deposits = Deposits(schema)
    async with (
        orisun.connect(server_process.address, username="admin", password="changeit", retry=impatient) as client,
        asyncpg.create_pool(pg_dsn, min_size=1, max_size=6) as pool,
    ):
        boundary, checkpoints = client.boundary(settings.boundaries[0].name), PostgresCheckpoints(pool, Tables(schema))
        processors = [Processor(checkpoints, boundary) for _ in range(2)]
        working = [asyncio.create_task(processor.run(deposits)) for processor in processors]
        await eventually(lambda: any(processor.stats.standby for processor in processors))
        (standby,) = [processor for processor in processors if processor.stats.standby]
        await server_process.kill()
        with pytest.raises(AssertionError):  # it has asked several times meanwhile
            await eventually(lambda: any(task.done() for task in working), 3)
        await server_process.start()
        for processor in processors:
            if processor is not standby:
                processor.stop()
        async with orisun.connect(server_process.address, username="admin", password="changeit") as patient:
            event = orisun.NewEvent("Deposited", {"account": "a", "amount": 1})
            await patient.boundary(boundary.name).append([event])
        await eventually(lambda: sum(processor.stats.handled for processor in processors) == 1, 30)
        standby.stop()
        await asyncio.wait_for(asyncio.gather(*working), 30)
