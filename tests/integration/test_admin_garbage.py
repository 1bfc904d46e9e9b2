"""Bytes that are no request, or two at once, on the admin port: that connection ends, and the server serves on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import httpx
import psutil
import pytest

from orisun_server.app import App
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.integration.web import running

HOST = b"host: localhost\r\n"
POST = b"POST /sign-in HTTP/1.1\r\n" + HOST
GARBAGE = {
    "nothing": b"",
    "noise": random.Random(1).randbytes(4_000),
    "zeros": bytes(4_000),
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "an unknown version": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "a bare line feed": b"GET / HTTP/1.1\nhost: x\n\n",
    "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"x-a: 1\r\n b: 2\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"cookie: a\0b\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
    "a header that is no ASCII": b"GET / HTTP/1.1\r\n" + HOST + b"x-\xff: \xfe\r\n\r\n",
    "two lengths": POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "a negative length": POST + b"content-length: -1\r\n\r\n",
    "an endless length": POST + b"content-length: 99999999999999999999999\r\n\r\n",
    "length and chunks": POST
    + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /audit HTTP/1.1\r\n\r\n",
    "chunks that are none": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "an impossible chunk": POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    "an unknown encoding": POST + b"transfer-encoding: gzip, chunked\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "an absolute target": b"GET http://elsewhere/audit HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT elsewhere:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "any method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a hundred at once": (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 100,
}


@pytest.fixture(scope="module")
async def app(make_settings: Callable[..., Settings]) -> AsyncIterator[App]:
    async with running(make_settings()) as app:
        yield app


@pytest.mark.parametrize("case", GARBAGE)
async def test_garbage(app: App, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = int(app.page_address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GARBAGE[case])
    writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    # told what is wrong, sent to sign in, or nothing; what is smuggled behind is no request of its own
    assert set(statuses) <= {b"200", b"303", b"400", b"401", b"404", b"405"}, answer[:300]
    assert len(statuses) <= 1 or case == "a hundred at once"
    async with httpx.AsyncClient(base_url=app.page_address) as client:
        assert (await client.get("/healthz")).text == "ok\n"
    assert "Traceback" not in "".join(capsys.readouterr())

    def open_on_the_server() -> list[object]:
        found = psutil.Process().net_connections("tcp")
        return [one for one in found if one.laddr.port == port and one.status != psutil.CONN_LISTEN]

    await eventually(lambda: not open_on_the_server())
