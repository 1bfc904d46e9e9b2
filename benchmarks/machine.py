"""What the figures were measured on; nothing that names the machine or its directories."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import shutil
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from orisun_server.embedded.nats import _binary

from .parts import Parts

_PACKAGES = ("uvloop", "asyncpg", "nats-py", "grpcio", "pygrpc-native", "protobuf", "msgspec")
_POSTGRES = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")


async def describe(parts: Parts, directory: Path) -> dict[str, str]:
    """What to print above the tables."""
    async with parts.database.admin.acquire() as connection:
        settings = {name: await connection.fetchval(f"SHOW {name}") for name in _POSTGRES}
    version = settings.pop("server_version")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if _is_installed(name))
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": await _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "processor": f"{psutil.cpu_count()} cores, {_processor()}",
        "memory": f"{memory:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": f"{_file_system(directory)}; 8 KiB written and synced in {_sync_milliseconds(directory):.2f} ms (p50)",
        "PostgreSQL": f"{version}, embedded ({', '.join(f'{name} {value}' for name, value in settings.items())})",
        "NATS": f"{await _output(str(_binary()), '--version')}, embedded, file storage",
        "Python": f"{platform.python_version()}; {packages}",
        "load at the start": load(),
    }


def load() -> str:
    """The load average of now."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def busy_seconds() -> float:
    """CPU time of everything that runs here, since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(directory: Path) -> str:
    """The type of file system that the data lie on."""
    best = ""
    kind = "unknown"
    for partition in psutil.disk_partitions(all=True):
        if directory.is_relative_to(partition.mountpoint) and len(partition.mountpoint) >= len(best):
            best, kind = partition.mountpoint, partition.fstype
    return f"{kind}, where fsync costs nothing: not the durable figures!" if kind in ("tmpfs", "ramfs") else kind


def _sync_milliseconds(directory: Path) -> float:
    """What making one small write durable takes here."""
    taken = []
    file = directory / "sync"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(100):
            began = time.perf_counter()
            os.pwrite(descriptor, b"x" * 8192, 0)
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        file.unlink()
    return statistics.median(taken)


async def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd=Path(__file__).parent
    )
    answer, _ = await process.communicate()
    return answer.decode().strip() or "unknown"
