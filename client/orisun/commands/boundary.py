"""``orisun boundary``."""

from __future__ import annotations

import dataclasses

import click

from ..administered import BoundaryInfo
from .base import Session, command, group
from .output import Column, Record

boundary = group(
    "boundary",
    "Create boundaries, and look at them.",
    """
    orisun boundary list
    orisun boundary create orders --schema shop --description 'Orders of the shop'
    orisun boundary get orders
    """,
)

_COLUMNS = (
    Column("NAME", "name"),
    Column("STATUS", "status"),
    Column("SCHEMA", "schema"),
    Column("DESCRIPTION", "description", is_flexible=True),
    Column("LAST ERROR", "last_error"),
)


def _record(info: BoundaryInfo) -> Record:
    return dataclasses.asdict(info)


@command(
    "create",
    within=boundary,
    shown="""
    orisun boundary create orders                  in a schema that is called so too
    orisun boundary create orders --schema shop
    orisun boundary create orders --existing       take over tables that are there already
    """,
)
@click.argument("name")
@click.option("--schema", metavar="NAME", help="PostgreSQL schema of its tables.  [default: the boundary's name]")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option("--existing", is_flag=True, help="Its tables may be there already; take them over.")
async def create(session: Session, *, name: str, schema: str | None, description: str, existing: bool) -> None:
    """Create a boundary and wait until it is active.

    NAME is up to 63 letters, digits and underscores. All servers serve it within seconds, without a restart. Needs the
    role ADMIN. There is no command that deletes a boundary, since that would delete its events.
    """
    made = await session.client.admin.create_boundary(
        name,
        schema=schema or name,
        description=description,
        existed_before=existing,
        timeout=session.connection.timeout,
    )
    session.show.record(_record(made), _COLUMNS)


@command(
    "list",
    within=boundary,
    shown="""
    orisun boundary list
    orisun boundary list --output json | jq -r '.[].name'
    """,
)
async def list_boundaries(session: Session) -> None:
    """List the boundaries. `orisun status` shows their counts and positions."""
    found = await session.client.admin.boundaries()
    # the error of a boundary that failed is worth a column only where there is one
    columns = _COLUMNS if any(info.last_error for info in found) else _COLUMNS[:-1]
    session.show.records(
        [_record(info) for info in found], columns, empty="No boundaries. Create one: orisun boundary create orders"
    )


@command("get", within=boundary, shown="orisun boundary get orders")
@click.argument("name")
async def get(session: Session, *, name: str) -> None:
    """Show one boundary."""
    session.show.record(_record(await session.client.admin.boundary(name)), _COLUMNS)
