"""Decision models: what a decision rests on, projected by one read, with the condition to append under."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from .errors import refuse
from .events import Event
from .position import NOTHING, Position
from .queries import AppendCondition, EventTexts, Query
from .store import Store

S = TypeVar("S")


@dataclass(frozen=True)
class Projector(Generic[S]):
    """How one state of a decision is made of events.

    paid_in = Projector("paid in", where("Deposited", account="a"), 0, lambda sum, event: sum + event.data["amount"])
    """

    #: Names the state in a ``Decision``; unique among the projectors of one.
    name: str
    #: The events that make the state, and whose coming would change it.
    criteria: Query
    #: The state before any event. It is copied deeply for each decision, so that it may be mutable.
    initial: S
    #: The state after an event; called for each event that matches, in the order of positions.
    apply: Callable[[S, Event], S]


@dataclass(frozen=True, slots=True)
class Decision:
    """States as of one moment, and the condition that they still hold.

    ``decision[projector]`` is its state, typed as the projector's; ``decision["name"]`` works too.
    """

    states: Mapping[str, Any]
    #: The union of the projectors' criteria.
    query: Query
    #: The position of the latest event that matches any of them; ``NOTHING`` when there is none.
    position: Position
    #: How many events were read.
    events: int

    @property
    def condition(self) -> AppendCondition:
        """Append only if no event has come that would change any of the states."""
        return AppendCondition(self.query, self.position)

    @overload
    def __getitem__(self, projector: Projector[S]) -> S: ...

    @overload
    def __getitem__(self, projector: str) -> Any: ...

    def __getitem__(self, projector: Projector[S] | str) -> S | Any:
        name = projector if isinstance(projector, str) else projector.name
        try:
            return self.states[name]
        except KeyError:
            refuse(f'the decision has no state "{name}"; it has {", ".join(map(repr, self.states))}')


async def decide(store: Store, *projectors: Projector[Any], page_size: int = 500) -> Decision:
    """Project many states by one query, the union of the projectors' criteria, read once and in order.

    All states are of one moment, also when the read takes several pages: commit order is position order, so what has
    been read when the last page ends is a prefix of the log. Hand the ``condition`` to ``append``: it refuses with
    ``Conflict`` exactly if an event that matches any of the criteria came in between.

    Raises InvalidArgument for no projectors, or two of one name.
    """
    query = union(projectors)
    states = {projector.name: copy.deepcopy(projector.initial) for projector in projectors}
    position, events = NOTHING, 0
    async for event in store.read(query, page_size=page_size):
        position = event.position
        events += 1
        texts = EventTexts(event)
        for projector in projectors:
            if len(projectors) == 1 or projector.criteria.matches(texts):
                states[projector.name] = projector.apply(states[projector.name], event)
    return Decision(states, query, position, events)


def union(projectors: tuple[Projector[Any], ...]) -> Query:
    """The query whose events any of the projectors is about. Raises InvalidArgument."""
    if not projectors:
        refuse("a decision needs at least one projector")
    for projector in projectors:
        if not isinstance(projector, Projector):
            refuse(f"a decision is made of projectors, decide(first, second); this is a {type(projector).__name__}")
    names = [projector.name for projector in projectors]
    if len(set(names)) != len(names):
        refuse(f"two projectors of a decision have one name: {', '.join(sorted(names))}")
    query = projectors[0].criteria
    for projector in projectors[1:]:
        query = query | projector.criteria
    return query


def project(projector: Projector[S], events: list[Event]) -> S:
    """The state that these events make, of which those that do not match are left out."""
    state = copy.deepcopy(projector.initial)
    for event in events:
        if projector.criteria.matches(event):
            state = projector.apply(state, event)
    return state
