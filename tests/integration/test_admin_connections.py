"""Connections of the admin port that somebody keeps: clients that do not read, and too many of one address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import httpx
import psutil
import pytest

from orisun_server.admin.web import http
from orisun_server.admin.web.context import STATIC
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.integration.web import running

SCRIPT = b"GET /static/x/htmx.min.js HTTP/1.1\r\nhost: x\r\n\r\n"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def connect(port: int, *, room: int) -> socket.socket:
    """A connection that takes about so many bytes at a time."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.connect(("127.0.0.1", port))
    return client


def open_on(port: int) -> int:
    found = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)


async def test_clients_that_do_not_read_are_let_go(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_PATIENCE", 0.5)
    monkeypatch.setattr(http, "_LOOK", 0.05)
    async with running(make_settings()) as app:
        port = port_of(app.page_address)
        clients = [connect(port, room=2048) for _ in range(5)]
        for client in clients:
            client.sendall(SCRIPT * 300)
        await eventually(lambda: open_on(port) == len(clients))
        await eventually(lambda: open_on(port) == 0)
        for client in clients:
            client.close()


async def test_a_slow_client_that_reads_gets_everything(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_PATIENCE", 0.5)
    monkeypatch.setattr(http, "_LOOK", 0.05)
    async with running(make_settings()) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(app.page_address), limit=4096)
        writer.write(SCRIPT * 99 + SCRIPT.replace(b"host: x", b"host: x\r\nconnection: close"))
        taken = 0
        while piece := await reader.read(64 * 1024):
            taken += len(piece)
            await asyncio.sleep(0)
        assert taken > 100 * len(STATIC["htmx.min.js"])
        writer.close()


@pytest.mark.parametrize("trusted", [False, True])
async def test_one_address_cannot_take_all_connections(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr(http, "_MOST_OF_PEER", 3)
    proxies = "127.0.0.1" if trusted else ""
    async with running(make_settings(trusted_proxies=proxies)) as app, contextlib.AsyncExitStack() as stack:

        async def asked(path: str, local: str = "127.0.0.1") -> int:
            transport = httpx.AsyncHTTPTransport(local_address=local)
            client = httpx.AsyncClient(base_url=app.page_address, transport=transport)
            return (await (await stack.enter_async_context(client)).get(path)).status_code

        assert [await asked("/sign-in") for _ in range(3)] == [200] * 3
        assert await asked("/sign-in") == (200 if trusted else 503)
        assert await asked("/healthz") == 200
        assert await asked("/sign-in", "127.0.0.2") == 200


async def test_connections_that_ask_for_nothing_take_no_room_of_others(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MOST_OF_PEER", 3)
    monkeypatch.setattr(http, "_MOST_CONNECTIONS", 6)
    async with running(make_settings()) as app, contextlib.AsyncExitStack() as stack:
        port = port_of(app.page_address)
        for _ in range(10):
            idle = stack.enter_context(contextlib.closing(socket.socket()))
            idle.bind(("127.0.0.9", 0))
            idle.connect(("127.0.0.1", port))
        await eventually(lambda: open_on(port) == 10)
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(base_url=app.page_address, transport=transport) as client:
            assert (await client.get("/sign-in")).status_code == 200
