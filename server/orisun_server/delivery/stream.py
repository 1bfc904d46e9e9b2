"""The JetStream stream of a boundary: its limits, its messages, and publishing to it in order.

A message is one event: its body is a serialized ``orisun.Event``, its headers tell its position and that of the event
before it, so that a hole in a sequence of messages is provable. An event that NATS's payload limit does not let through
is a pointer: headers alone.

Streams are disposable (design.md, 5): PostgreSQL holds the truth, and losing one loses nothing.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import structlog
from nats.js import api
from nats.js.errors import APIError, NotFoundError

from ..core.event import Event
from ..core.position import Position
from ..errors import OrisunError
from ..observation.tracing import TRACEPARENT
from ..settings import Settings
from .codec import encode_events
from .nats import Connection, frame

log = structlog.get_logger(__name__)

POSITION = "Orisun-Position"
PREVIOUS = "Orisun-Previous"
POINTER = "Orisun-Pointer"
_MESSAGE_ID = api.Header.MSG_ID.value
_EXPECTED = api.Header.EXPECTED_LAST_SEQUENCE.value
_INCARNATION = "orisun_incarnation"

#: What order and a crash need is the expected sequence; the message id serves consumers of other make. NATS keeps ids
#: in memory for this many seconds.
_DUPLICATE_WINDOW = 10.0

#: Bytes of a message's headers, at most: a message id of 255 characters takes 3,060 in UTF-8, percent-encoded.
_HEADER_ROOM = 4096

#: Seconds after which a cluster is asked again for the copies of a stream that it had no room for.
_ASK_AGAIN = 2.0

_ACK_TIMEOUT = 5.0
#: Messages that are handed to the connection at once.
_FRAMES = 100
_NO_PEERS, _WRONG_LAST_SEQUENCE = 10005, 10071


_NONE: Mapping[str, str] = {}
_Change = Callable[[api.StreamConfig], Awaitable[api.StreamInfo]]


class NotTheNextMessage(OrisunError):
    """The stream does not end where the publisher left it."""


class LastMessage(NamedTuple):
    """The end of a stream: what it holds, if it tells, and the sequence that the next message expects."""

    sequence: int
    position: Position | None
    message_id: str


def message_id(prepare: int, event_id: str) -> str:
    """``<prepare>-<event_id>``, with what a header cannot carry percent-encoded."""
    if not (event_id.isascii() and event_id.isprintable() and " " not in event_id and "%" not in event_id):
        event_id = quote(event_id, safe="")
    return f"{prepare}-{event_id}"


def parse_position(text: str) -> Position:
    """A position as headers write it: ``<commit>,<prepare>``; raises ValueError."""
    commit, _, prepare = text.partition(",")
    return Position(int(commit), int(prepare))


class EventStream:
    """A boundary's stream, as its publisher sees it over one connection."""

    def __init__(self, connection: Connection, boundary: str, settings: Settings) -> None:
        self._connection, self._boundary, self._settings = connection, boundary, settings
        self.name, self._subject = connection.stream_prefix + boundary, connection.subject_prefix + boundary
        self._sequence = 0
        self._lacks_copies, self._ask_again_at = False, 0.0
        self._max_body = connection.max_payload - _HEADER_ROOM
        if settings.nats_event_stream_max_bytes > 0:
            self._max_body = min(self._max_body, settings.nats_event_stream_max_bytes // 2)

    async def open(self) -> LastMessage | None:
        """Makes the stream, or brings its limits up to date; its last message, None while it holds none."""
        jetstream = self._connection.jetstream
        wanted = self._config()
        try:
            info = await self._connection.answer(jetstream.stream_info(self.name))
        except NotFoundError:
            info = await self._create(wanted)
        if info.config.storage != wanted.storage:
            await self.delete()
            info = await self._create(wanted)
        elif _limits(info.config) != _limits(wanted):
            wanted.metadata = info.config.metadata
            info = await self._replicated(jetstream.update_stream, wanted)
        else:
            self._count_copies(info)
        self._sequence = info.state.last_seq
        if not info.state.messages:
            return None
        try:
            message = await self._connection.answer(jetstream.get_msg(self.name, info.state.last_seq))
        except NotFoundError:  # it aged out in between
            return None
        return _last_message(info.state.last_seq, message.headers or {})

    async def complete(self) -> None:
        """Asks for copies that are missing, now and then; a cluster that forms has room for one only.

        A stream with one copy is gone for as long as its server is.
        """
        if not self._lacks_copies or time.monotonic() < self._ask_again_at:
            return
        jetstream, wanted = self._connection.jetstream, self._config()
        wanted.metadata = (await self._connection.answer(jetstream.stream_info(self.name))).config.metadata
        await self._replicated(jetstream.update_stream, wanted)

    async def delete(self) -> None:
        """Deletes the stream and all that reads from it."""
        await self._connection.answer(self._connection.jetstream.delete_stream(self.name))

    async def publish(self, events: Sequence[Event], previous: Position, origins: Mapping[str, str] = _NONE) -> None:
        """Appends events to the stream, in order; ``previous`` is the position of the event before them.

        ``origins`` are the ``traceparent`` headers of some of them, by event id.

        Every message demands the sequence of the one before it, so that the acknowledgement of the last one speaks for
        all: had one been lost or refused, each after it would have been refused too (unless somebody else's message
        took its place; subscriptions then see a hole). Raises NotTheNextMessage, and any of NATS_ERRORS; some of the
        events may be in the stream after that.
        """
        sequence = self._sequence
        last = len(events) - 1
        before = f"{previous.commit},{previous.prepare}"
        frames: list[bytes] = []
        for number, (event, body) in enumerate(zip(events, encode_events(events), strict=True)):
            position = f"{event.commit},{event.prepare}"
            headers = {
                POSITION: position,
                PREVIOUS: before,
                _MESSAGE_ID: message_id(event.prepare, event.event_id),
                _EXPECTED: str(sequence + number),
            }
            if event.event_id in origins:
                headers[TRACEPARENT] = origins[event.event_id]
            carried = body
            if len(body) > self._max_body:
                headers[POINTER], carried = "1", b""
            if number == last:
                await self._connection.send(frames)
                await self._publish_last(carried, headers, sequence + len(events))
                break
            frames.append(frame(self._subject, headers, carried))
            before = position
            if len(frames) == _FRAMES:
                await self._connection.send(frames)
                frames = []
                await asyncio.sleep(0)  # appends and reads go on meanwhile
        self._sequence = sequence + len(events)

    async def _publish_last(self, body: bytes, headers: dict[str, str], sequence: int) -> None:
        request = self._connection.jetstream.publish(self._subject, body, timeout=_ACK_TIMEOUT, headers=headers)
        try:
            acknowledgement = await self._connection.answer(request)
        except APIError as problem:
            if problem.err_code != _WRONG_LAST_SEQUENCE:
                raise
            raise NotTheNextMessage from problem
        if acknowledgement.seq != sequence or acknowledgement.duplicate:
            raise NotTheNextMessage(f"NATS stored it at {acknowledgement.seq} instead of {sequence}")

    async def _create(self, wanted: api.StreamConfig) -> api.StreamInfo:
        # tells this stream from another one of its name, for people who look at it
        wanted.metadata = {_INCARNATION: uuid.uuid4().hex}
        return await self._replicated(self._connection.jetstream.add_stream, wanted)

    async def _replicated(self, change: _Change, wanted: api.StreamConfig) -> api.StreamInfo:
        """Applies a configuration; with one copy while the cluster has no room for more."""
        try:
            info = await self._connection.answer(change(wanted))
        except APIError as problem:
            if problem.err_code != _NO_PEERS or wanted.num_replicas == 1:
                raise
            if not self._lacks_copies:
                log.warning("too few NATS servers for the copies of a stream; it has one now", boundary=self._boundary)
            wanted.num_replicas = 1
            info = await self._connection.answer(change(wanted))
        self._count_copies(info)
        return info

    def _count_copies(self, info: api.StreamInfo) -> None:
        self._lacks_copies = (info.config.num_replicas or 1) < self._settings.stream_replicas
        self._ask_again_at = time.monotonic() + _ASK_AGAIN

    def _config(self) -> api.StreamConfig:
        settings = self._settings
        age = settings.nats_event_stream_max_age
        return api.StreamConfig(
            name=self.name,
            subjects=[self._subject],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            storage=api.StorageType(settings.nats_event_stream_storage),
            max_bytes=settings.nats_event_stream_max_bytes or -1,
            max_msgs=settings.nats_event_stream_max_msgs or -1,
            max_age=age,
            num_replicas=settings.stream_replicas,
            duplicate_window=min(age, _DUPLICATE_WINDOW) if age else _DUPLICATE_WINDOW,
        )


def _limits(config: api.StreamConfig) -> tuple[object, ...]:
    """What of a stream follows from the settings and can be changed while it is in use."""
    return (config.max_bytes, config.max_msgs, config.max_age, config.num_replicas, config.duplicate_window)


def _last_message(sequence: int, headers: Mapping[str, str]) -> LastMessage:
    try:
        position: Position | None = parse_position(headers[POSITION])
    except (KeyError, ValueError):
        position = None  # not of ours
    return LastMessage(sequence, position, headers.get(_MESSAGE_ID, ""))
