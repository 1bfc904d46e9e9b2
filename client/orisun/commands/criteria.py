"""Criteria and positions on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ..position import NOTHING, Position
from ..queries import EVERYTHING, Query, where

F = TypeVar("F", bound=Callable[..., object])

#: Stands between the criteria in the option's values; no KEY=VALUE is like it.
_OR = "|"


class _Tag(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is _OR or isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f'"{value}" is no KEY=VALUE, such as eventType=OrderPlaced or account=a-1', param, ctx)
        return key, text


class _Criteria(click.Option):
    """--where and --or as one parameter, so that their order is kept."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        parser.add_option(obj=self, opts=["--or"], dest=self.name, action="append_const", const=_OR)


class _PositionType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    name = "position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Position:
        if isinstance(value, Position):
            return value
        if value == "none":
            return NOTHING
        try:
            return Position.parse(value)
        except ValueError:
            self.fail(f'"{value}" is no position; write it like 12,11: commit and prepare position', param, ctx)


#: A position, or ``none`` for that of an empty context.
POSITION = _PositionType()


def criteria(function: F) -> F:
    """Adds --where and --or; the parameter is ``query``."""
    option = click.option(
        "--where", "query", cls=_Criteria, type=_Tag(), multiple=True, callback=_query, metavar="KEY=VALUE",
        help="Only events whose data has this value at this top-level key; eventType is the event's type. Repeated, "
        "all must hold; --or between them begins an alternative.",
    )  # fmt: skip
    return option(function)


def _query(ctx: click.Context, _: click.Parameter, values: Sequence[Any]) -> Query:
    if not values:
        return EVERYTHING
    alternatives: list[list[tuple[str, str]]] = [[]]
    for value in values:
        if value is _OR:
            alternatives.append([])
        else:
            alternatives[-1].append(value)
    if not all(alternatives):
        raise click.UsageError("--or stands between two --where", ctx)
    queries = []
    for tags in alternatives:
        keys = dict(tags)
        if len(keys) < len(tags):
            raise click.UsageError("one key has two values; put --or between the two --where", ctx)
        queries.append(where(keys))
    query = queries[0]
    for other in queries[1:]:
        query |= other
    return query
