"""Messages for whoever is connected, over core NATS. Nothing is stored: who is not subscribed misses it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import uuid
from collections import deque
from collections.abc import AsyncGenerator

from nats.aio.msg import Msg

from orisun_api import eventstore_pb2

from ..errors import InvalidArgument, OrisunError, ResourceExhausted, Unavailable
from .nats import NATS_ERRORS, Nats

PREFIX = "orisun.pubsub."

_LONGEST_SUBJECT = 255
_LONGEST_NAME = 255
_FORBIDDEN = frozenset("*>$")

#: What a subscriber may leave unread; beyond it its stream ends, since messages are never dropped silently.
MAX_MESSAGES = 10_000
MAX_BYTES = 16 * 1024 * 1024

_FLUSH_TIMEOUT = 2


class PubSub:
    """Publishes to and receives from subjects under ``orisun.pubsub.``, the only ones that a client can reach."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self._streams: set[_Stream] = set()
        self._stopping = False
        nats.on_change(self._nats_changed)

    async def publish(self, subject: str, data: str, metadata: str) -> None:
        """Sends a message; it has reached NATS when this returns. Raises InvalidArgument, Unavailable."""
        address = PREFIX + _checked(subject)
        message = eventstore_pb2.PubSubMessage(id=str(uuid.uuid4()), subject=subject, data=data, metadata=metadata)
        body = message.SerializeToString()
        connection = self._nats.connection
        if len(body) > connection.max_payload:
            raise InvalidArgument(f"the message has {len(body)} bytes; at most {connection.max_payload} can be sent")
        try:
            await connection.client.publish(address, body)
            await connection.answer(connection.client.flush(_FLUSH_TIMEOUT))
        except NATS_ERRORS as problem:
            raise Unavailable("NATS cannot be reached now; the message may not have been sent") from problem

    async def subscribe(self, subject: str, consumer_name: str) -> AsyncGenerator[bytes]:
        """Serialized ``orisun.PubSubMessage`` messages from now on, without end.

        Subscribers of one ``consumer_name`` share the messages. Raises InvalidArgument, Unavailable (NATS is away, the
        server stops) and ResourceExhausted (the subscriber left too much unread).
        """
        address = PREFIX + _checked(subject)
        queue = _queue_group(consumer_name)
        connection = self._nats.connection
        stream = _Stream()
        try:
            subscription = await connection.client.subscribe(address, queue=queue, cb=stream.receive)
            try:
                await connection.answer(connection.client.flush(_FLUSH_TIMEOUT))
                self._streams.add(stream)
                if self._stopping:
                    raise Unavailable("the server is shutting down; subscribe to another one")
                if connection.lost.is_set():
                    raise Unavailable("the connection to NATS was lost; subscribe again")
                while True:
                    yield await stream.next()
            finally:
                with contextlib.suppress(*NATS_ERRORS):
                    await subscription.unsubscribe()
        except OrisunError:
            raise
        except NATS_ERRORS as problem:
            raise Unavailable("the connection to NATS was lost; subscribe again") from problem
        finally:
            self._streams.discard(stream)

    @property
    def subscribed(self) -> int:
        """How many subscriptions there are."""
        return len(self._streams)

    async def stop(self) -> None:
        """Ends all subscriptions with Unavailable."""
        self._stopping = True
        for stream in self._streams:
            stream.end(Unavailable("the server is shutting down; subscribe again"))

    def _nats_changed(self) -> None:
        # what was sent meanwhile is missed, and a subscriber has to know
        for stream in self._streams:
            stream.end(Unavailable("the connection to NATS was lost; subscribe again"))


class _Stream:
    """The unread messages of one subscriber."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._something = asyncio.Event()
        self._ended: Exception | None = None

    async def receive(self, message: Msg) -> None:
        if len(self._messages) >= MAX_MESSAGES or self._bytes + len(message.data) > MAX_BYTES:
            self.end(ResourceExhausted("too many messages were left unread; subscribe again"))
        if self._ended is None:
            self._messages.append(message.data)
            self._bytes += len(message.data)
            self._something.set()

    def end(self, reason: Exception) -> None:
        self._ended = self._ended or reason
        self._something.set()

    async def next(self) -> bytes:
        while not self._messages:
            if self._ended is not None:
                raise self._ended
            self._something.clear()
            await self._something.wait()
        message = self._messages.popleft()
        self._bytes -= len(message)
        return message


def _checked(subject: str) -> str:
    if not subject:
        raise InvalidArgument("subject is required")
    if len(subject) > _LONGEST_SUBJECT:
        raise InvalidArgument(f"invalid subject: at most {_LONGEST_SUBJECT} characters")
    if not all(subject.split(".")):
        raise InvalidArgument(f'invalid subject "{subject}": an empty token')
    if any(char in _FORBIDDEN or char.isspace() or not char.isprintable() for char in subject):
        raise InvalidArgument(f'invalid subject "{subject}": no wildcards, spaces, control characters or "$"')
    return subject


def _queue_group(consumer_name: str) -> str:
    """The consumer's name as NATS can carry it."""
    if not consumer_name:
        raise InvalidArgument("consumer_name is required")
    if len(consumer_name) > _LONGEST_NAME:
        raise InvalidArgument(f"invalid consumer_name: at most {_LONGEST_NAME} characters")
    return base64.urlsafe_b64encode(consumer_name.encode()).decode().rstrip("=")
