"""What is wrong with a request that protobuf refuses to parse, so that the client is told the field."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def problem_of(message: type[Message], raw: bytes) -> str:
    """One line for people; names the first string field that is not UTF-8, with the index of its list item."""
    try:
        found = _ill_formed_text(message.DESCRIPTOR, raw, "")
    except (IndexError, ValueError):
        found = None
    return found or f"the bytes are no {message.DESCRIPTOR.full_name} message"


def _ill_formed_text(descriptor: Any, raw: bytes, path: str) -> str | None:
    counts: dict[int, int] = {}
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, kind = key >> 3, key & 7
        if kind != _LENGTH:
            at = _skip(raw, at, kind)
            continue
        size, at = _varint(raw, at)
        value, at = raw[at : at + size], at + size
        field = descriptor.fields_by_number.get(number)
        if field is None:
            continue
        index = counts.get(number, 0)
        counts[number] = index + 1
        name = f"{path}{field.name}" + (f"[{index}]" if field.is_repeated else "")
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                value.decode()
            except UnicodeDecodeError:
                return f"{name}: the text is not UTF-8"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            found = _ill_formed_text(field.message_type, value, name + ".")
            if found:
                return found
    return None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("no varint")


def _skip(raw: bytes, at: int, kind: int) -> int:
    if kind == _VARINT:
        return _varint(raw, at)[1]
    if kind in (_FIXED64, _FIXED32):
        return at + (8 if kind == _FIXED64 else 4)
    raise ValueError("no wire type of proto3")
