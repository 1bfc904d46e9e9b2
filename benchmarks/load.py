"""Large logs, loaded as a dump is restored: COPY into the table of events, the sequence behind it, then VACUUM."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg

from orisun_server.storage.catalog import Boundary

from . import events

_LINES = 2_000


async def load(connection: asyncpg.Connection, boundary: Boundary, count: int, *, published: bool) -> None:
    """Fill an empty boundary; ``published`` says whether its publisher has nothing left to do."""
    names = boundary.names
    transaction = await connection.fetchval("SELECT pg_current_xact_id()::text")
    await connection.copy_to_table(
        names.events,
        schema_name=names.schema,
        source=_lines(count, str(transaction)),
        columns=[
            "global_id",
            "transaction_id",
            "pg_transaction_id",
            "event_id",
            "event_type",
            "data",
            "metadata",
            "date_created",
        ],
    )
    await connection.execute("SELECT setval($1::text::regclass, $2)", names.q_sequence, count - 1)
    if published:
        await mark_published(connection, boundary, count)
    await connection.execute(f"VACUUM ANALYZE {names.q_events}")


async def mark_published(connection: asyncpg.Connection, boundary: Boundary, count: int) -> None:
    """Put the publisher's checkpoint at the head of a log of ``count`` events; 0 is the beginning."""
    await connection.execute(f"DELETE FROM {boundary.names.q_published}")
    if count:
        await connection.execute(
            f"INSERT INTO {boundary.names.q_published} (boundary, transaction_id, global_id, event_count)"
            " VALUES ($1, $2, $2::bigint - 1, $2)",
            boundary.name,
            count,
        )


async def _lines(count: int, transaction: str) -> AsyncIterator[bytes]:
    ids = events.ids()
    lines: list[str] = []
    for number, key in enumerate(events.keys(count)):
        lines.append(
            f"{number}\t{number + 1}\t{transaction}\t{next(ids)}\t{events.EVENT_TYPE}\t{events.data(key)}"
            f"\t{events.METADATA}\tnow\n"
        )
        if len(lines) == _LINES:
            yield "".join(lines).encode()
            lines.clear()
    if lines:
        yield "".join(lines).encode()
