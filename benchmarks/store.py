"""The measured server: ``orisun serve`` as a process of its own, with PostgreSQL and NATS embedded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time

import psutil

from orisun_server.embedded.postgres import PostgresAddress, running_address

from .client import Client, connected, is_serving
from .measure import BenchError
from .parts import Directory
from .processes import end, free_port, spawn, tail


class Store:
    """``async with Store(directory, "native")``; it may follow another one on the same directory."""

    def __init__(self, directory: Directory, transport: str) -> None:
        self._directory, self.transport = directory, transport
        self._log = directory.log(f"server-{transport}")
        self.address = f"127.0.0.1:{free_port()}"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Store:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await end(self._process)
            self._process = None

    async def _start(self) -> None:
        host, _, port = self.address.rpartition(":")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")} | {
            "ORISUN_DATA_DIR": str(self._directory.data),
            "ORISUN_NATS_STORE_DIR": str(self._directory.nats),
            "ORISUN_NATS_PORT": str(free_port()),
            "ORISUN_GRPC_HOST": host,
            "ORISUN_GRPC_PORT": port,
            "ORISUN_GRPC_TRANSPORT": self.transport,
            "ORISUN_ADMIN_PORT": str(free_port()),
            "ORISUN_LOGGING_FORMAT": "json",
        }
        command = [sys.executable, "-m", "orisun", "serve"]
        self._process = await spawn(command, output=self._log, environ=environ, cwd=self._directory.path)
        deadline = time.monotonic() + 120
        while not await is_serving(self.address):
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise BenchError(f"the server did not start; it printed:\n{tail(self._log)}")
            await asyncio.sleep(0.1)

    @property
    def pid(self) -> int:
        """The server's Python process."""
        assert self._process is not None
        return self._process.pid

    @property
    def memory(self) -> float:
        """MiB resident of the server's Python process; of PostgreSQL and NATS nothing."""
        try:
            return float(psutil.Process(self.pid).memory_info().rss) / 2**20
        except psutil.NoSuchProcess:
            raise BenchError(f"the server is gone; it printed:\n{tail(self._log)}") from None

    @property
    def postgres(self) -> PostgresAddress:
        """Where the embedded PostgreSQL listens."""
        address = running_address(self._directory.postgres)
        if address is None:
            raise BenchError("the embedded PostgreSQL does not run")
        return address

    def client(self, connections: int = 1) -> contextlib.AbstractAsyncContextManager[Client]:
        """A client with that many connections."""
        return connected(self.address, connections)
