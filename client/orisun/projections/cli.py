"""``orisun projections``: run projections and look after them; ``commands`` gives an application the same commands."""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import OrisunError
from .admin import Administration
from .app import ProjectionApp
from .rebuild import Progress
from .runner import ProjectionConfig, run_multiple_projections, stop_on_signals
from .tables import Tables

_EXAMPLES = """\b
Examples (shop.projections holds `app = ProjectionApp([...], ...)`):
  orisun projections --app shop.projections:app run
  orisun projections --app shop.projections:app run --partition-key 0 --total-partitions 4
  orisun projections --app shop.projections:app status
  orisun projections --app shop.projections:app parked balances
  orisun projections --app shop.projections:app replay balances
  orisun projections --app shop.projections:app rebuild balances
  orisun projections tables --schema public > migrations/0001_projections.sql
"""


def commands(app: ProjectionApp | Callable[[], ProjectionApp], name: str = "projections") -> click.Group:
    """The commands as a group for an application's own command line.

    Without a subcommand the group runs the projections: ``python -m app projections --partition-key=0
    --total-partitions=4``.
    """

    @click.group(name, invoke_without_command=True)
    @_run_options
    @click.pass_context
    def group(context: click.Context, /, **options: Any) -> None:
        """Run projections and look after them. Without a subcommand: run them."""
        context.obj = (lambda: app) if isinstance(app, ProjectionApp) else app
        if context.invoked_subcommand is None:
            _run(_made(context.obj), **options)

    for command in _COMMANDS:
        group.add_command(command)
    return group


def _with_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the ProjectionApp, which is made when a command runs and not for ``--help``."""

    @click.pass_obj
    @functools.wraps(command)
    def with_app(make: Callable[[], ProjectionApp], /, **options: Any) -> Any:
        return command(_made(make), **options)

    return with_app


def _made(make: Callable[[], object]) -> ProjectionApp:
    app = make()
    if not isinstance(app, ProjectionApp):
        raise click.ClickException(f"a {type(app).__name__} is no ProjectionApp, nor a function that makes one")
    return app


def _run_options(command: Any) -> Any:
    for option in (
        click.option("--projection", "names", multiple=True, help="Only this one; repeatable. Default: all."),
        click.option("--total-partitions", type=click.IntRange(min=1), default=None, help="Over all processes."),
        click.option("--partition-key", type=click.IntRange(min=0), default=None, help="This process's, from 0."),
    ):
        command = option(command)
    return command


@click.command()
@_run_options
@_with_app
def run(app: ProjectionApp, /, **options: Any) -> None:
    """Run projections until SIGTERM or Ctrl-C; the batch in hand is finished."""
    _run(app, **options)


@click.command()
@_with_app
def status(app: ProjectionApp) -> None:
    """Show where each partition stands and how far it is behind."""

    async def work(admin: Administration) -> None:
        click.echo(f"{'PROJECTION':24} {'PARTITION':>9} {'POSITION':>16} {'HANDLED':>9} {'BEHIND':>8} {'SECONDS':>8}")
        for projection in app.projections:
            for one in await admin.status(projection):
                click.echo(
                    f"{projection.name:24} {f'{one.partition}/{one.total}':>9} {one.position!s:>16} {one.handled:>9}"
                    f" {one.lag.events:>8} {one.lag.seconds:>8.1f}"
                )
            if count := len(await admin.parked(projection)):
                click.echo(f"{projection.name:24} {count} parked: `parked {projection.name}` lists them")

    _work(app, work)


@click.command()
@click.argument("projection")
@_with_app
def parked(app: ProjectionApp, projection: str) -> None:
    """List the events that were put aside, with what was raised and where."""

    async def work(admin: Administration) -> None:
        found = await admin.parked(app.named(projection))
        for one in found:
            key = one.key if one.key is not None else "-"
            click.echo(f"{one.event_id}  {one.event_type}  key={key}  at {one.position}  attempts={one.attempts}")
            click.echo(f"    {one.parked_at:%Y-%m-%d %H:%M:%S}  {one.reason}")
        click.echo(f"{len(found)} parked.", err=True)

    _work(app, work)


@click.command()
@click.argument("projection")
@click.argument("event_ids", nargs=-1)
@_with_app
def replay(app: ProjectionApp, projection: str, event_ids: Sequence[str]) -> None:
    """Handle parked events again: those of EVENT_IDS, or all. The exit status is 1 where one failed again."""

    async def work(admin: Administration) -> bool:
        handled = failed = 0
        async for one in admin.replay(app.named(projection), event_ids or None):
            handled, failed = handled + (not one.failure), failed + bool(one.failure)
            click.echo(f"{one.event.event_id}  {f'parked still: {one.failure}' if one.failure else 'handled'}")
        click.echo(f"{handled} handled, {failed} parked still.", err=True)
        return bool(failed)

    if _work(app, work):
        sys.exit(1)


@click.command()
@click.argument("projection")
@click.argument("event_ids", nargs=-1, required=True)
@_with_app
def discard(app: ProjectionApp, projection: str, event_ids: Sequence[str]) -> None:
    """Forget parked events without handling them; the store keeps them."""

    async def work(admin: Administration) -> None:
        click.echo(f"{await admin.discard(app.named(projection), event_ids)} discarded.")

    _work(app, work)


@click.command()
@click.argument("projection")
@click.confirmation_option(prompt="This empties the read model, which then fills again. Go on?")
@_with_app
def reset(app: ProjectionApp, projection: str) -> None:
    """Empty the read model and begin again; `rebuild` spares readers the empty time."""

    async def work(admin: Administration) -> None:
        await admin.reset(app.named(projection))
        click.echo("Reset. Workers begin with the first event.")

    _work(app, work)


@click.command()
@click.argument("projection")
@click.option("--batch-size", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--partitions", default=1, show_default=True, type=click.IntRange(min=1), help="Workers at a time.")
@click.option("--keep-previous", is_flag=True, help="Keep the old read model as <schema>__previous.")
@_with_app
def rebuild(app: ProjectionApp, projection: str, batch_size: int, partitions: int, keep_previous: bool) -> None:
    """Make the read model anew beside the present one, then swap them in one transaction."""

    async def work(admin: Administration) -> Progress:
        return await admin.rebuild(
            app.named(projection),
            batch_size=batch_size,
            partitions=partitions,
            on_progress=_show,
            keep_previous=keep_previous,
            config=app.config,
        )

    done = _work(app, work)
    click.echo(err=True)
    click.echo(f"Rebuilt: {done.handled} events, {done.per_second:,.0f} a second.")


@click.command()
@click.argument("projection")
@click.option("--total-partitions", required=True, type=click.IntRange(min=1))
@_with_app
def repartition(app: ProjectionApp, projection: str, total_partitions: int) -> None:
    """Lay a projection out for another number of partitions; nothing is handled twice or left out."""

    async def work(admin: Administration) -> None:
        config = replace(app.config, partition_key=0, total_partitions=total_partitions)
        await admin.repartition(app.named(projection), config)
        click.echo(f"Laid out for {total_partitions}. Start workers 0 to {total_partitions - 1}; those of before end.")

    _work(app, work)


@click.command()
@click.option("--schema", help="Schema of the tables with their usual names; without it, the tables of the app.")
@click.pass_obj
def tables(make: Callable[[], ProjectionApp], schema: str | None) -> None:
    """Print the SQL that makes the tables of checkpoints, for migrations of your own.

    Workers make what is missing by themselves where they may.
    """
    try:
        click.echo((_made(make).tables if schema is None else Tables(schema)).ddl().strip())
    except OrisunError as error:
        raise click.ClickException(str(error)) from error


_COMMANDS = (run, status, parked, replay, discard, reset, rebuild, repartition, tables)


@click.group(
    epilog=_EXAMPLES,
)
@click.option("--app", "path", metavar="MODULE:NAME", help="Where the ProjectionApp is, or a function that makes it.")
@click.pass_context
def projections(context: click.Context, path: str | None) -> None:
    """Run projections and look after them."""
    context.obj = functools.partial(_found, path)


def _found(path: str | None) -> object:
    """What ``--app`` names."""
    module, colon, name = (path or "").partition(":")
    if not colon:
        raise click.ClickException(f'--app is "{path or ""}": write MODULE:NAME, such as shop.projections:app')
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise click.ClickException(f'--app is "{path}": {error}') from None
    return found() if callable(found) else found


for _command in _COMMANDS:
    projections.add_command(_command)


def _run(
    app: ProjectionApp, names: Sequence[str] = (), partition_key: int | None = None, total_partitions: int | None = None
) -> None:
    changes: dict[str, Any] = {}
    if partition_key is not None:
        changes["partition_key"] = partition_key
    if total_partitions is not None:
        changes["total_partitions"] = total_partitions

    async def work(admin: Administration) -> None:
        config = replace(app.config, **changes)
        wanted = [app.named(name) for name in names] or list(app.projections)
        configs = [ProjectionConfig(projection, config) for projection in wanted]
        async with stop_on_signals() as stop:
            await run_multiple_projections(admin.checkpoints, admin.boundary, configs, stop=stop)

    _work(app, work)


def _work(app: ProjectionApp, work: Callable[[Administration], Coroutine[Any, Any, Any]]) -> Any:
    async def connected() -> Any:
        async with app.connected() as (checkpoints, boundary):
            return await work(Administration(checkpoints, boundary))

    try:
        return asyncio.run(connected())
    except OrisunError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        what = (
            "the read model's PostgreSQL cannot be reached" if app.pool else "the checkpoints cannot be read or written"
        )
        raise click.ClickException(f"{what}: {error}") from error


def _show(progress: Progress) -> None:
    if sys.stderr.isatty():
        left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else ""
        click.echo(f"\r{progress.percent:5.1f} %  {progress.done:,} of {progress.total:,}{left}   ", err=True, nl=False)
