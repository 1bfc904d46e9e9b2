"""What ``orisun doctor`` looks at where the server is installed: PostgreSQL and NATS, by the server's settings.

The checks are entry points of the group ``orisun.doctor``: functions without arguments that give findings, tuples of
level (ok, warning, problem, skipped), what was checked, what was found, and what to do. They change nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

from .. import environment, logs
from ..embedded import with_postgres
from ..embedded.postgres import running_address
from ..errors import OrisunError
from ..settings import Settings


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    level: Literal["ok", "warning", "problem", "skipped"]
    check: str
    found: str
    todo: str = ""


async def postgres() -> AsyncIterator[Finding]:
    """PostgreSQL's settings, clock, transactions, the schema, and the use of indexes."""
    loaded = _settings()
    if isinstance(loaded, Finding):
        yield loaded
        return
    settings = loaded
    if settings.embeds_postgres:
        address = await asyncio.to_thread(running_address, settings.data_dir / "postgres")
        if address is None:
            yield Finding(
                "skipped", "PostgreSQL", "ORISUN_PG_* are not set, and no embedded one runs below ORISUN_DATA_DIR",
                "set them as for `orisun serve` to look at it",
            )  # fmt: skip
            return
        settings = with_postgres(settings, address)
    from . import postgres_checks as checks

    try:
        async for finding in checks.all_of(settings):
            yield finding
    except OrisunError as error:
        yield Finding("problem", "PostgreSQL", str(error), "check ORISUN_PG_*, and that it runs")


async def nats() -> AsyncIterator[Finding]:
    """NATS's version, JetStream, and whether its servers have a quorum."""
    loaded = _settings()
    if isinstance(loaded, Finding):
        return  # said already
    if loaded.nats_url is None:
        yield Finding(
            "skipped", "NATS's quorum", "ORISUN_NATS_URL is not set", "set it as for `orisun serve` to look at it"
        )
        return
    from . import nats_checks as checks

    async for finding in checks.all_of(loaded):
        yield finding


def _settings() -> Settings | Finding:
    try:
        settings = environment.load(os.environ).settings
    except environment.SettingsError as error:
        return Finding("problem", "settings", " ".join(str(error).split()), "orisun config shows them all")
    logs.configure("ERROR", settings.logging_format)
    return settings
