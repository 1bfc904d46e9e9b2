"""One boundary of a server: append, read, latest, subscribe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from orisun_api import eventstore_pb2 as pb

from .decisions import Decision, Projector, decide
from .errors import Conflict, ResourceExhausted, refuse
from .events import Event, NewEvent, as_new_event
from .logs import keys_of
from .position import Position
from .queries import EVERYTHING, AppendCondition, Query
from .store import Command, Latest, StoredCommand
from .streams import AggregateStream
from .subscription import Subscription
from .wire import (
    command_message,
    command_of,
    criteria_messages,
    event_messages,
    event_of,
    position_message,
    position_of,
    query_message,
    save_query,
)

if TYPE_CHECKING:
    from .client import Client

_MAX_PAGE = 10_000
#: Pages that must fit before a size that was too large is tried again.
_FITTING = 20


class _PageSize:
    """How many to ask for at a time: fewer after a page that was too large for the server, later on more again."""

    def __init__(self, what: str, size: int, limit: int | None) -> None:
        if not 1 <= size <= _MAX_PAGE:
            refuse(f"{what}: page_size {size} is not between 1 and {_MAX_PAGE}")
        if limit is not None and limit < 0:
            refuse(f"{what}: limit {limit} is negative; give None for no limit")
        self._wanted = self._size = size
        self._fitting = 0

    def __call__(self, left: int | None) -> int:
        return self._size if left is None else min(self._size, left)

    def too_large(self, count: int) -> None:
        self._size, self._fitting = max(count // 4, 1), 0

    def fits(self) -> None:
        self._fitting += 1
        if self._fitting % _FITTING == 0:
            self._size = min(self._size * 2, self._wanted)


class Boundary:
    """The events of one boundary; ``client.boundary(name)`` makes it. It implements ``Store``."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name = client, name
        self._calls, self._types, self.logger = client.calls, client.types, client.logger

    async def append(
        self,
        events: Iterable[object],
        *,
        condition: AppendCondition | None = None,
        command: Command | None = None,
        timeout: float | None = None,
    ) -> Position:
        """Append events in this order, all or none, and return the position of the last one.

        Each item is a ``NewEvent``, or an object of a class with a codec. With a condition they are appended only if
        the latest event that it matches is the expected one; without, always. ``command`` is stored along with them.

        Repeating it with the same ``NewEvent`` objects is harmless: the server answers with the position of the first
        time, whatever the condition. For this reason UNAVAILABLE is tried again here, within ``timeout`` seconds.
        (Other objects get a new id each time that they are given.)

        Raises:
            Conflict: another matching event came in between; it has the expected and the actual position.
            DuplicateEventId: an event id is stored already, with other content or in another append.
            InvalidArgument, CodecError: an event cannot be stored as it is.
            DeadlineExceeded, Unavailable: it is unknown whether the events are stored; repeat it.
        """
        if isinstance(events, NewEvent):
            refuse("append takes a list of events: append([event])")
        messages = event_messages([as_new_event(item) for item in events], self._types)
        if not messages:
            refuse("there are no events to append")
        request = pb.SaveEventsRequest(
            boundary=self.name,
            query=save_query(condition),
            events=messages,
            command=command_message(command, self._types) if command is not None else None,
        )
        try:
            result = await self._calls.unary("events", "SaveEvents", request, timeout=timeout)
        except Conflict as conflict:
            if log := self.logger:
                keys = keys_of(condition.query) if condition is not None else ""
                positions = {"expected": str(conflict.expected), "actual": str(conflict.actual)}
                log.info("append conflicts", boundary=self.name, events=len(messages), keys=keys, **positions)
            raise
        position = position_of(result.log_position)
        if log := self.logger:
            log.debug("appended", boundary=self.name, events=len(messages), position=str(position))
        return position

    async def read(
        self,
        query: Query = EVERYTHING,
        *,
        after: Position | None = None,
        start: Position | None = None,
        descending: bool = False,
        limit: int | None = None,
        page_size: int = 500,
    ) -> AsyncIterator[Event]:
        """Iterate over the stored events that match, in the order of positions, or against it.

        It begins after ``after`` (exclusive) or at ``start`` (inclusive), by default at the end where there are events,
        and stops at the other one, or after ``limit`` events. Events are fetched ``page_size`` at a time (1 to 10,000;
        fewer where they are large), and only those are held in memory. Reading upwards, it also meets what is appended
        meanwhile; each position it passes is final, for commit order is position order.
        """
        if after is not None and start is not None:
            refuse("read: give after (exclusive) or start (inclusive), not both")
        size = _PageSize("read", page_size, limit)
        request = pb.GetEventsRequest(
            boundary=self.name,
            query=query_message(query),
            direction=pb.DESC if descending else pb.ASC,
            after_position=position_message(after) if after is not None else None,
            from_position=position_message(start) if start is not None else None,
        )
        left = limit
        while left is None or left > 0:
            page = (await self._page("GetEvents", request, size, left)).events
            if log := self.logger:
                asked = {"keys": keys_of(query), "descending": descending, "asked": request.count}
                log.debug("read", boundary=self.name, **asked, events=len(page))
            for message in page:
                yield event_of(message, self._types)
            if len(page) < request.count:
                return
            left = None if left is None else left - len(page)
            request.ClearField("from_position")
            request.after_position.CopyFrom(page[-1].position)

    async def latest(self, query: Query, *, timeout: float | None = None) -> Latest:
        """The latest event of each criterion of the query, all from one snapshot, at the cost of one look-up each.

        ``latest(where(user="a") | where(user="b")).events`` has two; ``.condition`` is what to append under.
        Raises InvalidArgument for EVERYTHING, which has no criteria.
        """
        if query == EVERYTHING:
            refuse("latest needs criteria; the last event of all is the first of read(descending=True, limit=1)")
        request = pb.GetLatestByCriteriaRequest(boundary=self.name, criteria=criteria_messages(query))
        response = await self._calls.unary("events", "GetLatestByCriteria", request, timeout=timeout)
        events = tuple(
            event_of(result.event, self._types) if result.HasField("event") else None for result in response.results
        )
        if log := self.logger:
            log.debug("latest", boundary=self.name, keys=keys_of(query), events=len(events) - events.count(None))
        return Latest(query, events, position_of(response.context_position))

    async def decide(self, *projectors: Projector[Any]) -> Decision:
        """The states of the projectors, made by one read, and the condition to append under; see ``orisun.decide``."""
        return await decide(self, *projectors)

    def stream(self, aggregate_type: str, aggregate_id: object) -> AggregateStream:
        """The events of one aggregate, with versions: 1, 2, 3, ..."""
        return AggregateStream(self, aggregate_type, aggregate_id)

    async def commands(
        self, *, after: Position | None = None, limit: int | None = None, page_size: int = 500
    ) -> AsyncIterator[StoredCommand]:
        """Iterate over the commands that were stored with their events, in the order of positions, after ``after``."""
        size = _PageSize("commands", page_size, limit)
        request = pb.GetCommandsRequest(boundary=self.name)
        left = limit
        while left is None or left > 0:
            if after is not None:
                request.after_position.CopyFrom(position_message(after))
            page = (await self._page("GetCommands", request, size, left)).commands
            for message in page:
                yield command_of(message)
            if len(page) < request.count:
                return
            left = None if left is None else left - len(page)
            after = position_of(page[-1].position)

    async def _page(self, rpc: str, request: Any, size: _PageSize, left: int | None) -> Any:
        """The next page, of fewer items where the server refuses so many at a time."""
        while True:
            request.count = size(left)
            try:
                page = await self._calls.unary("events", rpc, request)
            except ResourceExhausted:
                if request.count == 1:
                    raise
                size.too_large(request.count)
                continue
            size.fits()
            return page

    def subscribe(self, name: str, query: Query = EVERYTHING, *, after: Position | None = None) -> Subscription:
        """Follow the events that match, those stored after ``after`` first (None: from the first event on).

        ``name`` is taken once at a time in the boundary, over all servers. Leave it by ``async with`` or ``aclose``:
        one that is merely dropped goes on, and holds its name until the client closes. Use it as::

            async with boundary.subscribe("mailer", where("OrderPlaced"), after=position) as subscription:
                async for event in subscription:
                    ...

        Iterating raises SubscriberInUse (the name is taken), OutOfRange (``after`` is of another history), Unavailable
        (no server was reached at the beginning; later on it tries for ever) and what the server refuses.
        """
        subscription = Subscription(self._calls, self._types, boundary=self.name, name=name, query=query, after=after)
        self.client.streams.add(subscription)
        return subscription
