"""The command ``orisun archive``: a boundary's events as a file that is read back and compared."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from orisun_server import checks, environment, logs
from orisun_server.cli import reports_errors
from orisun_server.errors import InvalidArgument
from orisun_server.setting_types import default_schema
from orisun_server.settings import Settings
from orisun_server.storage.archive import Manifest, write
from orisun_server.storage.boundaries import Boundary, check_name
from orisun_server.storage.database import Database
from orisun_server.storage.names import is_identifier


@click.command(
    epilog="""\b
Examples:
  orisun archive orders --output /backup               /backup/orders.jsonl.gz and orders.jsonl.gz.manifest.json
  orisun archive orders --schema public --output .     where the boundary's tables are in another schema
  zcat orders.jsonl.gz | head -1                       a line is one event, in the order of positions
"""
)
@click.argument("boundary")
@click.option("--schema", help="PostgreSQL schema of the boundary's tables; by default called like the boundary")
@click.option(
    "--output",
    "directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True, writable=True),
    required=True,
    help="Directory to write to",
)
@click.option("--file", help="Name of the file; by default BOUNDARY.jsonl.gz")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the manifest to this file too (a container's termination log)",
)
@reports_errors
def archive(boundary: str, schema: str | None, directory: Path, file: str | None, report: Path | None) -> None:
    """Write the events of BOUNDARY to a file of compressed JSON Lines.

    It holds the events up to the last one at the start. The file is read back and compared with PostgreSQL, and appears
    under its name only when that went well. The manifest tells count, last position and SHA-256. The ORISUN_PG_*
    variables say where PostgreSQL is.
    """
    check_name(boundary)
    schema = schema or default_schema(boundary)
    if not is_identifier(schema):
        raise InvalidArgument(f'invalid schema "{schema}": 1 to 63 letters, digits and underscores, the first no digit')
    settings = environment.load(os.environ, checks.of_postgres).settings
    logs.configure("WARN", settings.logging_format)
    if settings.embeds_postgres:
        raise click.ClickException("set ORISUN_PG_HOST and the like: an embedded PostgreSQL is its server's own")
    try:
        manifest = asyncio.run(_write(settings, Boundary.at(boundary, schema), directory, file))
    except OSError as error:
        raise click.ClickException(f"{directory}: {error.strerror or error}") from error
    if report is not None:
        report.write_text(manifest.text(), encoding="utf-8")
    click.echo(manifest.text(), nl=False)


async def _write(settings: Settings, boundary: Boundary, directory: Path, file: str | None) -> Manifest:
    small = {f"pg_{pool}_max_open_conns": 1 for pool in ("write", "read", "admin")}
    database = await Database.connect(settings.model_copy(update=small))
    try:
        return await write(database, boundary, directory, file or f"{boundary.name}.jsonl.gz")
    finally:
        await database.close()
