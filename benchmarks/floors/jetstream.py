"""The floor of the publisher: nats-py's publish_async, messages ready made."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from nats.js.errors import NotFoundError

from orisun_server.delivery.nats import Connection
from orisun_server.delivery.stream import EventStream
from orisun_server.settings import Settings

_NAME = "bench_floor"


class Message(NamedTuple):
    """What one publish sends."""

    body: bytes
    headers: dict[str, str]


async def publish_all(connection: Connection, settings: Settings, messages: list[Message]) -> float:
    """Seconds until NATS has acknowledged all messages, in a fresh stream of the publisher's configuration."""
    stream = EventStream(connection, _NAME, settings)
    try:
        await stream.delete()
    except NotFoundError:
        pass
    await stream.open()
    subject, jetstream = connection.subject_prefix + _NAME, connection.jetstream
    began = time.perf_counter()
    acknowledged = [await jetstream.publish_async(subject, body, headers=headers) for body, headers in messages]
    await asyncio.gather(*acknowledged)
    seconds = time.perf_counter() - began
    await stream.delete()
    return seconds
