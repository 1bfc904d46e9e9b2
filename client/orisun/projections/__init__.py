"""Projections: read models that events build, each event exactly once.

    class Balances(Projection):
        name = "balances"
        query = where("Deposited")

        async def handle(self, tx, event):
            await tx.execute("INSERT INTO ...", event.data["account"], event.data["amount"])

    pool = await asyncpg.create_pool(...)          # the read model's own PostgreSQL
    await Processor(pool, client.boundary("bank")).run(Balances())

- ``Projection``, ``projection`` (of a function), ``by_key``
- ``Processor``, ``ProcessorConfig``, ``PoisonPolicy``, ``Stats``, ``Lag``, ``BatchReport``
- ``run_projection_partitions``, ``run_multiple_projections``, ``stop_on_signals``
- ``PostgresCheckpoints``, ``DbapiCheckpoints`` (exactly once), ``FileCheckpoints`` (at least once), ``Tables``
- ``Administration``: what is parked, replay, reset, rebuild, repartition; ``commands`` makes a command line of it

``pip install 'orisun[projections]'`` brings asyncpg along.
"""

from ..logs import Logger, StandardLogger
from .admin import Administration, PartitionStatus, Replayed
from .app import ProjectionApp
from .batches import Stats
from .calling import Connection
from .checkpoints import AdministeredCheckpoints, Assignment, Batch, Checkpoints, Keeper, ParkedEvent, Standing, Taken
from .cli import commands
from .config import BatchReport, PoisonPolicy, ProcessorConfig
from .dbapi import DbapiCheckpoints
from .errors import (
    NotParked,
    PartitionMismatch,
    ProjectionError,
    ProjectionStopped,
    VersionMismatch,
)
from .files import FileCheckpoints
from .partitions import HashPartitions, PartitionStrategy
from .postgres import PostgresCheckpoints
from .processor import Lag, Processor
from .projection import Projection, by_key, projection
from .rebuild import Progress
from .runner import ProjectionConfig, run_multiple_projections, run_projection_partitions, stop_on_signals
from .tables import Tables

__all__ = [
    "AdministeredCheckpoints",
    "Administration",
    "Assignment",
    "Batch",
    "BatchReport",
    "Checkpoints",
    "Connection",
    "DbapiCheckpoints",
    "FileCheckpoints",
    "HashPartitions",
    "Keeper",
    "Lag",
    "Logger",
    "NotParked",
    "ParkedEvent",
    "PartitionMismatch",
    "PartitionStatus",
    "PartitionStrategy",
    "PoisonPolicy",
    "PostgresCheckpoints",
    "Processor",
    "ProcessorConfig",
    "Progress",
    "Projection",
    "ProjectionApp",
    "ProjectionConfig",
    "ProjectionError",
    "ProjectionStopped",
    "Replayed",
    "StandardLogger",
    "Standing",
    "Stats",
    "Tables",
    "Taken",
    "VersionMismatch",
    "by_key",
    "commands",
    "projection",
    "run_multiple_projections",
    "run_projection_partitions",
    "stop_on_signals",
]
