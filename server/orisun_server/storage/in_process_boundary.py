"""The client's view of a boundary on an application's own connection: decisions, commands, streams and payload classes
inside the transaction that holds its other writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

import asyncpg

import orisun
from orisun import errors as client_errors
from orisun import wire
from orisun.events import as_new_event
from orisun_api import eventstore_pb2 as pb

from ..core import criteria
from ..core.append import Context
from ..core.event import Command, Event, NewEvent
from ..core.position import Position
from ..errors import OrisunError
from .in_process import InProcessStore


class InProcessBoundary:
    """``InProcessStore.boundary`` makes it; it is as good as its connection, and in its transaction where one is open.

    Methods and errors are those of ``orisun.Boundary``. (A deadlock is an ``OtherError`` of the code ABORTED.)
    """

    def __init__(
        self, store: InProcessStore, connection: asyncpg.Connection, name: str, types: orisun.EventTypes | None = None
    ) -> None:
        self._store, self._connection, self._types = store, connection, types or orisun.EventTypes()
        self.name = name

    async def append(
        self,
        events: Iterable[object],
        *,
        condition: orisun.AppendCondition | None = None,
        command: orisun.Command | None = None,
        timeout: float | None = None,
    ) -> orisun.Position:
        """See ``orisun.Boundary.append``. After a ``Conflict`` the transaction goes on as if nothing had been tried."""
        asked = wire.save_query(condition)
        messages = wire.event_messages([as_new_event(item) for item in events], self._types)
        new = [NewEvent(one.event_id, one.event_type, one.data, one.metadata) for one in messages]
        context = Context(Position(*condition.expected), _query(condition.query)) if condition and asked else None
        tracked: Command | None = None
        if command is not None:
            message = wire.command_message(command, self._types)
            tracked = Command(message.command_id, message.type, message.data, message.metadata)
        with _translated():
            async with asyncio.timeout(timeout):
                last = await self._store.append(self._connection, self.name, new, context, command=tracked)
        return orisun.Position(*last)

    async def read(
        self,
        query: orisun.Query = orisun.EVERYTHING,
        *,
        after: orisun.Position | None = None,
        start: orisun.Position | None = None,
        descending: bool = False,
        limit: int | None = None,
        page_size: int = 500,
    ) -> AsyncIterator[orisun.Event]:
        """See ``orisun.Boundary.read``; events of this transaction are among them."""
        begin = None if start is None else Position(*start)
        last = None if after is None else Position(*after)
        left = limit
        while left is None or left > 0:
            count = page_size if left is None else min(page_size, left)
            with _translated():
                page = await self._store.read(
                    self._connection, self.name, _query(query), after=last, start=begin, count=count,
                    descending=descending,
                )  # fmt: skip
            for event in page:
                yield wire.event_of(_message(event), self._types)
            if len(page) < count:
                return
            left = None if left is None else left - count
            begin, last = None, page[-1].position

    async def latest(self, query: orisun.Query, *, timeout: float | None = None) -> orisun.Latest:
        """See ``orisun.Boundary.latest``."""
        with _translated():
            async with asyncio.timeout(timeout):
                asked = [criteria.criterion(one.tags) for one in query.criteria]
                found, position = await self._store.latest(self._connection, self.name, asked)
        events = tuple(wire.event_of(_message(event), self._types) if event is not None else None for event in found)
        return orisun.Latest(query, events, orisun.Position(*position))


def _query(query: orisun.Query) -> criteria.Query:
    return criteria.query(one.tags for one in query.criteria)


def _message(event: Event) -> pb.Event:
    message = pb.Event(
        event_id=event.event_id,
        event_type=event.event_type,
        data=event.data,
        metadata=event.metadata,
        position=pb.Position(commit_position=event.commit, prepare_position=event.prepare),
    )
    message.date_created.FromDatetime(event.date_created)
    return message


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the server as those that a client raises."""
    try:
        yield
    except OrisunError as error:
        raise client_errors.of_status(error.status.name, str(error), error.reason) from error
    except TimeoutError:
        raise orisun.DeadlineExceeded("no answer of PostgreSQL in time; nothing of it is in the transaction") from None
