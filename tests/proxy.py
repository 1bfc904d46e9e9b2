"""A network between a server and PostgreSQL that can be frozen and cut."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

from orisun_server.settings import Settings


class PostgresProxy:
    """Passes bytes on to the PostgreSQL of ``settings``; ``self.settings`` names the proxy instead.

    While frozen nothing passes, in either direction, and nothing is lost: what a stopped process or a partitioned
    network looks like. Use as ``async with``.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = tempfile.mkdtemp(prefix="orisun-proxy-", dir="/tmp")
        self._to = Path(settings.pg_host) / f".s.PGSQL.{settings.pg_port}"
        self._flowing = asyncio.Event()
        self._flowing.set()
        #: Seconds that a new connection waits before it gets through.
        self.login_takes = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.settings = settings.model_copy(update={"pg_host": self._directory})

    def freeze(self) -> None:
        """Let nothing pass."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything pass again, also what was sent meanwhile."""
        self._flowing.set()

    def strand(self) -> None:
        """Let nothing pass any more on the connections that are open; new ones are not concerned."""
        self.freeze()
        self._flowing = asyncio.Event()
        self.thaw()

    async def cut(self) -> None:
        """Drop every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        flowing = self._flowing
        try:
            await asyncio.sleep(self.login_takes)
            with contextlib.suppress(OSError):
                to_reader, to_writer = await asyncio.open_unix_connection(str(self._to))
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pump(reader, to_writer, flowing))
                        group.create_task(self._pump(to_reader, writer, flowing))
                finally:
                    to_writer.transport.abort()
        except* OSError:
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        while data := await source.read(65536):
            await flowing.wait()
            sink.write(data)
            await sink.drain()
        await flowing.wait()
        sink.close()

    async def stop(self) -> None:
        """Drop every connection, and let nobody connect."""
        self._server.close()
        await self.cut()

    async def start(self) -> None:
        """Let everybody connect."""
        path = Path(self._directory) / f".s.PGSQL.{self.settings.pg_port}"
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(path))

    async def __aenter__(self) -> PostgresProxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
