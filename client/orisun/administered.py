"""What administration is about: boundaries, indexes, users and API tokens, and how they come from the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from google.protobuf.timestamp_pb2 import Timestamp

from orisun_api import admin_pb2 as admin_pb
from orisun_api import eventstore_pb2 as pb

from .errors import refuse

ValueType = Literal["text", "numeric", "boolean", "timestamptz"]


@dataclass(frozen=True, slots=True)
class BoundaryInfo:
    """A boundary as the catalog has it."""

    name: str
    description: str
    #: The PostgreSQL schema of its tables.
    schema: str
    #: ``provisioning``, ``active`` or ``failed``.
    status: str
    #: Why its creation failed, when it did.
    last_error: str


@dataclass(frozen=True, slots=True)
class IndexField:
    """A top-level key of the events' data that an index covers; ``eventType`` means the event's type."""

    key: str
    #: How the key's text is understood, for conditions other than equality.
    type: ValueType = "text"


@dataclass(frozen=True, slots=True)
class IndexCondition:
    """Which events an index holds: ``key operator value``; the operator is one of =, >, <, >=, <=."""

    key: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a boundary."""

    name: str
    fields: tuple[IndexField, ...]
    conditions: tuple[IndexCondition, ...]
    #: Whether one condition is enough, instead of all.
    any_condition: bool
    #: Whether it is in use; a build may take a while.
    ready: bool


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """How far the build of an index is."""

    ready: bool
    #: Of the whole, about, from 0 to 100.
    percent: int
    #: What PostgreSQL does at this moment, in its words; "" while the build waits for its turn.
    phase: str


@dataclass(frozen=True, slots=True)
class User:
    """A user of the store."""

    user_id: str
    name: str
    username: str
    roles: tuple[str, ...]
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class ApiToken:
    """An API token, without its secret."""

    token_id: str
    name: str
    roles: tuple[str, ...]
    created_at: datetime.datetime
    expires_at: datetime.datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class NewApiToken:
    """An API token that was just made; ``token`` is told this once."""

    info: ApiToken
    token: str = field(repr=False)


def time_of(message: Timestamp) -> datetime.datetime:
    return message.ToDatetime(tzinfo=datetime.UTC)


def boundary_of(info: admin_pb.BoundaryInfo) -> BoundaryInfo:
    status = admin_pb.BoundaryLifecycleStatus.Name(info.status).removeprefix("BOUNDARY_LIFECYCLE_STATUS_").lower()
    return BoundaryInfo(info.name, info.description, info.placement.namespace, status, info.last_error)


def user_of(user: admin_pb.AdminUser) -> User:
    roles = tuple(user.roles)
    return User(user.user_id, user.name, user.username, roles, time_of(user.created_at), time_of(user.updated_at))


def token_of(token: admin_pb.ApiToken) -> ApiToken:
    roles = tuple(token.roles)
    return ApiToken(
        token.token_id, token.name, roles, time_of(token.created_at), time_of(token.expires_at), token.created_by
    )


def index_of(index: pb.IndexDefinition) -> Index:
    names: Mapping[int, ValueType] = {
        pb.TEXT: "text", pb.NUMERIC: "numeric", pb.BOOLEAN: "boolean", pb.TIMESTAMPTZ: "timestamptz",
    }  # fmt: skip
    return Index(
        index.name,
        tuple(IndexField(item.json_key, names[item.value_type]) for item in index.fields),
        tuple(IndexCondition(item.key, item.operator, item.value) for item in index.conditions),
        index.condition_combinator == pb.OR,
        index.state == pb.INDEX_STATE_READY,
    )


def field_message(item: str | IndexField) -> pb.IndexField:
    given = IndexField(item) if isinstance(item, str) else item
    if given.type not in get_args(ValueType):
        refuse(f'field "{given.key}": "{given.type}" is no type; it is one of {", ".join(get_args(ValueType))}')
    return pb.IndexField(json_key=given.key, value_type=given.type.upper())


def condition_message(item: IndexCondition | tuple[str, str, str]) -> pb.IndexCondition:
    given = item if isinstance(item, IndexCondition) else IndexCondition(*item)
    return pb.IndexCondition(key=given.key, operator=given.operator, value=given.value)
