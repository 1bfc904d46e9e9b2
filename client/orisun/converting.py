"""JSON values into what annotations ask for; enough for dataclasses of everyday fields, without another package."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import functools
import types
import typing
import uuid
from decimal import Decimal
from typing import Any

_FROM_TEXT: dict[Any, Any] = {
    uuid.UUID: uuid.UUID,
    datetime.datetime: datetime.datetime.fromisoformat,
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
    bytes: functools.partial(base64.b64decode, validate=True),
}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def to_type(value: Any, kind: Any) -> Any:
    """The value as an object of an annotation. Raises TypeError or ValueError where it does not fit."""
    if kind is Any or isinstance(kind, typing.TypeVar):
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments)
    if origin is typing.Annotated:
        return to_type(value, arguments[0])
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError("not one of the literals")
        return value
    if origin is not None:
        return _collection(value, origin, arguments)
    return _plain(value, kind)


def _plain(value: Any, kind: Any) -> Any:
    if kind is None or kind is type(None):
        return _checked(value, type(None))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        fields = {field.name for field in dataclasses.fields(kind) if field.init}
        return kind(**{name: to_type(item, hints[name]) for name, item in value.items() if name in fields})
    if convert := _FROM_TEXT.get(kind):
        return convert(_checked(value, str))
    if kind is Decimal:
        return Decimal(value if isinstance(value, str) else repr(_checked(value, int, float)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind is float:
        return float(_checked(value, int, float))
    if kind in (tuple, set, frozenset):
        return kind(_checked(value, list))
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} where {getattr(kind, '__name__', kind)} is expected")


def _one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and type(None) in kinds:
        return None
    # what needs no conversion is meant first: "7" stays a text for str | int
    for kind in sorted(kinds, key=lambda kind: type(value) is not kind):
        if kind is type(None):
            continue
        try:
            return to_type(value, kind)
        except (TypeError, ValueError, AttributeError, ArithmeticError):
            continue
    raise TypeError(f"a {type(value).__name__} fits none of {len(kinds)} alternatives")


def _collection(value: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if issubclass(origin, typing.cast(type, typing.get_origin(typing.Mapping[str, int]))):
        return {to_type(key, arguments[0]): to_type(item, arguments[1]) for key, item in _checked(value, dict).items()}
    items = _checked(value, list)
    if origin is tuple and arguments[-1:] != (Ellipsis,):
        return tuple(to_type(item, kind) for item, kind in zip(items, arguments, strict=True))
    made = [to_type(item, arguments[0]) for item in items]
    return made if not issubclass(origin, tuple | set | frozenset) else origin(made)


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"a {type(value).__name__} where {' or '.join(kind.__name__ for kind in kinds)} is expected")
    return value
