"""The kind Boundary: its spec, typed (``crds/boundary.yaml`` documents spec and status)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from .cluster import Model

KIND = "Boundary"
#: Held while the resource exists, where its deletion is to touch the events.
FINALIZER = "orisun.io/boundary-data"

SCHEMA_READY, DRIFTED = "SchemaReady", "Drifted"

DeletionPolicy = Literal["Retain", "Archive", "Delete"]


class LocalRef(Model):
    """An object of the same namespace."""

    name: str


class Migration(Model):
    """How changes of the tables come about."""

    mode: Literal["Apply", "Plan"] = "Apply"
    approved_plan: str = ""


class Archive(Model):
    """Where deletionPolicy Archive writes to."""

    claim_name: str = ""
    size: str = "1Gi"
    storage_class_name: str | None = None


class BoundarySpec(Model):
    """A Boundary's spec; ``name`` and ``schema`` are filled in, see ``parse``."""

    cluster_ref: LocalRef
    name: str
    pg_schema: str = Field(alias="schema")
    description: str = ""
    deletion_policy: DeletionPolicy = "Retain"
    archive: Archive = Archive()
    migration: Migration = Migration()


def parse(obj: Mapping[str, Any]) -> BoundarySpec:
    """The spec of an object that the API server let in, with its defaults. Raises pydantic.ValidationError."""
    spec = dict(obj["spec"])
    name = spec.setdefault("name", obj["metadata"]["name"])
    spec.setdefault("schema", name)
    return BoundarySpec.model_validate(spec)
