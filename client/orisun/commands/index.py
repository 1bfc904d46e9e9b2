"""``orisun index``."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import Any, get_args

import click

from ..administered import Index, IndexCondition, IndexField, ValueType
from ..errors import DeadlineExceeded, Unimplemented
from .base import Session, command, confirmed, group
from .output import Column, Record

index = group(
    "index",
    "Create and drop indexes over keys of the events' data.",
    """
    orisun index create orders account --field account
    orisun index list orders
    orisun index drop orders account
    """,
)

_TYPES = get_args(ValueType)
_CONDITION = re.compile(r"\s*([^<>=]+?)\s*(>=|<=|=|>|<)\s*(.*?)\s*", re.DOTALL)
_AGAIN = 0.2

_COLUMNS = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("FIELDS", lambda record: [f"{field['key']}:{field['type']}" for field in record["fields"]]),
    Column(
        "CONDITIONS",
        lambda record: f" {record['combinator']} ".join(
            f"{one['key']} {one['operator']} {one['value']}" for one in record["conditions"]
        ),
    ),
)


class _Field(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    name = "key[:type]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IndexField:
        if isinstance(value, IndexField):
            return value
        key, colon, kind = str(value).rpartition(":")
        if not colon or kind.lower() not in _TYPES:
            if colon and kind.isalpha() and kind.isascii():
                self.fail(f'"{kind}" is no type: one of {", ".join(_TYPES)}', param, ctx)
            return IndexField(str(value))
        return IndexField(key, kind.lower())  # type: ignore[arg-type]  # one of _TYPES


class _Condition(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IndexCondition:
        if isinstance(value, IndexCondition):
            return value
        found = _CONDITION.fullmatch(str(value))
        if found is None:
            self.fail(f'"{value}" is no condition, such as eventType=OrderPlaced or "amount >= 100"', param, ctx)
        return IndexCondition(*found.groups())


def _record(found: Index) -> Record:
    return {
        "name": found.name,
        "state": "ready" if found.ready else "building",
        "fields": [{"key": field.key, "type": field.type} for field in found.fields],
        "conditions": [{"key": c.key, "operator": c.operator, "value": c.value} for c in found.conditions],
        "combinator": "or" if found.any_condition else "and",
    }


@command(
    "create",
    within=index,
    shown="""
    orisun index create orders account --field account
    orisun index create orders by_shop --field shop --field number:numeric
    orisun index create orders large --field amount:numeric --if eventType=OrderPlaced --if 'amount >= 1000'
    orisun index create orders account --field account --no-wait
    """,
)
@click.argument("boundary")
@click.argument("name")
@click.option(
    "--field", "fields", type=_Field(), multiple=True, required=True, metavar="KEY[:TYPE]",
    help=f"A top-level key of the data; repeatable, in order. TYPE is {', '.join(_TYPES)}.  [default: text]",
)  # fmt: skip
@click.option(
    "--if", "conditions", type=_Condition(), multiple=True, metavar="CONDITION",
    help="Index only events for which this holds: KEY, one of = > < >= <=, VALUE; repeatable.",
)  # fmt: skip
@click.option("--any", "any_condition", is_flag=True, help="One of the conditions is enough.  [default: all]")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the index is in use.")
@click.option("--wait-for", type=float, default=3600.0, show_default=True, metavar="SECONDS", help="Wait no longer.")
async def create(
    session: Session,
    *,
    boundary: str,
    name: str,
    fields: tuple[IndexField, ...],
    conditions: tuple[IndexCondition, ...],
    any_condition: bool,
    wait: bool,
    wait_for: float,
) -> None:
    """Create an index over keys of the events' data.

    Criteria that name its keys then cost one look-up. It is built beside the running work; when the command is
    interrupted the build goes on. Creating it again with the same shape changes nothing; with another one it is a
    conflict. Needs the role ADMIN.
    """
    made = await session.client.admin.create_index(
        boundary, name, fields, conditions=conditions, any_condition=any_condition, timeout=None
    )
    if wait and not made.ready:
        await _built(session, boundary, name, wait_for)
        made = await session.client.admin.index(boundary, name)
    session.show.record(_record(made), _COLUMNS)


async def _built(session: Session, boundary: str, name: str, wait_for: float) -> None:
    """Waits for a build, and tells a terminal how far it is. Raises DeadlineExceeded."""
    began, shown, ready = time.monotonic(), False, False
    try:
        while not ready:
            spent = time.monotonic() - began
            if spent > wait_for:
                raise DeadlineExceeded(f'index "{name}" is still being built, and goes on; see `orisun index get`')
            await asyncio.sleep(_AGAIN)
            ready, how_far = await _look(session, boundary, name)
            if sys.stderr.isatty() and not ready and spent > 0.5:
                shown = True
                told = f"Building {name}: {how_far}{spent:,.0f} s (Ctrl-C leaves the build running)"
                click.echo(f"\r\x1b[K{told}", nl=False, err=True)
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)


async def _look(session: Session, boundary: str, name: str) -> tuple[bool, str]:
    """Whether an index is ready, and how far its build is, if the server tells."""
    try:
        build = await session.client.admin.index_build(boundary, name)
    except Unimplemented:
        return (await session.client.admin.index(boundary, name)).ready, ""
    return build.ready, f"{build.percent} %, {build.phase or 'waiting for its turn'}, "


@command("drop", within=index, shown="orisun index drop orders account --yes")
@click.argument("boundary")
@click.argument("name")
@confirmed('Drop index "{name}" of boundary "{boundary}"? Criteria that it serves will read the whole boundary.')
async def drop(session: Session, *, boundary: str, name: str) -> None:
    """Drop an index; no event is touched. One that is not there is fine. Needs the role ADMIN."""
    await session.client.admin.drop_index(boundary, name)
    session.show.say(f'Index "{name}" of boundary "{boundary}" is dropped.')


@command("list", within=index, shown="orisun index list orders")
@click.argument("boundary")
async def list_indexes(session: Session, *, boundary: str) -> None:
    """List the indexes of a boundary."""
    found = await session.client.admin.indexes(boundary)
    session.show.records(
        [_record(one) for one in found],
        _COLUMNS,
        empty=f"No indexes: criteria read all events. Create one: orisun index create {boundary} NAME --field KEY",
    )


@command("get", within=index, shown="orisun index get orders account")
@click.argument("boundary")
@click.argument("name")
async def get(session: Session, *, boundary: str, name: str) -> None:
    """Show one index, and whether it is in use yet."""
    session.show.record(_record(await session.client.admin.index(boundary, name)), _COLUMNS)
