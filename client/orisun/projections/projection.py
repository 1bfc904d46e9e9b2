"""What a projection is: a name, which events it wants, and what it does with one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import refuse
from ..events import Event
from ..queries import EVERYTHING, Query
from .calling import call
from .errors import ProjectionError

#: What the name of a projection has more while it is made anew, and how long its own may be.
NEXT, _LONGEST_NAME = " (next)", 100


class Projection(ABC):
    """Builds a read model out of events. Subclass it, name it, and write ``handle``.

    class Balances(Projection):
        name = "balances"
        query = where("Deposited") | where("Withdrawn")

        async def handle(self, tx, event):
            await tx.execute("UPDATE account SET ...", event.data["account"])
    """

    #: Unique among the projections whose checkpoints lie together; up to 100 characters. One of the same name whose
    #: checkpoints are elsewhere is another projection, also of the same boundary.
    name: str = ""
    #: Grows when what ``handle`` does changes so that the read model must be made anew (``rebuild``). A worker whose
    #: version is not that of the read model refuses to run.
    version: int = 1
    #: The events that ``handle`` gets.
    query: Query = EVERYTHING
    #: PostgreSQL schema of the read model, first in ``search_path`` while ``setup`` and ``handle`` run; needed for
    #: ``rebuild``, which fills another schema and then gives it this name. "" leaves ``search_path`` as it is.
    #: ``reset`` and ``rebuild`` drop the schema with all that it holds, and refuse one that others fill too.
    schema: str = ""

    @abstractmethod
    def handle(self, tx: Any, event: Event) -> Awaitable[None] | None:
        """Take in one event: ``async def``, or a plain function, which runs in a thread and may block.

        ``tx`` is an asyncpg connection (for a plain function a ``Connection``, the same without ``await``) inside the
        transaction that also moves the checkpoint: what is written through it happens exactly once. (With
        ``FileCheckpoints`` it is their ``target``.)

        It is called with events in the order of positions, those of one partition.
        """

    def setup(self, tx: Any) -> Awaitable[None] | None:  # noqa: B027 - most targets that are no SQL need none
        """Make the read model's tables; called once, in the transaction that makes the first checkpoint. (Not called
        with ``FileCheckpoints``.)"""

    def reset(self, tx: Any) -> Awaitable[None] | None:
        """Empty the read model, before everything is projected again. With ``schema`` there is no need to write it:
        the schema is dropped and ``setup`` called."""
        raise ProjectionError(
            f'projection "{self.name}" does not say how to empty its read model: write reset(tx), or give it a schema'
        )

    def key_of(self, event: Event) -> str | None:
        """What keeps events together: those with one key are handled by one partition, in order. By default the
        aggregate that an event belongs to; ``by_key("account")`` takes a key of the data. None goes to partition 0."""
        fields = event.fields
        if "aggregate_id" not in fields:
            return None
        return f"{fields.get('aggregate_type', '')}/{fields['aggregate_id']}"


def check_name(projection: Projection) -> None:
    """Raises InvalidArgument where a checkpoint cannot be kept under the projection's name."""
    name = projection.name
    if not name:
        refuse(f"{type(projection).__name__} has no name: its checkpoint is kept under one")
    if len(name.removesuffix(NEXT)) > _LONGEST_NAME:
        refuse(f"the name of {type(projection).__name__} has {len(name)} characters; up to {_LONGEST_NAME} are allowed")
    if "\0" in name:
        refuse(f"the name of {type(projection).__name__} has a NUL: leave it out")


def by_key(*names: str) -> Callable[[Projection, Event], str | None]:
    """A ``key_of`` that joins top-level keys of the data: ``key_of = by_key("account")`` in the class's body. An event
    that lacks one of them has no key."""

    def key_of(_self: Projection, event: Event) -> str | None:
        fields = event.fields
        values = [fields.get(name) for name in names]
        return None if None in values else "/".join(map(str, values))

    return key_of


_Function = Callable[[Any, Event], Awaitable[None] | None]


class _OfFunction(Projection):
    def __init__(self, name: str, query: Query, function: _Function) -> None:
        self.name, self.query, self._function = name, query, function

    async def handle(self, tx: Any, event: Event) -> None:
        await call(self._function, tx, event)


def projection(name: str, query: Query = EVERYTHING) -> Callable[[_Function], Projection]:
    """Makes a projection of a function ``handle(tx, event)``, as a decorator; see ``Projection.handle``."""
    return lambda function: _OfFunction(name, query, function)
