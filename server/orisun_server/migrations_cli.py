"""``orisun migrations``: the schema as SQL files for teams that apply their migrations themselves."""

from __future__ import annotations

import os
from pathlib import Path

import click

from orisun_server import environment
from orisun_server.cli import reports_errors


@click.group(
    epilog="""\b
Examples:
  orisun migrations generate --output migrations
  psql -1 -v ON_ERROR_STOP=1 -f migrations/0001_orisun_admin_0001_catalog.sql
"""
)
def migrations() -> None:
    """Write the schema as SQL files, to be applied by your own tool.

    `orisun migrate` applies the same migrations directly.
    """


@migrations.command(
    epilog="""\b
Examples:
  orisun migrations generate --output migrations
  orisun migrations generate --output migrations --boundary orders:shop --boundary payments:shop
  orisun migrations generate --output migrations --check          for CI: fails when a file is missing
"""
)
@click.option(
    "--output", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where to."
)
@click.option(
    "--boundary",
    "boundaries",
    multiple=True,
    metavar="NAME:SCHEMA",
    help="A boundary and its schema, repeatable; a bare NAME has a schema of its own. Default: ORISUN_PG_SCHEMAS.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when files are missing.")
@reports_errors
def generate(directory: Path, boundaries: tuple[str, ...], check: bool) -> None:
    """Write one SQL file for each migration of the admin schema and of each boundary.

    Run it again after an upgrade or with another boundary: files that are there stay as they are, new ones come after
    them. They hold the rows that `orisun serve` (with ORISUN_SCHEMA_MIGRATIONS=verify) and `orisun migrate status`
    look for. No database is needed.
    """
    from orisun_server.storage.migration_files import plan_files, write_files
    from orisun_server.storage.migrations import Scope, Sources, boundary_scope

    environ = dict(os.environ)
    if boundaries:
        environ.pop("ORISUN_BOUNDARIES", None)
        environ["ORISUN_PG_SCHEMAS"] = ",".join(boundaries)
    settings = environment.load(environ).settings
    scopes = [boundary_scope(boundary.name, boundary.schema) for boundary in settings.boundaries]
    files = plan_files(directory, Scope(settings.admin_schema), scopes, Sources.packaged())
    new = [file for file in files if file.is_new]
    if check:
        if new:
            raise click.ClickException(
                f"{len(new)} of {len(files)} files are missing in {directory}: {', '.join(file.name for file in new)}"
            )
        click.echo(f"All {len(files)} files are there.")
        return
    write_files(directory, files)
    for file in new:
        click.echo(f"{directory / file.name}")
    click.echo(f"{len(new)} new, {len(files) - len(new)} there already." if new else "Nothing new.", err=True)
