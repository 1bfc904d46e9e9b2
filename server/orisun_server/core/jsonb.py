"""What PostgreSQL's ``data->>'key'`` prints, computed from a JSON text that PostgreSQL has not seen.

A group of appends is checked against itself before it reaches PostgreSQL, so the server must know which of its events
match which criteria. jsonb's text form is: numbers without exponent and with their scale, object keys once (the last
wins), shortest first and then bytewise, ``", "`` and ``": "`` between the parts (PostgreSQL manual, 8.14).
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation

import msgspec

_well_formed = msgspec.json.Decoder(msgspec.Raw).decode
_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)

#: numeric holds 131,072 digits before the point and 16,383 after it; PostgreSQL refuses what is beyond.
_MAX_EXPONENT = 131_072
_MOST_DIGITS = _MAX_EXPONENT + 16_383

#: The next such exponent outside of strings, or the end, and all that stands before it.
_EXPONENTS = re.compile(
    r"""(?: [^"eE]++ | "[^"\\]*+(?:\\.[^"\\]*+)*+" | [eE](?![+-]?[0-9]{2}) )*+ (?: [eE][+-]?0*+([0-9]*+) | \Z )""",
    re.VERBOSE,
).finditer
#: Whether a text may hold such exponents. Each begins with a character that is searched for fast, and ends with what
#: follows a number, but not the digits of an identifier.
_may_hold_e, _may_hold_E = (re.compile(rf"{e}[+-]?[0-9]{{2,}}+[\s,}}\]]").search for e in "eE")


class _Number(str):
    """The literal of a JSON number."""

    __slots__ = ()


def top_level(text: str) -> dict[str, msgspec.Raw]:
    """The raw values of a JSON object's keys; raises msgspec.DecodeError or RecursionError when it is not one."""
    return _top_level.decode(text)


def growth(text: str, most: int) -> int:
    """How much longer than a JSON object's text what jsonb prints of it may be, in characters: for its numbers with
    exponents, which jsonb writes out (1e131071 has eight characters, and 131,072 then). Beyond ``most`` nothing more is
    counted.

    Raises msgspec.DecodeError or RecursionError when it is not a JSON object.
    """
    if text[0] == "{":
        _well_formed(text)
    else:
        top_level(text)
    longer = 0
    if _may_hold_e(text) or ("E" in text and _may_hold_E(text)):
        for found in _EXPONENTS(text):
            digits = found[1] or "0"
            longer += min(int(digits), _MOST_DIGITS) if len(digits) < 7 else _MOST_DIGITS
            if longer > most:
                break
    return longer


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
        return _print(json.loads(value, parse_float=_Number, parse_int=_Number))
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
    if isinstance(value, _Number):
        return number(value)
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
