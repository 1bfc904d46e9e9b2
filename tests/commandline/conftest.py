"""The real ``orisun`` in processes of its own, on one server for all of these tests."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import orisun
from orisun_server.settings import Settings
from tests.harness import ServerProcess

EXECUTABLE = str(Path(sys.executable).with_name("orisun"))
_numbers = itertools.count()


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Orisun:
    """Runs ``orisun`` as the administrator of a server, unless ``environ`` says otherwise."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    def environ(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")}
        own = {
            "ORISUN_SERVER": self.server.address,
            "ORISUN_CLIENT_USERNAME": "admin",
            "ORISUN_CLIENT_PASSWORD": "changeit",
        }
        merged = inherited | own | dict(changes or {})
        return {name: value for name, value in merged.items() if value}

    async def start(
        self, *arguments: str, environ: Mapping[str, str] | None = None, program: str = EXECUTABLE
    ) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environ(environ)
        )

    async def __call__(
        self, *arguments: str, given: str | None = None, environ: Mapping[str, str] | None = None
    ) -> Done:
        process = await self.start(*arguments, environ=environ)
        out, err = await asyncio.wait_for(process.communicate((given or "").encode()), 60)
        assert process.returncode is not None
        assert "Traceback" not in err.decode()
        return Done(process.returncode, out.decode(), err.decode())

    async def ok(self, *arguments: str, given: str | None = None, environ: Mapping[str, str] | None = None) -> Done:
        """Runs it and expects it to succeed."""
        done = await self(*arguments, given=given, environ=environ)
        assert done.code == 0, done
        return done


@pytest.fixture(scope="session")
async def cli_server(make_settings: Callable[..., Settings]) -> AsyncIterator[ServerProcess]:
    """``orisun serve``, with an admin page."""
    async with ServerProcess(make_settings("cli")) as process:
        yield process


@pytest.fixture(scope="session")
def cli(cli_server: ServerProcess) -> Orisun:
    """Runs ``orisun`` against that server."""
    return Orisun(cli_server)


@pytest.fixture
async def api(cli_server: ServerProcess) -> AsyncIterator[orisun.Client]:
    """The administrator's client of that server."""
    async with orisun.connect(cli_server.address, username="admin", password="changeit") as client:
        yield client


@pytest.fixture
async def name(api: orisun.Client) -> str:
    """The name of a new, empty boundary."""
    made = f"cli_{next(_numbers)}_{secrets.token_hex(3)}"
    await api.admin.create_boundary(made, schema=made)
    return made
