"""What PostgreSQL of a cluster holds: whether its schema fits, and what was made by rpc."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..kube import Object
from . import Blocked, Context
from .schema import survey

#: Names of each kind that a status lists.
_SHOWN = 200


@dataclass(frozen=True)
class Schema:
    """``problem`` says why the schema does not fit yet, "" when it does; ``blocked`` why it could not be looked at."""

    problem: str = ""
    blocked: Blocked | None = None
    boundaries: int = 0
    unmanaged: list[str] = field(default_factory=list)
    #: As BOUNDARY/INDEX.
    unmanaged_indexes: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """What is unmanaged, as the status has it: clients may make more than a Kubernetes object can hold."""
        return {
            "boundaries": self.unmanaged[:_SHOWN],
            "boundaryCount": len(self.unmanaged),
            "indexes": self.unmanaged_indexes[:_SHOWN],
            "indexCount": len(self.unmanaged_indexes),
        }


async def look_at_schema(context: Context, obj: Object) -> Schema:
    """As ``schema.survey`` has it, with what stands in the way of looking as a value."""
    try:
        found = await survey(context, obj)
    except Blocked as blocked:
        return Schema(str(blocked), blocked)
    return Schema(
        "" if found.ready else found.message,
        None,
        found.boundaries,
        list(found.unmanaged.boundaries),
        list(found.unmanaged.indexes),
    )
