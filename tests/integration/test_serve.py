"""``orisun serve`` as a person runs it: everything embedded, or each part their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from google.protobuf import json_format

from orisun_api import eventstore_pb2 as wire
from orisun_server.embedded.postgres import running_address
from orisun_server.settings import Settings
from tests.harness import Connection, ServerProcess, eventually
from tests.integration.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.fault

README = (Path(__file__).parents[2] / "README.md").read_text()


def laptop(data_dir: Path, **environ: str) -> ServerProcess:
    """A server with everything embedded below ``data_dir``."""
    places = {
        "ORISUN_DATA_DIR": str(data_dir),
        "ORISUN_NATS_STORE_DIR": str(data_dir / "nats"),
        "ORISUN_NATS_PORT": "0",
    }
    return ServerProcess(None, {**places, **environ})


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def save(connection: Connection, event_id: str, boundary: str = "orisun_test_1") -> wire.WriteResult:
    event = wire.EventToSave(event_id=event_id, event_type="Kept", data='{"k": 1}', metadata="{}")
    request = wire.SaveEventsRequest(boundary=boundary, events=[event])
    answer: wire.WriteResult = await connection.events.SaveEvents(request, metadata=connection.metadata, timeout=10)
    return answer


async def ids(connection: Connection, boundary: str = "orisun_test_1") -> list[str]:
    request = wire.GetEventsRequest(boundary=boundary, count=100)
    found = await connection.events.GetEvents(request, metadata=connection.metadata, timeout=10)
    return [event.event_id for event in found.events]


async def test_a_second_start_finds_the_data_and_nothing_is_left_behind(data_dir: Path) -> None:
    async with laptop(data_dir) as server:
        for round_ in range(2):
            await save(server.connection, f"event-{round_}")
            assert await ids(server.connection) == [f"event-{number}" for number in range(round_ + 1)]
            family = children(server.pid)
            assert {"postgres", "nats-server"} <= {process.name() for process in family}
            assert await server.stop() == 0
            _, alive = psutil.wait_procs(family, timeout=0)
            assert alive == []
            assert "Orisun 0." in server.logs
            assert "grpcurl" in server.logs
            if round_ == 0:
                await server.start()


async def test_ctrl_c_in_a_terminal_stops_all_of_it(data_dir: Path) -> None:
    server = laptop(data_dir)
    try:
        async with Terminal(sys.executable, "-m", "orisun", "serve", environ=server._environ) as terminal:
            await terminal.shows("Ctrl-C stops")
            assert "\x1b[" in terminal.raw  # colours for people, and no JSON
            assert '{"event"' not in terminal.raw
            family = terminal.family
            assert {"postgres", "nats-server"} <= {member.name() for member in family}
            await terminal.press(CTRL_C)
            assert await terminal.end() == 0
            assert "Traceback" not in terminal.shown
            assert "restarting" not in terminal.shown  # the children did not get the terminal's signal
            _, alive = psutil.wait_procs(family, timeout=0)
            assert alive == []
    finally:
        await server.close()
    log = (data_dir / "postgres.log").read_text()
    assert "database system is shut down" in log


async def test_a_killed_server_loses_nothing_and_leaves_nothing(data_dir: Path) -> None:
    async with laptop(data_dir) as server:
        await save(server.connection, "before")
        family = children(server.pid)
        await server.kill()
        await asyncio.to_thread(psutil.wait_procs, family, 20)
        assert not any(process.is_running() for process in family)
        await server.start()
        assert await ids(server.connection) == ["before"]


async def test_a_second_signal_exits_at_once(data_dir: Path) -> None:
    async with laptop(data_dir, ORISUN_SHUTDOWN_GRACE="30s") as server:
        waiting = server.connection.events.CatchUpSubscribeToEvents(
            wire.CatchUpSubscribeToEventStoreRequest(boundary="orisun_test_1", subscriber_name="s"),
            metadata=server.connection.metadata,
        )
        await waiting.initial_metadata()
        # stopped while it is held up: its PostgreSQL does not answer
        address = running_address(data_dir / "postgres")
        assert address
        postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)
        try:
            await server.signal(signal.SIGTERM)
            await eventually(lambda: "second signal" in server.logs)
            await server.signal(signal.SIGTERM)
            assert await server.wait(5) != 0
        finally:
            os.kill(postmaster, signal.SIGCONT)
        waiting.cancel()


async def test_postgres_of_your_own_and_an_embedded_nats(
    data_dir: Path, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    environ = {"ORISUN_NATS_URL": "", "ORISUN_NATS_STORE_DIR": str(data_dir / "nats"), "ORISUN_NATS_PORT": "0"}
    async with ServerProcess(settings, environ) as server:
        await save(server.connection, "a", settings.boundaries[0].name)
        assert [process.name() for process in children(server.pid)] == ["nats-server"]


async def test_nats_of_your_own_and_an_embedded_postgres(data_dir: Path, nats_url: str) -> None:
    async with laptop(data_dir, ORISUN_NATS_URL=nats_url) as server:
        await save(server.connection, "a")
        names = {process.name() for process in children(server.pid)}
        assert "postgres" in names
        assert "nats-server" not in names
        assert nats_url not in server.logs


async def test_a_default_password_open_to_the_network_is_warned_about(settings: Settings) -> None:
    async with ServerProcess(settings, {"ORISUN_GRPC_HOST": "0.0.0.0"}) as server:
        assert "DEFAULT PASSWORD" in server.logs
    async with ServerProcess(settings) as server:
        assert "DEFAULT PASSWORD" not in server.logs


async def test_a_start_that_cannot_be_says_why_without_a_traceback(data_dir: Path) -> None:
    async with laptop(data_dir) as first:
        second = laptop(data_dir)
        await second.spawn()
        assert await second.wait() == 1
        assert f"process {first.pid}" in second.logs
        assert "ORISUN_DATA_DIR" in second.logs
        assert "Traceback" not in second.logs
        await second.close()


async def test_the_readme_works(data_dir: Path) -> None:
    requests = re.findall(r"orisun\.EventStore/SaveEvents <<EOF\n(.*?)\nEOF", README, re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    async with laptop(data_dir) as server:
        for request in requests:
            message = json_format.Parse(request.replace("\\\\", "\\"), wire.SaveEventsRequest())
            await server.connection.events.SaveEvents(message, metadata=server.connection.metadata)
        program = program.replace("localhost:5005", server.address)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-c",
            program,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, output.decode()
        assert output.startswith(b"stored at")
        assert await ids(server.connection) == ["user-001", "alice-1"]


async def test_migrate_beside_a_server_and_without_one(data_dir: Path) -> None:
    async def orisun(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orisun", *arguments, env=server._environ, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        return output.decode()

    server = laptop(data_dir)
    assert "0001" in await orisun("migrate", "plan")
    planned = json.loads(await orisun("migrate", "plan", "--output", "json"))
    assert {"scope": "boundary:orisun_test_1", "schema": "public", "migration": "0001 event_log"} in planned
    applied = yaml.safe_load(await orisun("migrate", "apply", "-o", "yaml"))
    assert sorted(applied, key=str) == sorted(planned, key=str)
    assert "up to date" in await orisun("migrate", "plan")
    assert await orisun("migrate", "plan", "-o", "json") == "[]\n"
    async with server:
        states = json.loads(await orisun("migrate", "status", "-o", "json"))
        assert {state["state"] for state in states} == {"up to date"}
        assert "orisun_test_1" in await orisun("migrate", "status")
        await save(server.connection, "a")
