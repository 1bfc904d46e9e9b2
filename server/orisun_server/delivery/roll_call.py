"""Where subscriptions of other servers stand: asked over NATS when somebody looks, kept nowhere.

Who does not reach NATS neither asks nor answers; then only the server's own subscriptions are known.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
import structlog
from nats.aio.msg import Msg

from ..core.criteria import Query
from ..core.position import Position
from ..tasks import end
from .nats import NATS_ERRORS, Connection, Nats
from .subscription import Subscriptions

log = structlog.get_logger(__name__)

_SUBJECT = "orisun.subscribers."
#: Seconds that answers get.
_PATIENCE = 0.4
#: Criteria, tags of one and characters of a value that are told; an answer has to fit into a message of NATS.
_CRITERIA, _TAGS, _CHARACTERS = 5, 10, 100

#: Boundary and name.
_Key = tuple[str, str]


class Standing(NamedTuple):
    """A subscription, on whichever server."""

    boundary: str
    name: str
    commit: int
    prepare: int
    live: bool
    #: Criteria as lists of keys and values, the first few of them; empty for the whole boundary.
    criteria: list[list[tuple[str, str]]]

    @property
    def position(self) -> Position:
        return Position(self.commit, self.prepare)


class RollCall:
    """Answers for this server's subscriptions, and asks for those of all."""

    def __init__(self, nats: Nats, subscriptions: Subscriptions) -> None:
        self._nats, self._subscriptions, self._subject = nats, subscriptions, _SUBJECT + nats.store
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answers from now on, whenever there is a connection."""
        self._task = asyncio.create_task(self._listen(), name="roll-call")

    async def stop(self) -> None:
        if self._task is not None:
            await end([self._task])

    async def ask(self, wanted: Sequence[_Key]) -> dict[_Key, Standing]:
        """Those of the subscriptions that their server told of in time; this server's own always."""
        found = {(one.boundary, one.name): one for one in self._standing(set(wanted))}
        missing = [key for key in wanted if key not in found]
        if missing:
            with contextlib.suppress(*NATS_ERRORS):
                await self._ask_others(missing, found)
        return found

    async def _ask_others(self, missing: list[_Key], found: dict[_Key, Standing]) -> None:
        client = self._nats.connection.client
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        try:
            await client.publish(self._subject, msgspec.json.encode(missing), reply=inbox)
            until = time.monotonic() + _PATIENCE
            while any(key not in found for key in missing) and (left := until - time.monotonic()) > 0:
                answer = await answers.next_msg(timeout=left)
                with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                    for one in msgspec.json.decode(answer.data, type=list[Standing]):
                        found[one.boundary, one.name] = one
        finally:
            with contextlib.suppress(*NATS_ERRORS):
                await answers.unsubscribe()

    async def _listen(self) -> None:
        while True:
            connection = await self._nats.wait_connected()
            with contextlib.suppress(*NATS_ERRORS):
                await connection.client.subscribe(self._subject, cb=self._answerer(connection))
                await connection.lost.wait()
            await asyncio.sleep(0.1)

    def _answerer(self, connection: Connection) -> Callable[[Msg], Awaitable[None]]:
        async def answer(message: Msg) -> None:
            try:
                wanted = set(msgspec.json.decode(message.data, type=list[_Key]))
            except (msgspec.DecodeError, msgspec.ValidationError):
                return
            standing = self._standing(wanted)
            if standing and message.reply:
                with contextlib.suppress(*NATS_ERRORS):
                    await connection.client.publish(message.reply, msgspec.json.encode(standing))

        return answer

    def _standing(self, wanted: set[_Key]) -> list[Standing]:
        return [
            Standing(one.boundary, one.name, *one.position, one.live, _beginning(one.query))
            for one in self._subscriptions.connected()
            if (one.boundary, one.name) in wanted
        ]


def _beginning(query: Query) -> list[list[tuple[str, str]]]:
    return [[(tag.key[:_CHARACTERS], tag.value[:_CHARACTERS]) for tag in one[:_TAGS]] for one in query[:_CRITERIA]]
