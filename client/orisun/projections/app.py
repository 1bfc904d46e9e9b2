"""An application's projections in one object, for ``orisun projections`` and for a command line of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ..boundary import Boundary
from ..client import Client
from ..errors import NotFound, refuse
from .checkpoints import AdministeredCheckpoints
from .config import ProcessorConfig
from .postgres import PostgresCheckpoints
from .projection import Projection
from .tables import Tables


@dataclass
class ProjectionApp:
    """What projections there are, and how one reaches the store and the read model.

    app = ProjectionApp(
        [Balances()],
        boundary="bank",
        connect=lambda: orisun.connect("localhost:5005", username=..., password=...),
        pool=lambda: asyncpg.create_pool("postgresql://..."),
    )

    Where the target is no PostgreSQL, in the place of ``pool``:
    ``checkpoints=lambda: FileCheckpoints(directory, target)``.
    """

    projections: Sequence[Projection]
    boundary: str
    #: Makes a client of the store.
    connect: Callable[[], Client]
    #: Makes an asyncpg pool of the read model's PostgreSQL.
    pool: Callable[[], Awaitable[Any]] | None = None
    #: Makes the checkpoints where they are not in a PostgreSQL of asyncpg.
    checkpoints: Callable[[], AdministeredCheckpoints] | None = None
    config: ProcessorConfig = field(default_factory=ProcessorConfig)
    tables: Tables = field(default_factory=Tables)

    def __post_init__(self) -> None:
        if (self.pool is None) == (self.checkpoints is None):
            refuse("a ProjectionApp has a pool of the read model's PostgreSQL, or checkpoints: give one of the two")

    def named(self, name: str) -> Projection:
        """The projection of that name. Raises NotFound."""
        for projection in self.projections:
            if projection.name == name:
                return projection
        names = ", ".join(sorted(projection.name for projection in self.projections))
        raise NotFound(f'there is no projection "{name}"; there are: {names}')

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[AdministeredCheckpoints, Boundary]]:
        """The checkpoints and the boundary, for as long as the ``with`` block lasts."""
        async with self.connect() as client:
            boundary = client.boundary(self.boundary)
            if self.checkpoints is not None:
                yield self.checkpoints(), boundary
            if self.pool is not None:
                pool = await self.pool()
                try:
                    yield PostgresCheckpoints(pool, self.tables), boundary
                finally:
                    await pool.close()
