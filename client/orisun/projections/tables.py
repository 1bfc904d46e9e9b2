"""The tables of checkpoints in the read model's PostgreSQL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import refuse

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


def quoted(identifier: str) -> str:
    """An identifier for SQL. Raises InvalidArgument unless it is 1 to 63 letters, digits and underscores."""
    if not _NAME.fullmatch(identifier):
        refuse(f'"{identifier}" cannot name a table or schema: 1 to 63 letters, digits and underscores, no digit first')
    return f'"{identifier}"'


@dataclass(frozen=True)
class Tables:
    """Names of the tables, which are made where they are missing. ``schema`` must exist."""

    schema: str = "public"
    projections: str = "orisun_projection"
    checkpoints: str = "orisun_projection_checkpoint"
    parked: str = "orisun_projection_parked"

    def q(self, table: str) -> str:
        """A table's name, quoted and with its schema."""
        return f"{quoted(self.schema)}.{quoted(table)}"

    def ddl(self) -> str:
        """The statements that make the tables; for your migrations, where the read model's user may not."""
        return f"""
CREATE TABLE IF NOT EXISTS {self.q(self.projections)} (
    projection       text NOT NULL,
    boundary         text NOT NULL,
    version          int NOT NULL,
    total_partitions int NOT NULL,
    strategy         text NOT NULL,
    -- grows with each reset, rebuild and change of the number of partitions
    generation       int NOT NULL DEFAULT 1,
    -- earlier layouts: which events the new partitions find done
    history          text NOT NULL DEFAULT '[]',
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, boundary)
);
CREATE TABLE IF NOT EXISTS {self.q(self.checkpoints)} (
    projection       text NOT NULL,
    boundary         text NOT NULL,
    partition        int NOT NULL,
    generation       int NOT NULL,
    commit_position  bigint NOT NULL,
    prepare_position bigint NOT NULL,
    handled          bigint NOT NULL DEFAULT 0,
    -- grows when parked events are replayed or discarded
    parked_version   bigint NOT NULL DEFAULT 0,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, boundary, partition)
);
CREATE TABLE IF NOT EXISTS {self.q(self.parked)} (
    projection       text NOT NULL,
    boundary         text NOT NULL,
    event_id         text NOT NULL,
    event_key        text,
    event_type       text NOT NULL,
    commit_position  bigint NOT NULL,
    prepare_position bigint NOT NULL,
    -- what was raised and where; never data
    reason           text NOT NULL,
    -- 0: it waits behind another event of its key
    attempts         int NOT NULL,
    parked_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, boundary, event_id)
);
"""
