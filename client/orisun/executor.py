"""Commands: decide, append, and decide again when somebody else was faster."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .decisions import Decision, Projector, decide
from .errors import Conflict, DeadlineExceeded, DuplicateEventId, refuse
from .events import CAUSATION, CORRELATION, Event, NewEvent, as_new_event, changed, inherited
from .ids import derived_id, new_id
from .limits import Limit
from .position import NOTHING, Position
from .queries import EVERYTHING, where
from .retries import RetryPolicy
from .store import Command, Store

C = TypeVar("C")

#: The key of the data under which events tell the command that they come from, where the caller named it.
COMMAND_ID = "command_id"

#: Keys of the metadata of events whose command the caller named: what tells executions of it apart, and its type.
EXECUTION, COMMAND_TYPE = "execution_id", "command_type"

#: A conflict means that somebody else succeeded: it is worth trying soon.
ON_CONFLICT = RetryPolicy(attempts=10, first=0.01, longest=0.5)

#: What a command that depends on nothing is decided on.
_UNCONDITIONAL = Decision({}, EVERYTHING, NOTHING, 0)

Handle = Callable[[C, Decision], Iterable[object] | Awaitable[Iterable[object]]]


@dataclass(frozen=True, slots=True)
class Executed:
    """What became of a command."""

    command_id: str
    #: The position of its last event; None when it led to none.
    position: Position | None
    #: Its events; as they are stored, where the command had been executed before.
    events: tuple[NewEvent | Event, ...]
    #: How many times it was decided.
    attempts: int
    #: Whether it had been executed before, so that nothing was done this time.
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Handler:
    projectors: Callable[[Any], Iterable[Projector[Any]]]
    handle: Handle[Any]


class CommandExecutor:
    """Executes commands on one boundary.

        executor = CommandExecutor(client.boundary("accounts"))

        @executor.handler(Withdraw, lambda command: [balance_of(command.account)])
        def withdraw(command, decision):
            if decision["balance"] < command.amount:
                raise NotEnough(command.account)
            return [NewEvent("Withdrawn", {"account": command.account, "amount": command.amount})]

        await executor.execute(Withdraw("a-1", 10), command_id=request_id)

    A command and the states that it needs go to its handler, which returns events or raises. They are appended on the
    condition that the states still hold; if not, all of it happens again, as ``retry`` says.

    Args:
        retry: After how many conflicts to give up, and how long to wait in between.
        max_commands: Commands that may be under way at a time; one more raises TooManyCalls at once.
        track: Store each command in the transaction of its events (``Boundary.commands`` reads them). Its class needs
            a codec, as events' classes do; what must not be stored must not be in it.
    """

    def __init__(
        self,
        store: Store,
        *,
        retry: RetryPolicy = ON_CONFLICT,
        max_commands: int | None = None,
        track: bool = True,
    ) -> None:
        self._store, self._retry, self._track = store, retry, track
        self._limit = Limit(max_commands, "commands of this executor")
        self._handlers: dict[type, _Handler] = {}

    def register(self, kind: type[C], projectors: Callable[[C], Iterable[Projector[Any]]], handle: Handle[C]) -> None:
        """Commands of the class ``kind`` are handled by ``handle(command, decision)``; it may be a coroutine function.

        ``projectors(command)`` are what the decision rests on; none where it rests on nothing. Raises InvalidArgument
        when the class has a handler.
        """
        if kind in self._handlers:
            refuse(f"commands of class {kind.__qualname__} have a handler already")
        self._handlers[kind] = _Handler(projectors, handle)

    def handler(
        self, kind: type[C], projectors: Callable[[C], Iterable[Projector[Any]]]
    ) -> Callable[[Handle[C]], Handle[C]]:
        """``register`` as a decorator of the function."""

        def decorate(handle: Handle[C]) -> Handle[C]:
            self.register(kind, projectors, handle)
            return handle

        return decorate

    async def execute(
        self,
        command: object,
        *,
        command_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Executed:
        """Execute a command: decide, append, and again after a conflict.

        With a ``command_id`` of your own (an idempotency key) a command has its effect once, however often it is sent:
        its events carry it in their data, and who executes it again gets the events of the first time, not a new
        decision. An index on ``command_id`` makes that look-up cheap. The ids of the events are derived from it.

        ``metadata`` goes into that of every event; ``correlation_id`` is the command's id unless it, or the ``origin``
        in force, says otherwise. ``causation_id`` is the command's id.
        ``timeout`` bounds the whole, in seconds.

        Raises:
            Conflict: others were faster, as many times as the policy allows.
            TooManyCalls: too many commands are under way.
            InvalidArgument: no handler takes commands of this class, or ``command_id`` is that of a command of another.
            DeadlineExceeded: ``timeout`` is over; with the same ``command_id`` it may be executed again.
            Whatever the handler raises; nothing is stored then.
        """
        handler = self._handlers.get(type(command))
        if handler is None:
            refuse(f"no handler takes commands of class {type(command).__qualname__}; register one")
        if command_id is not None and (not isinstance(command_id, str) or not command_id):
            refuse(f"command_id {command_id!r} is no text that names the command; leave it out where it has no id")
        with self._limit:
            try:
                async with asyncio.timeout(timeout) as scope:
                    return await self._execute(handler, command, command_id, dict(metadata or {}))
            except TimeoutError:
                if not scope.expired():
                    raise  # the handler's own
                raise DeadlineExceeded(
                    f"{type(command).__qualname__} was not done within {timeout} seconds; its events may have been "
                    "stored: execute it again with the same command_id, or look before you do"
                ) from None

    async def _execute(
        self, handler: _Handler, command: object, given_id: str | None, metadata: dict[str, Any]
    ) -> Executed:
        command_id = given_id or new_id()
        metadata = {CORRELATION: command_id, **inherited(), **metadata, CAUSATION: command_id}
        if given_id is not None:
            metadata[COMMAND_TYPE] = _name(command)
            # of two at the same moment the server would take the second one's events for a repeat of the first one's
            # call, and both would think that they had done it
            metadata[EXECUTION] = new_id()
        projectors = list(handler.projectors(command))
        before = _earlier(command_id)
        if given_id is not None:
            projectors.append(before)
        attempts = 0
        while True:
            attempts += 1
            decision = await decide(self._store, *projectors) if projectors else _UNCONDITIONAL
            earlier = decision[before] if given_id is not None else []
            if earlier:
                other = earlier[-1].metadata.get(COMMAND_TYPE, _name(command))
                if other != _name(command):
                    refuse(f'command_id "{command_id}" is that of a {other}: give this {_name(command)} another one')
                return Executed(command_id, earlier[-1].position, tuple(earlier), attempts, repeated=True)
            events = await self._handle(handler, command, decision, command_id, metadata, keyed=given_id is not None)
            if not events:
                return Executed(command_id, None, (), attempts)
            tracked = Command(command_id, _name(command), command, metadata) if self._track else None
            try:
                condition = decision.condition if projectors else None
                position = await self._store.append(events, condition=condition, command=tracked)
            except (Conflict, DuplicateEventId) as error:
                # ids that are taken mean that the same command was executed meanwhile, elsewhere
                if not self._retry.allows(attempts) or (isinstance(error, DuplicateEventId) and given_id is None):
                    raise
                await asyncio.sleep(self._retry.pause(attempts))
                continue
            return Executed(command_id, position, tuple(events), attempts)

    async def _handle(
        self,
        handler: _Handler,
        command: object,
        decision: Decision,
        command_id: str,
        metadata: Mapping[str, Any],
        *,
        keyed: bool,
    ) -> list[NewEvent]:
        made = handler.handle(command, decision)
        decided = await made if inspect.isawaitable(made) else made
        if not isinstance(decided, Iterable) or isinstance(decided, str | Mapping):
            refuse(
                f"the handler of {type(command).__qualname__} returned a {type(decided).__name__}; "
                "it returns a list of events, which may be empty"
            )
        events = []
        for number, item in enumerate(decided):
            event = as_new_event(item)
            own = {key: value for key, value in event.metadata.items() if value != inherited().get(key)}
            event = changed(
                event,
                event_id=derived_id(self._store.name, command_id, str(number)),
                metadata={**metadata, **own},
            )
            events.append(event.with_keys(**{COMMAND_ID: command_id}) if keyed else event)
        return events


def _earlier(command_id: str) -> Projector[list[Event]]:
    """The events that the command led to when it was executed before; whatever else bears its id is none of them."""

    def add(events: list[Event], event: Event) -> list[Event]:
        return [*events, event] if EXECUTION in event.metadata else events

    return Projector(COMMAND_ID, where({COMMAND_ID: command_id}), [], add)


def _name(command: object) -> str:
    return type(command).__name__
