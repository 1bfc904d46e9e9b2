"""The connection to NATS, and how its end is noticed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from orisun_server.delivery.nats import Nats, frame
from tests.integration.nodes import nats_server

#: More than the sockets of both sides hold.
MUCH = 16 * 1024 * 1024


@pytest.mark.parametrize("hangs", [False, True], ids=["reset", "hangs"])
async def test_a_connection_that_ends_while_much_is_unsent_is_followed_by_another(directory: Path, hangs: bool) -> None:
    """nats-py tells nobody of its end: to send what is unsent fails, or takes for ever, where it would tell."""
    async with nats_server(directory) as server:
        nats = Nats([server.url])
        await nats.start()
        try:
            connection = await asyncio.wait_for(nats.wait_connected(), 30)
            server.signal(signal.SIGSTOP)
            message = frame("anything", {}, bytes(512 * 1024))
            while connection.client.pending_data_size < MUCH:
                await connection.send([message])
                await asyncio.sleep(0)
            if hangs:
                # its pings end it, sooner than in the server
                connection.client.options["ping_interval"] = 0.1
            else:
                await server.kill()
            await asyncio.wait_for(connection.lost.wait(), 30)
            await server.kill()
            await server.start()
            assert await asyncio.wait_for(nats.wait_connected(), 30) is not connection
        finally:
            await nats.stop()
