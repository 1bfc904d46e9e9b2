"""Where an event stands in its boundary."""

from __future__ import annotations

import re
from typing import NamedTuple

_PAIR = re.compile(r"\(?\s*(-?\d+)\s*[,/]\s*(-?\d+)\s*\)?")


class Position(NamedTuple):
    """A position. Positions of one boundary compare as tuples; those of different boundaries mean nothing together.

    ``prepare`` (on the wire ``prepare_position`` or ``global_id``) numbers the events of a boundary from 0; ``commit``
    (``commit_position``, ``transaction_id``) is the last number of the append plus one, shared by all its events.
    """

    commit: int
    prepare: int

    def __str__(self) -> str:
        return f"({self.commit}, {self.prepare})"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that a text names: ``(12, 11)``, ``12,11`` or ``12/11``. Raises ValueError."""
        pair = _PAIR.fullmatch(text.strip())
        if pair is None:
            raise ValueError(f'"{text}" is not a position; write it like (12, 11): commit and prepare position')
        return cls(int(pair[1]), int(pair[2]))


#: The position of an empty context: no event matches.
NOTHING = Position(-1, -1)
