"""The schema of a read model in PostgreSQL: whose it is, so that nobody drops what is another projection's.

Each projection that fills a schema has a line of its comment; other lines of it stay.
"""

from __future__ import annotations

from typing import Any

from .errors import ProjectionError
from .projection import NEXT, Projection
from .tables import Tables, quoted

_BEGIN = "orisun: projection "


async def use(tx: Any, schema: str) -> None:
    """Put a schema first in ``search_path`` until the transaction ends."""
    if schema:
        await tx.execute(
            "SELECT pg_catalog.set_config('search_path', $1 || ', ' || current_setting('search_path'), true)",
            quoted(schema),
        )


async def claim(tx: Any, projection: Projection, boundary: str) -> None:
    """Write down that the projection fills its schema. Where the schema is another role's it cannot be dropped either,
    and nothing is written."""
    line = _line(projection, boundary)
    if not projection.schema or line in (await _lines(tx, projection.schema) or [line]):
        return
    # one after the other, also where two projections begin together
    await tx.execute("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('orisun-projections'))")
    lines = await _lines(tx, projection.schema) or []
    if line not in lines:
        said = "\n".join(one for one in [*lines, line] if one)
        literal = await tx.fetchval("SELECT pg_catalog.quote_literal($1::text)", said)
        await tx.execute(f"COMMENT ON SCHEMA {quoted(projection.schema)} IS {literal}")


async def check_own(tx: Any, projection: Projection, boundary: str, tables: Tables) -> None:
    """Raises ProjectionError where the schema holds more than the projection's read model."""
    line = _line(projection, boundary)
    others = [one for one in await _lines(tx, projection.schema) or [] if one.startswith(_BEGIN) and one != line]
    mend = "give it a schema of its own"
    if projection.schema in ("public", tables.schema):
        others.append("other tables")
    elif others:
        mend += (
            "; or, where one of them has been renamed or is gone, write the schema's comment without its line"
            f" (COMMENT ON SCHEMA {quoted(projection.schema)} IS '...')"
        )
    if others:
        said = "; ".join(one.removeprefix("orisun: ") for one in others)
        raise ProjectionError(
            f'projection "{projection.name}": its schema "{projection.schema}" holds more than its read model, and'
            f" would be dropped ({said}): {mend}"
        )


def _line(projection: Projection, boundary: str) -> str:
    return f'{_BEGIN}"{projection.name.removesuffix(NEXT)}" of boundary "{boundary}"'.replace("\n", " ")


async def _lines(tx: Any, schema: str) -> list[str] | None:
    """Those of the schema's comment, one at least; None where there is no such schema, or it is another role's."""
    row = await tx.fetchrow(
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') AS said FROM pg_catalog.pg_namespace"
        " WHERE nspname = $1 AND pg_catalog.pg_has_role(nspowner, 'USAGE')",
        schema,
    )
    return None if row is None else (row["said"] or "").split("\n")
