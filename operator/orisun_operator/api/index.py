"""The kind EventIndex: its spec, typed (``crds/eventindex.yaml`` documents spec and status)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .cluster import Model

KIND = "EventIndex"
BLOCKED = "BlockedByTransaction"


class BoundaryRef(Model):
    """A Boundary of the same namespace."""

    name: str


class IndexField(Model):
    """One key of the index."""

    json_key: str
    value_type: Literal["TEXT", "NUMERIC", "BOOLEAN", "TIMESTAMPTZ"] = "TEXT"


class IndexCondition(Model):
    """One comparison that the indexed events satisfy."""

    key: str
    operator: Literal["=", ">", "<", ">=", "<="]
    value: str


class EventIndexSpec(Model):
    """An EventIndex's spec; ``name`` is filled in, see ``parse``."""

    boundary_ref: BoundaryRef
    name: str
    fields: tuple[IndexField, ...]
    conditions: tuple[IndexCondition, ...] = ()
    combinator: Literal["AND", "OR"] = "AND"


def parse(obj: Mapping[str, Any]) -> EventIndexSpec:
    """The spec of an object that the API server let in, with its defaults. Raises pydantic.ValidationError."""
    spec = dict(obj["spec"])
    spec.setdefault("name", obj["metadata"]["name"])
    return EventIndexSpec.model_validate(spec)
