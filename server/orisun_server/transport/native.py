"""The transport whose HTTP/2 runs in Rust (pygrpc-native), made to bear many slow clients."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import time
from itertools import chain
from typing import Any

import grpc

_MODULE = "pygrpc_native.aio"
_RESULTS = ("STREAM_CLOSED", "STREAM_FULL")
#: Seconds for which a stream that is full is tried again at every turn of the loop.
_SPIN = 0.002
#: Seconds between later tries: the first pause, doubled up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
#: Bytes of a call's headers: beyond the first RESOURCE_EXHAUSTED, beyond the second no call of gRPC any more.
MAX_HEADER_BYTES, ABSOLUTE_MAX_HEADER_BYTES = 16 * 1024, 64 * 1024
#: Seconds that the last answers get to be written before connections are closed.
_LINGER = 0.25
#: Threads that write to connections: one for two processors, at most two, since Python gives them no more to do. With
#: more of them than processors are free each message of a stream wakes another one.
_IO_THREADS = min(2, max(1, (os.cpu_count() or 1) // 2))


def is_installed() -> bool:
    return importlib.util.find_spec("pygrpc_native") is not None


async def write_all(context: Any, messages: list[bytes]) -> None:
    """Writes serialized messages of a stream; the library's way for each would cost as much as to send it."""
    await context.write(messages)


def server(options: list[tuple[str, Any]]) -> grpc.aio.Server:
    """A server like ``grpc.aio.server()``; it has one port and no TLS."""
    module = importlib.import_module(_MODULE)
    options = [*options, ("grpc.absolute_max_metadata_size", ABSOLUTE_MAX_HEADER_BYTES)]
    closed, full = (getattr(importlib.import_module("pygrpc_native._native"), name) for name in _RESULTS)

    class Server(module.Server):  # type: ignore[misc,name-defined]
        def _request(self, call: Any, payload: bytes) -> tuple[bool, Any]:
            """Decodes a request, if its headers are not too large.

            HTTP/2 itself refuses headers beyond ABSOLUTE_MAX_HEADER_BYTES with 431, which is no status of gRPC.
            """
            if sum(map(len, chain.from_iterable(call.metadata))) > MAX_HEADER_BYTES:
                code: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
                self._front.fail(call.call_id, code, f"the headers have more than {MAX_HEADER_BYTES} bytes")
                return False, None
            decoded: tuple[bool, Any] = super()._request(call, payload)
            return decoded

        async def _send(self, call: Any, context: Any, response: Any) -> bool:
            """Sends a message of a stream, or a list of serialized ones (``write_all``)."""
            messages = response
            if not isinstance(response, list):
                data = self._encode(call, context, response)
                if data is None:
                    return False
                messages = (data,)
            context._initial_sent = True
            send, call_id = self._front.stream_try_send, call.call_id
            for data in messages:
                sent = send(call_id, data)
                if sent == full:
                    sent = await self._send_to_slow(call, data)
                if sent == closed:
                    return False
            return True

        async def _send_to_slow(self, call: Any, data: bytes) -> Any:
            """The library waits for a slow client in a thread of the loop's default executor, of which there are a few:
            a handful of slow subscribers would stall all others, and the stop of the server. This waits without one.
            """
            began, pause = time.monotonic(), 0.0
            while (sent := self._front.stream_try_send(call.call_id, data)) == full:
                # a client that reads takes its messages within microseconds: only one that does not is waited for
                if not pause and not getattr(call, "is_slow", False) and time.monotonic() - began < _SPIN:
                    await asyncio.sleep(0)
                    continue
                pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
                await asyncio.sleep(pause)
            call.is_slow = pause > 4 * _FIRST_PAUSE
            return sent

        async def stop(self, grace: float | None) -> None:
            """Finishes calls for ``grace`` seconds at most; whoever asks for it refuses new ones meanwhile.

            The library closes connections when the handlers have returned, also those that it still writes answers to.
            """
            tasks = [call.task for call in self._calls.values() if call.task is not None]
            if grace and tasks:
                await asyncio.wait(tasks, timeout=grace)
                await asyncio.sleep(_LINGER)
            await super().stop(None)

    made: grpc.aio.Server = Server(options=options, io_threads=_IO_THREADS)
    return made
