"""The guides of administration that have snippets in Python do what they say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from orisun_server.settings import Settings
from tests import snippets
from tests.harness import Connection

DOCS = Path(__file__).parents[2] / "docs"


async def test_erasing_personal_data(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    server = await make_server(make_settings("accounts", exact=True))
    await snippets.run(DOCS / "erasure.md", {"localhost:5005": server.address})
