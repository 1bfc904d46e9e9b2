"""The server's commands of ``orisun``: serve, config, migrate. Settings come from the environment alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import structlog

from orisun.commands.output import Column, Format, Show, output_option
from orisun_server import environment, logs
from orisun_server.errors import OrisunError
from orisun_server.settings import Settings

if TYPE_CHECKING:
    from orisun_server.app import App
    from orisun_server.storage.migrate import Migrator, Step
    from orisun_server.storage.migrations import Scope

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


def reports_errors(command: F) -> F:
    """Mistakes that the user can mend end the command with their text and status 1, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> object:
        try:
            return command(*args, **kwargs)
        except (OrisunError, environment.SettingsError) as error:
            raise click.ClickException(str(error)) from error

    return wrapped  # type: ignore[return-value]


@click.command(
    epilog="""\b
Examples:
  orisun serve                                    a store on localhost:5005, PostgreSQL and NATS included
  ORISUN_GRPC_PORT=6005 orisun serve              on another port
  ORISUN_PG_HOST=db ORISUN_PG_PASSWORD=... ORISUN_PG_NAME=orisun orisun serve
                                                  with a PostgreSQL of your own
  ORISUN_NATS_URL=nats://user:password@nats:4222 orisun serve
                                                  with a NATS of your own (JetStream enabled)
"""
)
@reports_errors
def serve() -> None:
    """Run the event store.

    Without ORISUN_PG_* it starts a PostgreSQL, without ORISUN_NATS_URL a nats-server; both keep their data below
    ./data/orisun (ORISUN_DATA_DIR, ORISUN_NATS_STORE_DIR). SIGTERM or Ctrl-C finishes what was taken and stops; a
    second one stops at once. `orisun config` shows all settings.
    """
    from orisun_server import checks

    loaded = environment.load(os.environ, checks.of_server)
    settings = loaded.settings
    logs.configure(settings.logging_level, settings.logging_format)
    log = structlog.get_logger("orisun")
    for warning in loaded.warnings:
        log.warning(warning)

    def on_ready(app: App) -> None:
        if settings.logging_format == "json":  # whoever reads that is no person
            return
        from orisun_server.banner import banner

        text = banner(settings, app.effective, app.address, app.page_address, color=sys.stderr.isatty())
        click.echo(text, err=True)

    from orisun_server import process

    try:
        _run(process.run(settings, on_ready=on_ready))
    except (OrisunError, environment.SettingsError):
        raise
    except Exception:
        # by the log's rules, which keep payloads out of tracebacks
        log.exception("the server failed; this is a bug")
        sys.exit(70)  # EX_SOFTWARE


@click.command(
    epilog="""\b
Examples:
  orisun config                       a table: variable, value, where it came from
  orisun config --output json         for scripts; or yaml
  orisun config --output markdown     the reference of all variables
"""
)
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml", "markdown"]), default="table", show_default=True,
    envvar="ORISUN_CLIENT_OUTPUT", show_envvar=True,
)  # fmt: skip
@reports_errors
def config(output: Literal[Format, "markdown"]) -> None:
    """Show the effective settings, secrets masked, and where each came from.

    The origin is "environment", "default", or "derived" (from other variables). All mistakes that would keep `orisun
    serve` from starting here are listed at once, certificates that cannot be read among them, and the exit status is 1
    then.
    """
    if output == "markdown":
        click.echo(environment.reference(), nl=False)
        return
    from orisun_server import checks

    loaded = environment.load(os.environ, checks.of_server)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    values = environment.effective(loaded.settings).items()
    if output == "table":
        click.echo(
            _table(("VARIABLE", "ORIGIN", "VALUE"), [(name, loaded.origins[name], value) for name, value in values])
        )
    else:
        Show(output).record({name: {"value": value, "origin": loaded.origins[name]} for name, value in values})


@click.group(
    epilog="""\b
Examples:
  orisun migrate status               where the schema of each boundary stands
  orisun migrate plan                 what `apply` would do
  orisun migrate apply                do it; safe while servers run and when several do so at once
"""
)
def migrate() -> None:
    """Look after the schema in PostgreSQL.

    `orisun serve` migrates by itself unless ORISUN_SCHEMA_MIGRATIONS=verify. The same ORISUN_PG_* variables apply;
    without them it is the embedded PostgreSQL's.
    """


_STEPS = (Column("SCOPE", "scope"), Column("SCHEMA", "schema"), Column("MIGRATION", "migration"))
_STATES = (*_STEPS[:2], Column("VERSION", "version"), Column("STATE", "state"))


@migrate.command()
@output_option
@reports_errors
def plan(output: Format) -> None:
    """Show the migrations that `apply` would run."""
    _show_steps(output, _migrate(lambda migrator, scopes: migrator.plan(scopes)))


@migrate.command()
@output_option
@reports_errors
def apply(output: Format) -> None:
    """Run the pending migrations, and show them."""
    _show_steps(output, _migrate(lambda migrator, scopes: migrator.apply(scopes)))


@migrate.command()
@output_option
@reports_errors
def status(output: Format) -> None:
    """Show where each schema stands; the exit status is 1 where this server cannot run on one."""
    from orisun_server.storage.migrate import newest_applied

    states = _migrate(lambda migrator, scopes: migrator.status(scopes))
    rows = [
        {
            "scope": state.scope.label,
            "schema": state.scope.schema,
            "version": newest_applied(state),
            "state": state.problem or (f"{len(state.pending)} pending" if state.pending else "up to date"),
        }
        for state in states
    ]
    Show(output).records(rows, _STATES)
    if any(state.problem for state in states):
        sys.exit(1)


def _show_steps(output: Format, steps: Sequence[Step]) -> None:
    if not steps and output == "table":
        click.echo("Nothing to do: the schema is up to date.")
        return
    rows = [{"scope": one.scope, "schema": one.schema, "migration": f"{one.version:04} {one.name}"} for one in steps]
    Show(output).records(rows, _STEPS)


def _migrate(work: Callable[[Migrator, list[Scope]], Coroutine[Any, Any, T]]) -> T:
    from orisun_server import checks

    loaded = environment.load(os.environ, checks.of_postgres)
    logs.configure("WARN", loaded.settings.logging_format)

    async def connected() -> T:
        from orisun_server.storage.database import Database
        from orisun_server.storage.migrate import Migrator

        async with _postgres(loaded.settings) as settings:
            database = await Database.connect(settings)
            try:
                migrator = Migrator(database, settings.admin_schema, applied_by="orisun migrate")
                seeds = [(b.name, b.schema) for b in settings.boundaries]
                return await work(migrator, await migrator.scopes(seeds))
            finally:
                await database.close()

    return _run(connected())


@contextlib.asynccontextmanager
async def _postgres(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with a PostgreSQL that runs: theirs, the embedded one of a server that runs, or one for now."""
    if not settings.embeds_postgres:
        yield settings
        return
    from orisun_server.embedded import with_postgres
    from orisun_server.embedded.postgres import EmbeddedPostgres, running_address

    address = running_address(settings.data_dir / "postgres")
    if address is not None:
        yield with_postgres(settings, address)
        return
    postgres = EmbeddedPostgres(settings.data_dir / "postgres")
    try:
        yield with_postgres(settings, await postgres.start())
    finally:
        await postgres.stop()


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(work)
    return uvloop.run(work)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )
