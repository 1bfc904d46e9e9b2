"""A child process that dies with the server, is stopped with it, and is restarted when it dies by itself."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import structlog

from orisun_server.addresses import mask_userinfo
from orisun_server.embedded.account import Account
from orisun_server.errors import OrisunError
from orisun_server.tasks import end

log = structlog.get_logger(__name__)

_LAUNCHER = Path(__file__).with_name("launch.py")
_FIRST_DELAY, _LONGEST_DELAY, _STABLE = 0.1, 5.0, 60.0
_LOG_LIMIT = 16 * 1024 * 1024


class EmbeddedError(OrisunError):
    """An embedded PostgreSQL or nats-server does not start."""


class Lock:
    """Keeps two servers from using one directory. Held until ``release`` or until the process dies."""

    def __init__(self, path: Path, hint: str) -> None:
        self._path, self._hint = path, hint
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises EmbeddedError naming the process that holds it."""
        file = os.fdopen(open_private(self._path, os.O_RDWR), "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise EmbeddedError(
                f"{self._path.parent} is in use by another Orisun (process {holder}): stop it, or {self._hint}"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Child:
    """Runs a command in its own session (Ctrl-C in a terminal does not reach it) and supervises it.

    ``command`` is asked at each start, so that it can look at the state of the disk; ``ready`` returns when the process
    serves and is cancelled when it dies first. Output goes to ``log_file``. ``stop_signals`` are sent one after the
    other, each with its patience in seconds; the first one is also what the kernel sends when the server dies.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Awaitable[Sequence[str]]],
        ready: Callable[[], Awaitable[None]],
        *,
        log_file: Path,
        stop_signals: Sequence[tuple[signal.Signals, float]],
        account: Account | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        self._name, self._command, self._ready = name, command, ready
        self._log_file, self._stop_signals, self._account = log_file, stop_signals, account
        self._start_timeout = start_timeout
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The running process, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Returns when the process serves. Raises EmbeddedError with the end of its output when it does not."""
        try:
            await self._launch()
        except BaseException:
            await self._end()
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"supervisor of {self._name}")

    async def stop(self) -> None:
        """Ends the process and waits for it."""
        if self._watcher is not None:
            await end([self._watcher])
            self._watcher = None
        await self._end()

    async def _launch(self) -> None:
        command = await self._command()
        self._process = process = await spawn(
            command, self._log_file, death_signal=self._stop_signals[0][0], account=self._account
        )
        ended = asyncio.create_task(process.wait())
        ready = asyncio.ensure_future(self._ready())
        try:
            await asyncio.wait({ended, ready}, timeout=self._start_timeout, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return
            what = f"ended with {process.returncode}" if ended.done() else f"took over {self._start_timeout:g} s"
            raise EmbeddedError(
                f"{self._name} did not start: it {what}. The end of {self._log_file}:\n{tail(self._log_file)}"
            )
        finally:
            await end([ended, ready])

    async def _watch(self) -> None:
        delay = _FIRST_DELAY
        while True:
            started = time.monotonic()
            if self._process is not None:
                code = await self._process.wait()
                log.error(
                    "child process ended, restarting it", child=self._name, exit_code=code, log=str(self._log_file)
                )
            delay = _FIRST_DELAY if time.monotonic() - started > _STABLE else delay
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            try:
                await self._launch()
            except Exception as error:  # whatever it is, the next attempt may do better
                problem = str(error)
                log.error("child process does not start, trying again", child=self._name, error=problem)  # noqa: TRY400
                await self._end()
                self._process = None
            else:
                self.restarts += 1
                log.info("child process runs again", child=self._name, pid=self.pid)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        for number, patience in (*self._stop_signals, (signal.SIGKILL, 30.0)):
            if process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), patience)
                return
            log.warning("child process has not stopped yet", child=self._name, signal=number.name, waited=patience)


async def spawn(
    command: Sequence[str], log_file: Path, *, death_signal: signal.Signals, account: Account | None
) -> asyncio.subprocess.Process:
    """Start a command through ``launch.py``; its output is appended to ``log_file``."""
    uid, gid = (account.uid, account.gid) if account else (-1, -1)
    with _open_log(log_file) as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_LAUNCHER)),
            *map(str, (os.getpid(), death_signal.value, uid, gid)),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=child_environment(),
            start_new_session=True,
        )


def _open_log(file: Path) -> IO[bytes]:
    if file.exists() and file.stat().st_size > _LOG_LIMIT:
        file.replace(file.with_suffix(".log.1"))
    return os.fdopen(open_private(file, os.O_WRONLY), "ab")


def open_private(file: Path, flags: int) -> int:
    """Open or make a file to append to, readable by nobody else; a link, which could lead root anywhere, fails."""
    return os.open(file, flags | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


async def run(command: Sequence[str], log_file: Path, account: Account | None = None) -> None:
    """Run a command to its end. Raises EmbeddedError with its output when it fails."""
    process = await spawn(command, log_file, death_signal=signal.SIGKILL, account=account)
    try:
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code != 0:
        name = Path(command[0]).name
        raise EmbeddedError(f"{name} ended with {code}. The end of {log_file}:\n{tail(log_file)}")


def child_environment() -> Mapping[str, str]:
    """What a child sees: no secrets and nothing that changes how it works."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def tail(file: Path, lines: int = 20) -> str:
    """The last lines of a log file, without the credentials of addresses in them."""
    try:
        with file.open(errors="replace") as content:
            return mask_userinfo("".join(deque(content, maxlen=lines)).rstrip())
    except OSError as error:
        return f"({error})"
