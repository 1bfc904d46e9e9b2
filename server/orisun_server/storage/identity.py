"""What tells one store from another: servers of different stores may share a NATS, and boundaries of one name."""

from __future__ import annotations

import secrets

from .database import Database
from .names import quote

_NAME = "store"


async def store_id(database: Database, admin_schema: str) -> str:
    """Eight hex digits, drawn once for a store and the same on all its servers. Raises Unavailable without PostgreSQL.

    A copy of the database (a dump restored elsewhere) is the same store by this measure; give it a NATS of its own.
    """
    table = f"{quote(admin_schema)}.orisun_secret"
    with database.guard():
        await database.admin.execute(
            f"INSERT INTO {table} (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
            *(_NAME, secrets.token_bytes(4)),
        )
        value: bytes = await database.admin.fetchval(f"SELECT value FROM {table} WHERE name = $1", _NAME)
    return value.hex()
