"""The pages about projections, the in-process store and testing do what they say: snippets, files and commands."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

import orisun
from orisun.projections import HashPartitions
from orisun_server.embedded.place import binaries
from orisun_server.settings import Settings
from tests import snippets
from tests.harness import Connection, eventually

DOCS = Path(__file__).parents[2] / "docs" / "client"
#: Keys of events, each of another partition of four.
KEYS = {HashPartitions().partition(key, 4): key for key in "abcdefghijkl"}


class Place:
    """A server with the boundary of the pages, a database for their read models, and a directory for their files."""

    def __init__(self, server: Connection, settings: Settings, dsn: str, directory: Path) -> None:
        self.address, self.settings, self.dsn, self.directory = server.address, settings, dsn, directory
        self.replaced = {
            "localhost:5005": server.address,
            "postgresql://localhost/shop": dsn,
            "postgresql+psycopg://localhost/shop": dsn.replace("postgresql:", "postgresql+psycopg:"),
            'admin_schema="admin"': f'admin_schema="{settings.admin_schema}"',
        }
        self._programs = {"python": [sys.executable], "orisun": [sys.executable, "-m", "orisun"]}
        self._programs |= {"pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]}

    async def start(self, command: str) -> asyncio.subprocess.Process:
        """A command of a page, in the directory of its files."""
        program, *arguments = shlex.split(command)
        return await asyncio.create_subprocess_exec(
            *self._programs[program], *arguments, cwd=self.directory,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def output(self, command: str, given: str = "", code: int = 0) -> str:
        process = await self.start(command)
        output, _ = await asyncio.wait_for(process.communicate(given.encode()), 60)
        assert process.returncode == code, output.decode()
        return output.decode()

    async def runs_until_asked(self, command: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """It does its work, and ends without an error at SIGTERM."""
        process = await self.start(command)
        try:
            await eventually(condition, 30)
            process.send_signal(signal.SIGTERM)
            output, _ = await asyncio.wait_for(process.communicate(), 30)
            assert (process.returncode, output.decode()) == (0, "")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def balances(self) -> dict[str, int]:
        """The read model of the pages."""
        connection = await asyncpg.connect(self.dsn)
        try:
            if not await connection.fetchval("SELECT to_regclass('bank_view.balance') IS NOT NULL"):
                return {}
            return dict(await connection.fetch("SELECT account, amount FROM bank_view.balance"))
        finally:
            await connection.close()


@pytest.fixture
async def place(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]], pg_dsn: str,
    tmp_path: Path,
) -> AsyncIterator[Place]:  # fmt: skip
    settings = make_settings("accounts", exact=True)
    server = await make_server(settings)
    connection = await asyncpg.connect(pg_dsn)
    database = "docs_read_model"
    await connection.execute(f"DROP DATABASE IF EXISTS {database}")
    await connection.execute(f"CREATE DATABASE {database}")
    yield Place(server, settings, pg_dsn.replace("/orisun?", f"/{database}?"), tmp_path)
    await connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
    await connection.close()


@pytest.fixture
def accounts(place: Place, make_client: Callable[..., orisun.Client]) -> orisun.Boundary:
    return make_client(place.address).boundary("accounts")


@pytest.mark.parametrize("page", ["projections", "sync", "in-process", "testing"])
async def test_snippets(page: str, place: Place, pg_dsn: str) -> None:
    # the in-process store is about the store's own database
    asyncpg_dsn = pg_dsn.replace("postgresql:", "postgresql+asyncpg:")
    own = {"postgresql://localhost/shop": pg_dsn, "postgresql+asyncpg://localhost/shop": asyncpg_dsn}
    own = own if page == "in-process" else {}
    running = snippets.run(DOCS / f"{page}.md", place.replaced | own, place.directory)
    # a loop of its own, so that what a page leaves open ends with it
    await asyncio.to_thread(asyncio.run, running)


async def test_the_suite_of_the_page_about_testing(tmp_path: Path, place: Place) -> None:
    page = DOCS / "testing.md"
    snippets.write(page, tmp_path, {})
    install, test = snippets.commands(page)
    assert install == "pip install pytest pytest-asyncio"
    assert "2 passed" in await place.output(f"{test} -W error -o asyncio_default_fixture_loop_scope=function")


async def test_a_worker_without_asyncio_runs_until_it_is_asked_to_stop(place: Place, accounts: orisun.Boundary) -> None:
    deposits = {key: number for number, key in KEYS.items()}
    await accounts.append(
        [orisun.NewEvent("Deposited", {"account": key, "amount": amount}) for key, amount in deposits.items()]
    )
    snippets.write(DOCS / "sync.md", place.directory, place.replaced)

    async def complete() -> bool:
        return await place.balances() == deposits

    await place.runs_until_asked("python worker.py", complete)


async def test_the_command_line_of_projections(place: Place, accounts: orisun.Boundary) -> None:
    page, key = DOCS / "projections.md", KEYS[0]
    snippets.write(page, place.directory, place.replaced)
    bad = orisun.NewEvent("Deposited", {"account": key, "amount": "seven"})
    good = orisun.NewEvent("Deposited", {"account": KEYS[1], "amount": 1})
    await accounts.append([orisun.NewEvent("Deposited", {"account": key, "amount": 5}), good, bad])
    (module, again, status, parked, replay, discard, repartition, rebuild, reset) = snippets.commands(page)
    assert "--total-partitions" in module

    async def first() -> bool:
        return await place.balances() == {key: 5}

    async def second() -> bool:
        return await place.balances() == {key: 12}

    async def is_parked() -> bool:
        return await first() and bad.event_id in await place.output(parked)

    await place.runs_until_asked(module, is_parked)
    assert "0/4" in await place.output(status)
    assert f"{bad.event_id}  parked still" in await place.output(replay, code=1)
    assert "1 discarded" in await place.output(discard.replace("018f...", bad.event_id))
    await accounts.append([orisun.NewEvent("Deposited", {"account": key, "amount": 7})])
    await place.runs_until_asked(again, second)
    assert "Laid out for 2" in await place.output(repartition)
    assert "Rebuilt" in await place.output(rebuild)
    # what cannot be handled is parked again, and what follows it waits
    assert await place.balances() == {key: 5, KEYS[1]: 1}
    assert "Reset" in await place.output(reset, "y\n")
    assert await place.balances() == {}


async def test_migrations_of_your_own(place: Place) -> None:
    page = DOCS / "in-process.md"
    generate, tables, apply = snippets.commands(page)
    await place.output(generate)
    command, _, file = tables.partition(" > ")
    (place.directory / file).write_text(await place.output(command))
    shell = shutil.which("sh")
    assert shell
    environ = os.environ | {
        "PATH": f"{binaries(None)}:{os.environ['PATH']}",
        "PGOPTIONS": "-c client_min_messages=warning",
    }
    # what psql takes from PGDATABASE otherwise
    command = apply.replace("psql ", f"psql -d '{place.dsn}' ")
    process = await asyncio.create_subprocess_exec(
        shell, "-e", "-c", command, cwd=place.directory, env=environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    connection = await asyncpg.connect(place.dsn)
    rows = await connection.fetch("SELECT name, status FROM admin.orisun_boundary WHERE name = 'orders'")
    assert await connection.fetchval("SELECT count(*) FROM orisun_projection_checkpoint") == 0
    await connection.close()
    assert [tuple(row) for row in rows] == [("orders", "ACTIVE")]
