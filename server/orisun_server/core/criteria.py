"""Which events a command, a read or a subscription is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: The key that means the event's type, in criteria, index fields and conditions; the seeds also write event_type.
EVENT_TYPE = "eventType"
_SPELLINGS = {"event_type": EVENT_TYPE}


class Tag(NamedTuple):
    """``data->>'key' = value`` on the top level of an event's data."""

    key: str
    value: str


#: A conjunction of tags, sorted by key; () matches every event.
Criterion = tuple[Tag, ...]

#: A disjunction of criteria; () is the whole boundary.
Query = tuple[Criterion, ...]

WHOLE_BOUNDARY: Query = ()


def normal_key(key: str) -> str:
    """The one spelling of a key: ``event_type`` means ``eventType``."""
    return _SPELLINGS.get(key, key)


def criterion(tags: Iterable[tuple[str, str]]) -> Criterion:
    """A criterion in normal form: keys in one spelling, sorted, equal tags once. A key may keep several values."""
    normal = {Tag(_SPELLINGS.get(key, key), value) for key, value in tags}
    return tuple(normal if len(normal) == 1 else sorted(normal))


def query(criteria: Iterable[Iterable[tuple[str, str]]]) -> Query:
    """A query in normal form: equal criteria once, in the order given; a criterion without tags makes it the whole
    boundary (contract.md, SaveEvents)."""
    normal = tuple(dict.fromkeys([criterion(tags) for tags in criteria]))
    return WHOLE_BOUNDARY if () in normal else normal
