"""The pages about projections, the in-process store and testing do what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from orisun_server.settings import Settings
from tests import snippets
from tests.harness import Connection

DOCS = Path(__file__).parents[2] / "docs" / "client"


@pytest.mark.parametrize("page", ["projections", "sync", "in-process", "testing"])
async def test_snippets(
    page: str,
    make_settings: Callable[..., Settings],
    make_server: Callable[..., Awaitable[Connection]],
    pg_dsn: str,
) -> None:
    settings = make_settings("accounts", exact=True)
    server = await make_server(settings)
    connection = await asyncpg.connect(pg_dsn)
    # a database of its own for the page's read model, where the page is not about the store's own
    database = "docs_read_model"
    await connection.execute(f"DROP DATABASE IF EXISTS {database}")
    await connection.execute(f"CREATE DATABASE {database}")
    dsn = pg_dsn.replace("/orisun?", f"/{database}?") if page in ("projections", "sync") else pg_dsn
    replaced = {
        "localhost:5005": server.address,
        "postgresql://localhost/shop": dsn,
        'admin_schema="admin"': f'admin_schema="{settings.admin_schema}"',
    }
    # a loop of its own, so that what a page leaves open ends with it
    await asyncio.to_thread(asyncio.run, snippets.run(DOCS / f"{page}.md", replaced))
    await connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
    await connection.close()
