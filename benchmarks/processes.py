"""Child processes that end with the benchmark, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import orisun_server.embedded

#: Asks the kernel to end the command when this process dies, then executes it.
_LAUNCHER = Path(orisun_server.embedded.__file__).with_name("launch.py")


async def spawn(
    command: Sequence[str],
    *,
    output: Path,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pipe: bool = False,
) -> asyncio.subprocess.Process:
    """Start a command (an absolute path first) whose output is appended to a file; with ``pipe`` stdout is a pipe."""
    with output.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_LAUNCHER)),
            *map(str, (os.getpid(), signal.SIGTERM.value, -1, -1)),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if pipe else file,
            stderr=file,
            env=None if environ is None else dict(environ),
            cwd=cwd,
            start_new_session=True,
        )


async def end(process: asyncio.subprocess.Process, patience: float = 60.0) -> None:
    """SIGTERM, and SIGKILL when that is not enough."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(file: Path, lines: int = 15) -> str:
    """The end of a log file."""
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else ""
