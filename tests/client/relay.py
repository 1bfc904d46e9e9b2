"""A network between clients and a server that counts the rpcs."""

from __future__ import annotations

import asyncio
import contextlib

#: What a connection of HTTP/2 begins with, and every frame (RFC 9113, 3.4 and 4.1).
_PREFACE, _HEAD = 24, 9
_HEADERS = 1


class Relay:
    """Passes bytes on to the server at ``server``; ``address`` names the relay instead. Use as ``async with``."""

    def __init__(self, server: str) -> None:
        self._host, _, self._port = server.rpartition(":")
        self._tasks: set[asyncio.Task[None]] = set()
        #: How many rpcs clients have begun: each begins with a frame of headers, and sends no other one.
        self.rpcs = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            to_reader, to_writer = await asyncio.open_connection(self._host, int(self._port))
            there = asyncio.create_task(self._count(reader, to_writer))
            back = asyncio.create_task(self._pass(to_reader, writer))
            try:
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
                to_writer.transport.abort()
        writer.transport.abort()
        self._tasks.discard(task)

    async def _count(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        sink.write(await source.readexactly(_PREFACE))
        while True:
            head = await source.readexactly(_HEAD)
            self.rpcs += head[3] == _HEADERS
            sink.write(head + await source.readexactly(int.from_bytes(head[:3])))
            await sink.drain()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
