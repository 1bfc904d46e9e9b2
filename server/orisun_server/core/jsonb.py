"""What PostgreSQL's ``data->>'key'`` prints, computed from a JSON text that PostgreSQL has not seen.

A group of appends is checked against itself before it reaches PostgreSQL, so the server must know which of its events
match which criteria. jsonb's text form is: numbers without exponent and with their scale, object keys once (the last
wins), shortest first and then bytewise, ``", "`` and ``": "`` between the parts (PostgreSQL manual, 8.14).
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation

import msgspec

_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)

#: numeric holds 131,072 digits before the point and 16,383 after it; PostgreSQL refuses what is beyond.
_MAX_EXPONENT = 131_072


def top_level(text: str) -> dict[str, msgspec.Raw]:
    """The raw values of a JSON object's keys; raises msgspec.DecodeError or RecursionError when it is not one."""
    return _top_level.decode(text)


def text_of(raw: msgspec.Raw | None) -> str | None:
    """The text that ``->>`` prints for a value; None for JSON null and for a missing key."""
    if raw is None:
        return None
    value = bytes(raw)
    first = value[:1]
    if first == b'"':
        return _string.decode(value)
    if first in b"tf":
        return value.decode()
    if first == b"n":
        return None
    if first in b"{[":
        return _print(json.loads(value, parse_float=Decimal, parse_int=Decimal))
    return number(value.decode())


def number(literal: str) -> str:
    """A JSON number as PostgreSQL's numeric prints it: ``1e3`` is 1000, ``1.50`` keeps its scale, zero has no sign."""
    if literal.isdigit():
        return literal
    try:
        value = Decimal(literal)
    except InvalidOperation:  # an exponent beyond all bounds; PostgreSQL refuses it
        return literal
    if abs(value.adjusted()) > _MAX_EXPONENT:
        return literal
    return format(value if value else abs(value), "f")


def _print(value: object) -> str:
    if isinstance(value, Decimal):
        return number(str(value))
    if isinstance(value, dict):
        ordered = sorted(
            ((key.encode(), item) for key, item in value.items()), key=lambda pair: (len(pair[0]), pair[0])
        )
        return "{" + ", ".join(f"{_quoted(key.decode())}: {_print(item)}" for key, item in ordered) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_print(item) for item in value) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return {True: "true", False: "false", None: "null"}[value]  # type: ignore[index]


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _quoted(text: str) -> str:
    """A JSON string as PostgreSQL escapes it: the short escapes, \\u00xx for other control characters, else as is."""
    return '"' + "".join(_ESCAPES.get(c) or (c if c >= " " else f"\\u{ord(c):04x}") for c in text) + '"'
