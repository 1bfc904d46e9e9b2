"""Indexes of a boundary: list with size and use, create with a preview of the SQL, drop after a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ....core import audit
from ....core.criteria import normal_key
from ....errors import AlreadyExists, InvalidArgument
from ....storage.index_catalog import BUILDING, check
from ....storage.index_sql import OPERATORS, IndexCondition, IndexDefinition, IndexField, ValueType
from ..context import Context
from ..security import check_text

_FIELDS, _CONDITIONS = 4, 3
_PER_PAGE = 50


async def indexes(context: Context) -> Response:
    one, parts = context.boundary, context.parts
    records, page, pages = context.paged(await parts.indexes.list(one), _PER_PAGE)
    use = await parts.insight.index_use(one.schema, [record.pg_name for record in records])
    builds = {record.pg_name: await parts.indexes.progress(record) for record in records if record.state == BUILDING}
    values: dict[str, Any] = {
        "boundary": one.name,
        "records": records,
        "page": page,
        "pages": pages,
        "use": use,
        "builds": builds,
        "building": bool(builds),
        "advice": [e for e in parts.watch.queries.entries(unindexed=True) if e.shape.boundary == one.name][:5],
    }
    return context.render("_indexes.html" if context.is_fragment else "indexes.html", **values)


async def new_index(context: Context) -> Response:
    """The form; keys in the query (``key=a&key=b``) fill it in."""
    keys = context.request.query_params.getlist("key")[:_FIELDS]
    form = {f"key{number}": key[:255] for number, key in enumerate(keys)}
    if keys:
        form["name"] = "_".join("".join(c if c.isalnum() and c.isascii() else "_" for c in key) for key in keys)[:55]
    return _form(context, form)


async def create_index(context: Context) -> Response:
    """Shows the SQL, or creates the index."""
    form, one = await context.form(), context.boundary
    try:
        definition = _definition(form)
        check(definition)
        if form.get("act") != "create":
            sql = definition.create_sql(one.names, definition.pg_name(one.names, "00000000"))
            if context.is_fragment:
                return context.render("_sql.html", sql=sql, problem="")
            return _form(context, form, sql=sql)
        await context.parts.indexes.create(one, definition)
    except (InvalidArgument, AlreadyExists) as error:
        if context.is_fragment:
            return context.render("_sql.html", sql="", problem=str(error))
        return _form(context, form, problem=str(error), status=400)
    await context.parts.audit.acted(
        audit.INDEX_CREATED, context.caller, boundary=one.name, index=definition.name,
        fields=[field.key for field in definition.fields],
    )  # fmt: skip
    return context.go(f"/b/{one.name}/indexes", f"Index {definition.name} is being built.")


async def ask_drop(context: Context) -> Response:
    record = await context.parts.indexes.get(context.boundary, _name(context))
    use = await context.parts.insight.index_use(record.schema, [record.pg_name])
    return context.render("index_drop.html", boundary=context.boundary.name, record=record, use=use.get(record.pg_name))


async def drop(context: Context) -> Response:
    name, one = _name(context), context.boundary
    await context.parts.indexes.get(one, name)
    await context.parts.indexes.drop(one, name)
    await context.parts.audit.acted(audit.INDEX_DROPPED, context.caller, boundary=one.name, index=name)
    return context.go(f"/b/{one.name}/indexes", f"Index {name} is dropped.")


def _name(context: Context) -> str:
    return check_text("name of the index", context.request.path_params["name"], 255)


def _form(
    context: Context, form: Mapping[str, str], *, sql: str = "", problem: str = "", status: int = 200
) -> Response:
    values: dict[str, Any] = {
        "boundary": context.boundary.name,
        "form": form,
        "fields": range(_FIELDS),
        "conditions": range(_CONDITIONS),
        "types": [one.name for one in ValueType],
        "operators": OPERATORS,
        "sql": sql,
        "problem": problem,
    }
    return context.render("index_new.html", status, **values)


def _definition(form: Mapping[str, str]) -> IndexDefinition:
    fields = [
        IndexField(normal_key(key), ValueType[form.get(f"type{number}", "TEXT")])
        for number in range(_FIELDS)
        if (key := form.get(f"key{number}", "").strip()) and form.get(f"type{number}", "TEXT") in ValueType.__members__
    ]
    conditions = [
        IndexCondition(normal_key(key), form.get(f"operator{number}", "="), form.get(f"value{number}", ""))
        for number in range(_CONDITIONS)
        if (key := form.get(f"condition{number}", "").strip())
    ]
    if not fields:
        raise InvalidArgument("give at least one field: a key of the events' data, or eventType")
    if any(condition.operator not in OPERATORS for condition in conditions):
        raise InvalidArgument(f"an operator is one of {', '.join(OPERATORS)}")
    combinator = "OR" if form.get("combinator") == "OR" else "AND"
    return IndexDefinition(form.get("name", "").strip(), tuple(fields), tuple(conditions), combinator)
