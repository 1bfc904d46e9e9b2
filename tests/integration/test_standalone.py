"""PostgreSQL for other processes: on TCP, with a password."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.harness import eventually


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_it_lets_in_whom_it_was_told_to_and_keeps_the_data(data_dir: Path) -> None:
    port = _free_port()
    # what a file system with a group for the volume leaves: the directory of the data must be PostgreSQL's alone
    await asyncio.to_thread(data_dir.chmod, 0o2775)
    first = await _start(data_dir, port, "o'ne")
    try:
        connection = await _connected(port, "o'ne")
        await connection.execute("CREATE SCHEMA mine; CREATE TABLE mine.kept AS SELECT 7 AS n")
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host=_outside(), port=port, user="orisun", password="wrong", database="orisun")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host=_outside(), port=port, user="postgres", password="postgres", database="orisun")
        assert (data_dir / "postgres").stat().st_mode & 0o777 == 0o700
    finally:
        await _stop(first)
    second = await _start(data_dir, port, "two")
    try:
        connection = await _connected(port, "two")
        assert await connection.fetchval("SELECT n FROM mine.kept") == 7
        await connection.close()
    finally:
        await _stop(second)


def _outside() -> str:
    """An address by which others would come."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


async def _start(data: Path, port: int, password: str) -> asyncio.subprocess.Process:
    told = {"HOST": "0.0.0.0", "PORT": str(port), "NAME": "orisun", "USER": "orisun", "PASSWORD": password}
    variables = {f"ORISUN_PG_{name}": value for name, value in told.items()}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orisun_server.embedded.standalone"),
        env={**os.environ, **variables, "ORISUN_DATA_DIR": str(data), "ORISUN_LOGGING_FORMAT": "json"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _connected(port: int, password: str) -> asyncpg.Connection:
    async def attempt() -> asyncpg.Connection | None:
        try:
            return await asyncpg.connect(
                host=_outside(), port=port, user="orisun", password=password, database="orisun"
            )
        except (OSError, asyncpg.PostgresError):
            return None

    connection = await eventually(attempt, 60, 0.1)
    assert connection is not None
    return connection


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 60) == 0
