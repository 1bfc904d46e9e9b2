"""Which stored events match a query: ``data->>'key' = value``, computed from jsonb's own text.

One definition for all live delivery (design.md, 11). A stored event's data is what PostgreSQL printed, so the raw text
of a top-level value is already what ``->>`` prints for it; only strings are decoded, and JSON null matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from .criteria import EVENT_TYPE, WHOLE_BOUNDARY, Query

#: The top level of an event's data: the JSON text of each value, in UTF-8.
Values = Mapping[str, bytes | msgspec.Raw]

_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)

#: A string, or one character of structure; what lies between them is part of a number, true, false or null.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]')


def top_level(data: str) -> Values:
    """The raw values of an object in jsonb's text form, however deep it is."""
    try:
        return _top_level.decode(data)
    except RecursionError:
        return _split(data.encode())


def value_text(raw: bytes | msgspec.Raw) -> str | None:
    """What ``->>`` prints for a value in jsonb's text form; None for JSON null."""
    value = bytes(raw)
    if value[:1] == b'"':
        return _string.decode(value)
    return None if value == b"null" else value.decode()


class Matcher:
    """Decides for a query (criteria in normal form, joined by OR; tags joined by AND).

    A key that a criterion repeats must equal each of its values. A key ``eventType`` is the event's type, never data.
    """

    __slots__ = ("_criteria", "matches_values", "whole_boundary")

    def __init__(self, query: Query) -> None:
        self.whole_boundary = query == WHOLE_BOUNDARY or () in query
        self._criteria = tuple(
            (
                frozenset(tag.value for tag in criterion if tag.key == EVENT_TYPE),
                tuple((tag.key, tag.value) for tag in criterion if tag.key != EVENT_TYPE),
            )
            for criterion in query
        )
        #: ``(event type, top level of the data) -> bool``, for callers that decode once and match many queries
        self.matches_values: Callable[[str, Values], bool] = _always if self.whole_boundary else self._matches

    def matches(self, event_type: str, data: str) -> bool:
        """Whether an event of this type and data (jsonb's text) matches."""
        return self.whole_boundary or self._matches(event_type, top_level(data))

    def _matches(self, event_type: str, values: Values) -> bool:
        for types, tags in self._criteria:
            if types and types != {event_type}:
                continue
            for key, value in tags:
                raw = values.get(key)
                if raw is None or value_text(raw) != value:
                    break
            else:
                return True
        return False


def _always(event_type: str, values: Values) -> bool:
    return True


def _split(data: bytes) -> dict[str, bytes]:
    """The top level of an object too deep for a recursive parser; jsonb's text is well formed and has ``": "``."""
    values: dict[str, bytes] = {}
    depth = 0
    key = ""
    start = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start() : token.start() + 1]
        if first == b'"':
            if depth == 1 and not start:
                key = _string.decode(token.group())
                start = token.end() + 2
        elif first in b"[{":
            depth += 1
        else:
            if depth == 1 and start:
                values[key] = data[start : token.start()]
                start = 0
            if first != b",":
                depth -= 1
    return values
