"""The pytest plugin and the store for a test run: what they give, how fast, and that they leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest

import orisun
from orisun_server.testing.local import LocalStore, LocalStoreError
from tests.harness import eventually

_SUITE = """
import asyncio, time
import orisun
import pytest

async def fill(connect, boundary):
    async with connect() as client:
        events = client.boundary(boundary)
        assert [event async for event in events.read()] == []
        await events.append([orisun.NewEvent("Counted", {"n": 1})])
        return [event.event_type async for event in events.read()]

@pytest.mark.parametrize("n", range(5))
def test_a_boundary_of_its_own(orisun_connect, orisun_boundary, n):
    assert asyncio.run(fill(orisun_connect, orisun_boundary)) == ["Counted"]
"""


def test_a_suite_of_another_project(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(_SUITE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "5 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_imports_nothing_before_it_is_used() -> None:
    code = "import sys, orisun_server.testing.plugin; print({'grpc', 'asyncpg', 'orisun'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


async def test_fresh_boundaries_by_the_dozen() -> None:
    with LocalStore() as store:
        assert store.create_boundary().startswith("test_")
        for _ in range(12):
            # a test, during which the next ones are made
            await eventually(lambda: all(spare.done() for spare in store._spares))
            ready = [spare.result() for spare in store._spares]
            assert store.create_boundary() in ready
        named = store.create_boundary("orders")
        async with orisun.connect(store.address, username=store.username, password=store.password) as client:
            assert await client.boundary(named).append([orisun.NewEvent("Placed")]) == (1, 0)
        connection = await asyncpg.connect(store.dsn)
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 'orisun_boundary'") == 1
        await connection.close()
        with pytest.raises(LocalStoreError, match="no-name"):
            store.create_boundary("no-name")


def test_it_ends_with_the_process_that_started_it() -> None:
    code = "from orisun_server.testing.local import *; s = LocalStore().start(); print(s.dsn, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        directory = Path(owner.stdout.readline().partition("host=")[2].partition("&")[0]).parent
        assert directory.is_dir()
        children = psutil.Process(owner.pid).children(recursive=True)
        assert any(child.name() == "postgres" for child in children)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert not directory.exists()
