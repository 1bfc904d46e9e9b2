"""``orisun doctor``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Callable
from typing import Any

import click

from . import checks
from .base import Exit, Session, command
from .findings import Finding
from .output import Column, Stream

#: Entry points of further checks: functions without arguments that give (level, check, found, todo) asynchronously.
#: The server brings those of PostgreSQL and NATS along.
GROUP = "orisun.doctor"

_COLORS = {"ok": "green", "warning": "yellow", "problem": "red", "skipped": "bright_black"}
_COLUMNS = (
    Column("LEVEL", "level"),
    Column("CHECK", "check"),
    Column("FOUND", "found"),
    Column("TO DO", "todo"),
)


@command(
    "doctor",
    shown="""
    orisun doctor
    orisun doctor --admin-url http://localhost:8991
    ORISUN_PG_HOST=db ORISUN_PG_PASSWORD=... ORISUN_NATS_URL=nats://... orisun doctor
    orisun doctor --output json | jq '.[] | select(.level == "problem")'
    """,
)
@click.option(
    "--admin-url", envvar="ORISUN_ADMIN_URL", show_envvar=True, metavar="URL",
    help="The admin page of a server, for NATS, clocks and metrics.  [default: port 8991 beside port 5005]",
)  # fmt: skip
async def doctor(session: Session, *, admin_url: str | None) -> None:
    """Look for what is wrong with a store, and say what to do.

    Servers, versions, TLS certificates, clocks, boundaries and indexes are looked at through the API. Where the server
    is installed too, and ORISUN_PG_* and ORISUN_NATS_URL are set as for `orisun serve` (or the embedded PostgreSQL
    below ./data/orisun runs), PostgreSQL's settings, long transactions, the schema, unused indexes and NATS's quorum
    are looked at as well. Nothing is changed. The exit code is 1 when there is a problem; warnings leave it 0.
    """
    found: list[Finding] = []
    with session.show.stream(_COLUMNS) as stream:
        async for finding in _all(session, admin_url):
            found.append(finding)
            _show(session, stream, finding)
    counts = {level: sum(one.level == level for one in found) for level in _COLORS}
    session.show.say(
        f"\n{_many(counts['problem'], 'problem')}, {_many(counts['warning'], 'warning')};"
        f" checks that are fine: {counts['ok']}, skipped: {counts['skipped']}."
    )
    if counts["problem"]:
        raise click.exceptions.Exit(Exit.FAILURE)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


async def _all(session: Session, admin_url: str | None) -> AsyncIterator[Finding]:
    async for finding in checks.all_of(session, admin_url):
        yield finding
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            check: Callable[[], AsyncIterator[Any]] = entry.load()
        except ModuleNotFoundError as error:
            yield Finding("skipped", entry.name, f"not installed here ({error.name} is missing)", "")
            continue
        try:
            async for one in check():
                yield Finding(*one)
        except Exception as error:  # the other checks are worth having still
            yield Finding("problem", entry.name, f"the check itself failed: {type(error).__name__}", "this is a bug")


def _show(session: Session, stream: Stream, finding: Finding) -> None:
    if not session.show.for_people:
        stream.add(finding._asdict())
        return
    mark = click.style(f"{finding.level:8}", fg=_COLORS[finding.level])
    click.echo(f"{mark}  {finding.check}: {finding.found}")
    if finding.todo:
        click.echo(f"{'':8}  -> {finding.todo}")
