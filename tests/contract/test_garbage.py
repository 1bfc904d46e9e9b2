"""Bytes on the port that are no gRPC, no HTTP/2, or too much of it: the server lives and serves on."""

from __future__ import annotations

import asyncio
import contextlib
import random

import psutil
import pytest

from tests.contract.fuzzing import Target
from tests.harness import ADMIN, eventually

MIB = 1024 * 1024

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
HELLO = PREFACE + b"\0\0\0\x04\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(*extra: tuple[str, str], path: str = "/orisun.EventStore/Ping", **changed: str | None) -> bytes:
    """A header block of literals: a good request with some headers changed, or left out (None)."""
    wanted: dict[str, str | None] = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers",
        "content-type": "application/grpc", "authorization": ADMIN[0][1],
    }  # fmt: skip
    wanted |= {name.replace("_", "-").replace("p-", ":", 1) if name[:2] == "p_" else name.replace("_", "-"): value
               for name, value in changed.items()}  # fmt: skip
    pairs = [(name, value) for name, value in wanted.items() if value is not None] + list(extra)
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in pairs
    )


def request(stream: int, body: bytes, block: bytes | None = None) -> bytes:
    block = headers() if block is None else block
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


chance = random.Random(7)
EMPTY = b"\0\0\0\0\0"
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "http/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + chance.randbytes(190),
    "noise": chance.randbytes(5000),
    "half a preface": PREFACE[:10],
    "noise after the preface": PREFACE + chance.randbytes(5000),
    "noise as frames": HELLO + b"".join(
        frame(chance.randrange(256), chance.randrange(256), chance.randrange(1 << 31), chance.randbytes(50))
        for _ in range(50)
    ),
    "a frame of 16 MB": HELLO + frame(DATA, 0, 1, b"x" * 100, length=(1 << 24) - 1),
    "settings of a wrong size": PREFACE + frame(SETTINGS, 0, 0, b"12345"),
    "settings out of range": PREFACE + frame(SETTINGS, 0, 0, b"\0\x04\xff\xff\xff\xff"),
    "settings on a stream": HELLO + frame(SETTINGS, 0, 1),
    "headers that are none": HELLO + frame(HEADERS, END_HEADERS, 1, chance.randbytes(200)),
    "headers without end": HELLO + frame(HEADERS, 0, 1, headers())
    + frame(CONTINUATION, 0, 1, b"\0\x01a\x01b" * 3000) * 100,
    "a body without headers": HELLO + frame(DATA, END_STREAM, 1, EMPTY),
    "an even stream": HELLO + request(2, EMPTY),
    "a stream twice": HELLO + request(1, EMPTY) * 2,
    "a window of nothing": HELLO + frame(WINDOW, 0, 0, b"\0\0\0\0"),
    "too wide a window": HELLO + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "a stream that depends on itself": HELLO + frame(PRIORITY, 0, 1, b"\0\0\0\x01\x10"),
    "a push": HELLO + frame(PUSH, END_HEADERS, 1, b"\0\0\0\x02" + headers()),
    "goodbye": HELLO + frame(GOAWAY, 0, 0, b"\0" * 8) + request(1, EMPTY),
    "many pings": HELLO + frame(PING, 0, 0, b"12345678") * 5000,
    "many settings": PREFACE + frame(SETTINGS, 0, 0) * 5000,
    "many streams, reset at once": HELLO + b"".join(
        frame(HEADERS, END_HEADERS, stream, headers()) + frame(RESET, 0, stream, b"\0\0\0\x08")
        for stream in range(1, 4001, 2)
    ),
    "many streams, left open": HELLO + b"".join(
        frame(HEADERS, END_HEADERS, stream, headers()) for stream in range(1, 2001, 2)
    ),
    "no message": HELLO + request(1, b""),
    "a message cut short": HELLO + request(1, b"\0\0\0\0\x64abc"),
    "a message that says 4 GB": HELLO + request(1, b"\0\xff\xff\xff\xff" + b"x" * 1000),
    "a message called compressed": HELLO + request(1, b"\x01\0\0\0\x03abc"),
    "an unknown compression": HELLO + request(1, b"\x01\0\0\0\x03abc", headers(("grpc-encoding", "nothing"))),
    "broken gzip": HELLO + request(1, b"\x01\0\0\0\x03abc", headers(("grpc-encoding", "gzip"))),
    "two messages": HELLO + request(1, EMPTY * 2),
    "another content type": HELLO + request(1, EMPTY, headers(content_type="text/html")),
    "no content type": HELLO + request(1, EMPTY, headers(content_type=None)),
    "GET": HELLO + request(1, EMPTY, headers(p_method="GET")),
    "no path": HELLO + request(1, EMPTY, headers(p_path=None)),
    "an empty path": HELLO + request(1, EMPTY, headers(p_path="")),
    "a broken deadline": HELLO + request(1, EMPTY, headers(("grpc-timeout", "soon"))),
    "a deadline in the past": HELLO + request(1, EMPTY, headers(("grpc-timeout", "0n"))),
    "headers in upper case": HELLO + request(1, EMPTY, headers(("X-UPPER", "x"))),
    "bytes in a header": HELLO + request(1, EMPTY, headers() + b"\0\x01x\x04\xff\xfe\x00\x0a"),
    "broken base64 in a header": HELLO + request(1, EMPTY, headers(("x-bin", "%%%"))),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
async def test_no_bytes_on_the_port_harm_it(target: Target, case: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.process.port)
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(BROKEN[case])
        async with asyncio.timeout(0.05):
            await writer.drain()
            while await reader.read(65536):
                pass
    await target.is_well()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_good_request_made_by_hand_is_answered(target: Target) -> None:
    """So that the broken ones are broken where they are meant to be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.process.port)
    writer.write(HELLO + request(1, EMPTY))
    answer = b""
    async with asyncio.timeout(30):
        while b"grpc-status" not in answer and b"\x9a\xca\xc8\xb2\x12\x34\xda\x8f" not in answer:  # plain, or Huffman
            answer += await reader.read(65536)
    writer.close()
    await writer.wait_closed()


async def test_connections_that_come_and_go_leave_nothing(target: Target) -> None:
    server = psutil.Process(target.process.pid)

    async def visit(said: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", target.process.port)
        writer.write(said)
        await asyncio.sleep(0.01)
        writer.transport.abort()

    cases = [said for said in BROKEN.values() if len(said) < 10_000]
    await asyncio.gather(*(visit(said) for said in cases))
    await target.is_well()
    files, memory = server.num_fds(), server.memory_info().rss
    for _ in range(10):
        await asyncio.gather(*(visit(said) for said in cases))
    await target.is_well()
    await eventually(lambda: server.num_fds() <= files + 10, message="closed connections")
    assert server.memory_info().rss - memory < 50 * MIB
