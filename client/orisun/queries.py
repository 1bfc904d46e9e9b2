"""Which events: criteria over the top-level keys of their data, and what an append expects of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import refuse
from .jsontext import key_text, texts_of
from .position import NOTHING, Position

if TYPE_CHECKING:
    from .events import Event

#: The key that means an event's type; ``event_type`` is another spelling of it.
EVENT_TYPE = "eventType"
_SPELLINGS = frozenset({EVENT_TYPE, "event_type"})


class EventTexts:
    """What the keys of an event's data are compared as; the data is read when the first key is asked for."""

    __slots__ = ("_event", "_texts")

    def __init__(self, event: Event) -> None:
        self._event = event
        self._texts: Mapping[str, str | None] | None = None

    def get(self, key: str) -> str | None:
        """The text of a key; None for null, and for a key that is not there."""
        if key in _SPELLINGS:
            return self._event.event_type
        if self._texts is None:
            self._texts = texts_of(self._event.raw_data or "{}")
        return self._texts.get(key)


@dataclass(frozen=True, slots=True)
class Criterion:
    """Equalities on top-level keys of an event's data, joined by AND, as (key, text) pairs; make them by ``where``."""

    tags: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " and ".join(f"{key} = {value}" for key, value in self.tags) or "everything"


@dataclass(frozen=True, slots=True)
class Query:
    """Criteria joined by OR; without any it means every event of the boundary (``EVERYTHING``).

    Queries are joined with ``|``: ``where(account="a") | where(account="b")``.
    """

    criteria: tuple[Criterion, ...] = ()

    def __or__(self, other: Query) -> Query:
        if not self.criteria or not other.criteria:
            return EVERYTHING
        return Query(tuple(dict.fromkeys((*self.criteria, *other.criteria))))

    def __str__(self) -> str:
        return " or ".join(map(str, self.criteria)) or "everything"

    def matches(self, event: Event | EventTexts) -> bool:
        """Whether the event matches, judged as the server does: the data's text of every key equals the value.

        ``EventTexts(event)`` spares the work of reading its data again where several queries are asked.
        """
        if not self.criteria:
            return True
        texts = event if isinstance(event, EventTexts) else EventTexts(event)
        return any(all(texts.get(key) == value for key, value in criterion.tags) for criterion in self.criteria)


#: Every event of the boundary.
EVERYTHING = Query()


def where(*types_or_keys: str | Mapping[str, object], **keys: object) -> Query:
    """The events of any of these types whose data has all of these keys with these values.

        where(account="a-1")                              every type
        where("Deposited", "Withdrawn", account="a-1")    one of two types
        where({"account-id": "a-1"})                      keys that are no Python names
        where(account="a-1") | where(account="a-2")       either

    Values are texts, numbers, booleans, UUIDs, dates, decimals or enums, compared as text the way PostgreSQL prints the
    stored JSON. Null and missing keys never match. Raises InvalidArgument for other values, and for nothing at all.
    """
    types = [item for item in types_or_keys if isinstance(item, str)]
    wanted: dict[str, object] = {}
    for item in types_or_keys:
        if not isinstance(item, str):
            wanted |= item
    wanted |= keys
    tags = {(EVENT_TYPE if key in _SPELLINGS else key, key_text(key, value)) for key, value in wanted.items()}
    if not types and not tags:
        refuse("where() needs an event type or a key; orisun.EVERYTHING means all events")
    if not types:
        return Query((Criterion(tuple(sorted(tags))),))
    return Query(tuple(Criterion(tuple(sorted({*tags, (EVENT_TYPE, name)}))) for name in dict.fromkeys(types)))


@dataclass(frozen=True, slots=True)
class AppendCondition:
    """Append only if the latest event that matches ``query`` is at ``expected``, or with ``NOTHING``, if none matches.

    The server compares for equality, so ``expected`` is the position of the latest *matching* event that was seen, not
    that of the boundary's last event.
    """

    query: Query
    expected: Position = NOTHING
