"""A command in a terminal, as a person types it: what it shows, and the keys that reach all of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

CTRL_C = b"\x03"

#: The status that a shell would see; death by signal 2 is -2, here 254.
_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
_COLOUR = re.compile(r"\x1b\[\d*m")


class Terminal:
    """``async with Terminal("make", "run")``: the command runs in the foreground of a terminal of its own."""

    def __init__(self, *command: str, environ: Mapping[str, str], directory: Path | None = None) -> None:
        self._command, self._environ, self._directory = command, dict(environ), directory
        self._raw = b""

    @property
    def raw(self) -> str:
        """Everything that it showed, with colours and a terminal's ends of lines."""
        return self._raw.decode(errors="replace")

    @property
    def shown(self) -> str:
        """Everything that it showed, as text."""
        return _COLOUR.sub("", self.raw).replace("\r\n", "\n")

    @property
    def family(self) -> list[psutil.Process]:
        """All processes in it."""
        return psutil.Process(self._process.pid).children(recursive=True)

    async def shows(self, text: str, timeout: float = 60.0) -> None:
        """Waits until it has shown a text. Raises AssertionError when it ends before."""
        async with asyncio.timeout(timeout):
            while text not in self.shown:
                assert await self._read(), f"it ended, and showed:\n{self.shown}"

    async def press(self, key: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(key)
        await self._process.stdin.drain()

    async def end(self, timeout: float = 60.0) -> int:
        """Waits until the command has ended by itself; its exit status, or minus the signal that ended it."""
        async with asyncio.timeout(timeout):
            while await self._read():
                pass
            status = await self._process.wait()
        return status - 256 if status > 127 else status

    async def _read(self) -> bool:
        assert self._process.stdout
        part = await self._process.stdout.read(65536)
        self._raw += part
        return bool(part)

    async def __aenter__(self) -> Terminal:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _TERMINAL, *self._command), env=self._environ, cwd=self._directory,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            for process in (*self.family, psutil.Process(self._process.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        await self._process.communicate()
