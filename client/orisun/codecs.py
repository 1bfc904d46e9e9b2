"""Between payloads and the JSON objects that are stored: codecs by event type, and upcasters of old versions."""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from .errors import CodecError, OrisunError, refuse
from .events import OCTETS, VERSION, Binary, NewEvent
from .jsontext import dumps, loads_object, plain, special

C = TypeVar("C", bound=type)

#: Keys that this library adds to data; a payload's class need not know them.
LIBRARY_KEYS = frozenset({"aggregate_type", "aggregate_id", "aggregate_version", "command_id"})

_ENCODING, _BASE64 = "payload_encoding", "base64"
_CONTENT_TYPE = "content_type"
_PAYLOAD = "payload_base64"


class Codec(Protocol):
    """Turns payloads of one class into the JSON text of an object, and back."""

    def encode(self, payload: Any) -> str:
        """The text of a JSON object."""

    def decode(self, text: str) -> Any:
        """The payload that a text holds."""


class PydanticCodec:
    """Payloads that are pydantic models."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def check(self) -> None:
        """Raises InvalidArgument for fields that are not written, or under a name under which they are not read."""
        by_name = self._model.model_config.get("populate_by_name") or self._model.model_config.get("validate_by_name")
        for name, field in self._model.model_fields.items():
            if field.exclude and field.is_required():
                refuse(
                    f"{self._model.__qualname__}.{name} is required and excluded: it could not be read again; "
                    "give it a default"
                )
            alias = field.validation_alias or name
            read = [*getattr(alias, "choices", [alias])] + ([name] if by_name else [])
            if (written := field.serialization_alias or name) not in read:
                refuse(
                    f'{self._model.__qualname__}.{name} is written as "{written}" and not read as that: give it one '
                    "alias for both"
                )

    def encode(self, payload: Any) -> str:
        text: str = payload.model_dump_json(by_alias=True, round_trip=True)
        return text

    def decode(self, text: str) -> Any:
        return self._model.model_validate_json(text)


class MsgspecCodec:
    """Payloads that are msgspec structs."""

    def __init__(self, struct: type) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._decoder: Any = msgspec.json.Decoder(struct)

    def encode(self, payload: Any) -> str:
        return self._encode(payload).decode()

    def decode(self, text: str) -> Any:
        return self._decoder.decode(text)


class DataclassCodec:
    """Payloads that are dataclasses, there and back by their annotations; keys without a field are ignored."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def check(self) -> None:
        """Raises InvalidArgument for annotations whose values could not be told apart, or read, once they are JSON."""
        try:
            msgspec.json.Decoder(self._kind)
        except (TypeError, NameError) as error:
            refuse(f"objects of {self._kind.__qualname__} could be stored, not read again; give a codec=. {error}")

    def encode(self, payload: Any) -> str:
        return dumps(msgspec.to_builtins(payload, str_keys=True, enc_hook=plain))

    def decode(self, text: str) -> Any:
        return msgspec.json.decode(text or "{}", type=self._kind, dec_hook=special)  # special keys too


@dataclasses.dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    version: int
    codec: Codec
    #: library keys that the class has fields for
    own_keys: frozenset[str]


class EventTypes:
    """Which class and codec an event type's payload has, and how its old versions become the present one.

    Give it to ``orisun.connect(types=...)``. Types that are not registered have dicts for payloads.

        types = EventTypes()

        @types.event("AccountOpened", version=2)
        @dataclass
        class AccountOpened:
            account: str
            currency: str

        @types.upcaster("AccountOpened", from_version=1)
        def with_currency(data: dict) -> dict:
            return {**data, "currency": "EUR"}

    A version is kept in the metadata of each event (``event_version``); an event without one is of version 1. What is
    appended is of the present version, as a dict too, unless its metadata names another.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, _Registered] = {}
        self._by_class: dict[type, _Registered] = {}
        self._upcasters: dict[str, dict[int, Callable[[dict[str, Any]], Mapping[str, Any]]]] = {}

    def register(self, kind: type, name: str = "", *, version: int = 1, codec: Codec | None = None) -> None:
        """The payloads of event type ``name`` (by default the class's name) are objects of the class ``kind``.

        Without ``codec`` there is one for pydantic models, msgspec structs and dataclasses. Raises InvalidArgument for
        any other class, for a dataclass with annotations whose values could not be read again (a union of two classes,
        or of a text and a date), and for a name or class that is registered already.
        """
        name = name or kind.__name__
        if name in self._by_name or kind in self._by_class:
            refuse(f'event type "{name}" or class {kind.__qualname__} is registered already')
        if version < 1:
            refuse(f'version {version} of event type "{name}": versions begin with 1')
        own_keys = frozenset(LIBRARY_KEYS & _field_names(kind))
        codec = codec or codec_of(kind)
        if isinstance(codec, DataclassCodec | PydanticCodec):
            codec.check()
        registered = _Registered(name, version, codec, own_keys)
        self._by_name[name] = self._by_class[kind] = registered

    def event(self, name: str = "", *, version: int = 1, codec: Codec | None = None) -> Callable[[C], C]:
        """``register`` as a decorator of the class."""

        def decorate(kind: C) -> C:
            self.register(kind, name, version=version, codec=codec)
            return kind

        return decorate

    def upcaster(
        self, event_type: str, *, from_version: int
    ) -> Callable[[Callable[[dict[str, Any]], Mapping[str, Any]]], Callable[[dict[str, Any]], Mapping[str, Any]]]:
        """Decorates a function that makes the data of version ``from_version`` that of the next one.

        Stored events stay as they are; each read takes them through all the upcasters that there are. Works for types
        without a class too.
        """

        def decorate(function: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Any:
            steps = self._upcasters.setdefault(event_type, {})
            if from_version in steps:
                refuse(f'event type "{event_type}" has an upcaster from version {from_version} already')
            steps[from_version] = function
            return function

        return decorate

    def encode(self, event: NewEvent) -> tuple[str, str, str]:
        """Type, data and metadata of an event as they are sent; the latter two are JSON texts. Raises CodecError."""
        payload, metadata, keys = event.data, event.metadata, event.keys
        name = event.event_type
        version = self._present_version(name)
        if isinstance(payload, bytes):
            payload = Binary(payload)
        if isinstance(payload, Mapping):
            data = dumps(dict(payload) if not keys else _joined(dict(payload), keys))
        elif isinstance(payload, Binary):
            version = 1  # upcasters are given objects of JSON, never these
            data = dumps(_joined({**payload.keys, _PAYLOAD: payload.payload}, keys))
            metadata = {**metadata, _ENCODING: _BASE64, _CONTENT_TYPE: payload.content_type}
        else:
            registered = self._registered(type(payload))
            name = name or registered.name
            metadata = {key: value for key, value in metadata.items() if key != VERSION}  # objects are of the present
            version = max(registered.version, self._present_version(name))
            data = _attempt(name, lambda: registered.codec.encode(payload))
            if keys:
                data = dumps(_joined(loads_object(data), keys))
        if version != 1:
            metadata = {VERSION: version, **metadata}
        return name, data, dumps(dict(metadata)) if metadata else ""

    def decode(self, event_type: str, data: str, metadata: Mapping[str, Any]) -> Any:
        """The payload of stored data. Raises CodecError, which names the type and never quotes the data."""
        if metadata.get(_ENCODING) == _BASE64:
            return _binary(data, metadata)
        registered = self._by_name.get(event_type)
        steps = self._upcasters.get(event_type)
        if registered is None and steps is None:
            return loads_object(data)
        if steps is not None:
            fields = self._upcast(event_type, steps, loads_object(data), metadata)
            if registered is None:
                return fields
            data = dumps(fields)
        assert registered is not None  # noqa: S101 - one of the two is set
        # a strict model knows nothing of the keys that this library adds
        foreign = LIBRARY_KEYS - registered.own_keys
        if any(f'"{key}"' in data for key in foreign):
            data = dumps({key: value for key, value in loads_object(data).items() if key not in foreign})
        return _attempt(event_type, lambda: registered.codec.decode(data))

    def _present_version(self, name: str) -> int:
        """The version of a type that is written now: its class's, or the one that the last upcaster leads to."""
        registered, steps = self._by_name.get(name), self._upcasters.get(name, {})
        return max(registered.version if registered else 1, max(steps, default=0) + 1)

    def _registered(self, kind: type) -> _Registered:
        registered = self._by_class.get(kind)
        if registered is None:
            # a class of its own name: what is appended needs no registration, what is read as an object does
            registered = _Registered(kind.__name__, 1, codec_of(kind), frozenset())
        return registered

    def _upcast(
        self,
        event_type: str,
        steps: Mapping[int, Callable[[dict[str, Any]], Mapping[str, Any]]],
        fields: dict[str, Any],
        metadata: Mapping[str, Any],
    ) -> dict[str, Any]:
        stored = metadata.get(VERSION, 1)
        version = stored if isinstance(stored, int) else 1
        while step := steps.get(version):
            given = fields
            fields = dict(_attempt(f"{event_type}, version {version}", lambda: step(given)))  # noqa: B023 - called here
            version += 1
        return fields


def _attempt(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OrisunError:
        raise
    except Exception as error:
        # the codec's own message may quote the payload: it stays with the cause, for whoever looks there
        raise CodecError(f'the payload of an event of type "{name}" does not fit: {type(error).__name__}') from error


def _joined(data: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in keys.items():
        if key in data and data[key] != value:
            refuse(f'the key "{key}" is in the payload already, with another value')
    return {**data, **keys}


def _binary(data: str, metadata: Mapping[str, Any]) -> Binary:
    fields = loads_object(data)
    try:
        payload = base64.b64decode(fields.pop(_PAYLOAD), validate=True)
    except (KeyError, ValueError, TypeError):
        raise CodecError(f'an event with {_ENCODING} "{_BASE64}" holds no base64 under "{_PAYLOAD}"') from None
    keys = {key: value for key, value in fields.items() if key not in LIBRARY_KEYS}
    return Binary(payload, str(metadata.get(_CONTENT_TYPE, OCTETS)), keys)


def _field_names(kind: type) -> set[str]:
    for attribute in ("model_fields", "__struct_fields__", "__dataclass_fields__"):
        if fields := getattr(kind, attribute, None):
            return set(fields)
    return set()


def codec_of(kind: type) -> Codec:
    """The codec of a pydantic model, msgspec struct or dataclass. Raises InvalidArgument for any other class."""
    # a class of pydantic exists only where it is loaded
    if (pydantic := sys.modules.get("pydantic")) and issubclass(kind, pydantic.BaseModel):
        return PydanticCodec(kind)
    if issubclass(kind, msgspec.Struct):
        return MsgspecCodec(kind)
    if dataclasses.is_dataclass(kind):
        return DataclassCodec(kind)
    return refuse(
        f"{kind.__qualname__} is no dataclass, pydantic model or msgspec struct; give a codec of your own (codec=)"
    )
