"""The connection to NATS, and how its end is noticed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from orisun_server.delivery.nats import Nats, frame
from tests.integration.nodes import nats_server

#: More than the sockets of both sides hold.
MUCH = 16 * 1024 * 1024


async def test_a_connection_that_is_reset_while_much_is_unsent_is_followed_by_another(directory: Path) -> None:
    """nats-py tells nobody of its end: what is unsent cannot be sent, and that is an error where it would tell."""
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
            await server.kill()
            await asyncio.wait_for(connection.lost.wait(), 30)
            await server.start()
            assert await asyncio.wait_for(nats.wait_connected(), 30) is not connection
        finally:
            await nats.stop()
