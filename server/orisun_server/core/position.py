"""Where an event stands in its boundary."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """A position; positions compare as tuples (contract.md, SaveEvents).

    ``commit`` is the last ``prepare`` of the storing request plus one, shared by all events of that request;
    ``prepare`` is the event's own number in its boundary and grows from 0.
    """

    commit: int
    prepare: int


#: Position of an empty context: before the first event.
NOTHING = Position(-1, -1)


def is_beginning(position: Position) -> bool:
    """Whether a subscription from this exclusive position starts with the first event: (-1,-1) and (0,0) do."""
    return position <= (0, 0)
