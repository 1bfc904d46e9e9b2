"""The rpcs about indexes, which both services have."""

from __future__ import annotations

from typing import Any, Protocol

from orisun_api import eventstore_pb2 as pb

from ..core.audit import INDEX_CREATED, INDEX_DROPPED
from ..core.criteria import normal_key
from ..core.users import Caller
from ..errors import InvalidArgument
from ..storage.catalog import Boundary, Catalog
from ..storage.index_sql import OPERATORS, IndexCondition, IndexDefinition, IndexField, ValueType
from ..storage.indexes import Indexes, IndexRecord
from . import convert


class AuditLog(Protocol):
    """Where administrative acts are noted; admin/audit.py implements it."""

    async def acted(self, event_type: str, by: Caller, **data: Any) -> None: ...


class IndexRpcs:
    """CreateIndex, DropIndex, ListIndexes, GetIndex."""

    def __init__(self, catalog: Catalog, indexes: Indexes, audit: AuditLog) -> None:
        self._catalog = catalog
        self._indexes = indexes
        self._audit = audit

    async def create_index(self, request: pb.CreateIndexRequest, caller: Caller) -> pb.CreateIndexResponse:
        if not request.boundary or not request.name or not request.fields:
            raise InvalidArgument("boundary, name, and at least one field are required")
        if not all(field.json_key for field in request.fields):
            raise InvalidArgument("each field must have a json_key")
        if not all(condition.key for condition in request.conditions):
            raise InvalidArgument("each condition must have a key")
        for condition in request.conditions:
            if condition.operator not in OPERATORS:
                raise InvalidArgument(f'invalid operator "{condition.operator}": must be one of {", ".join(OPERATORS)}')
        boundary = self._boundary(request.boundary)
        await self._indexes.create(boundary, _definition(request))
        await self._audit.acted(INDEX_CREATED, caller, boundary=boundary.name, index=request.name)
        return pb.CreateIndexResponse()

    async def drop_index(self, request: pb.DropIndexRequest, caller: Caller) -> pb.DropIndexResponse:
        boundary = self._named(request.boundary, request.name)
        await self._indexes.drop(boundary, request.name)
        await self._audit.acted(INDEX_DROPPED, caller, boundary=boundary.name, index=request.name)
        return pb.DropIndexResponse()

    async def list_indexes(self, request: pb.ListIndexesRequest, _: Caller) -> pb.ListIndexesResponse:
        records = await self._indexes.list(self._boundary(request.boundary))
        return pb.ListIndexesResponse(indexes=map(_message, records))

    async def get_index(self, request: pb.GetIndexRequest, _: Caller) -> pb.GetIndexResponse:
        record = await self._indexes.get(self._named(request.boundary, request.name), request.name)
        return pb.GetIndexResponse(index=_message(record))

    def _named(self, boundary: str, name: str) -> Boundary:
        if not boundary or not name:
            raise InvalidArgument("boundary and name are required")
        if "\0" in name:
            raise InvalidArgument("index name must not contain NUL characters")
        return self._boundary(boundary)

    def _boundary(self, name: str) -> Boundary:
        return self._catalog.get(convert.boundary_name(name))


def _definition(request: pb.CreateIndexRequest) -> IndexDefinition:
    return IndexDefinition(
        name=request.name,
        fields=tuple(
            IndexField(normal_key(field.json_key), _value_type(number, field.value_type))
            for number, field in enumerate(request.fields)
        ),
        conditions=tuple(
            IndexCondition(normal_key(condition.key), condition.operator, condition.value)
            for condition in request.conditions
        ),
        combinator=_combinator(request.condition_combinator),
    )


def _value_type(number: int, value: int) -> ValueType:
    try:
        return ValueType(value)
    except ValueError:
        raise InvalidArgument(f"field {number} value_type: {value} is unknown") from None


def _combinator(value: pb.ConditionCombinator) -> str:
    if value not in pb.ConditionCombinator.values():
        raise InvalidArgument(f"condition_combinator: {value} is unknown")
    return pb.ConditionCombinator.Name(value)


def _message(record: IndexRecord) -> pb.IndexDefinition:
    definition = record.definition
    return pb.IndexDefinition(
        name=definition.name,
        fields=[pb.IndexField(json_key=field.key, value_type=field.value_type.name) for field in definition.fields],
        conditions=[
            pb.IndexCondition(key=condition.key, operator=condition.operator, value=condition.value)
            for condition in definition.conditions
        ],
        condition_combinator=definition.combinator,
        state=pb.INDEX_STATE_READY if record.state == "READY" else pb.INDEX_STATE_BUILDING,
    )
