"""Texts of JSON values: as they are sent, and as PostgreSQL's ``->>`` prints them."""

from __future__ import annotations

import base64
import datetime
import enum
import json
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .errors import CodecError, refuse


def dumps(value: object) -> str:
    """The JSON text of a value. UUIDs, dates, times and decimals become texts, enums their values, bytes base64.

    Raises CodecError for what JSON has no form for; the message names the type, never the value.
    """
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=plain)
    except RecursionError:
        raise CodecError("the payload is nested too deeply, or contains itself") from None
    except TypeError as error:
        raise CodecError(str(error)) from None
    except ValueError as error:
        raise CodecError(f"the payload is no JSON: {error}") from None


def plain(value: object) -> Any:
    """What stands in JSON for a value that JSON does not know. Raises TypeError."""
    if isinstance(value, uuid.UUID | Decimal):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    # values of subclasses, such as class UserId(str), are what they are made of, whatever their __str__ says
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"a payload holds a {type(value).__qualname__}, which has no form in JSON; register a codec for it")


def special(kind: type, value: object) -> Any:
    """The value of a subclass of str, int, float, UUID, Decimal, date, datetime or time that ``plain`` stands for.
    Raises TypeError or ValueError."""
    make: Any = kind
    if isinstance(value, str):
        if issubclass(kind, datetime.date | datetime.time):
            return make.fromisoformat(value)
        if issubclass(kind, str | int | float | uuid.UUID | Decimal):  # numbers are texts where they are keys
            return make(value)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if (is_int and issubclass(kind, int)) or ((is_int or isinstance(value, float)) and issubclass(kind, float)):
        return make(value)
    raise TypeError(f"no {kind.__qualname__} is stored as a {type(value).__name__}")


def loads_object(text: str) -> dict[str, Any]:
    """The JSON object of a text; raises CodecError."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise CodecError(f"stored JSON cannot be read: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise CodecError(f"stored JSON is a {type(value).__name__}, not an object")
    return value


def key_text(key: str, value: object) -> str:
    """The text that a value of a criterion is compared as; raises InvalidArgument."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # PostgreSQL prints numbers without exponents and zero without a sign
        return format(Decimal(repr(value)) if value else Decimal("0.0"), "f")
    if isinstance(value, uuid.UUID | Decimal | datetime.date | datetime.time):
        return str(plain(value))
    return refuse(
        f'"{key}" cannot be compared with a {type(value).__name__}; '
        "give a text, number, boolean, UUID, date, decimal or enum (null and missing keys never match)"
    )


class _Number(str):
    """A number's own digits."""

    __slots__ = ()


def texts_of(raw: str) -> Mapping[str, str | None]:
    """What ``->>`` prints for every top-level key of a stored object; None for null.

    ``raw`` is jsonb's own text, so numbers keep their digits, and objects and arrays their order.
    """
    try:
        values = json.loads(raw, parse_int=_Number, parse_float=_Number)
        return {key: _text(value, top=True) for key, value in values.items()}
    except RecursionError:
        raise CodecError("stored JSON is nested too deeply to be matched here") from None


def _text(value: object, *, top: bool = False) -> str | None:
    if value is None:
        return None if top else "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, str):
        return value if top else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        items = (f"{json.dumps(key, ensure_ascii=False)}: {_text(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    return "[" + ", ".join(str(_text(item)) for item in value) + "]"  # type: ignore[attr-defined]
