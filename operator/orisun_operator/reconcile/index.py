"""The kind EventIndex: a row in the catalog of indexes, built by the same builder and under the same leases as theirs.

The builder belongs to the session with the store (and to each server): here the catalog is brought to what the spec
says, and what PostgreSQL tells is shown. A build outlives whoever began it.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from orisun_server.core.criteria import normal_key
from orisun_server.errors import InvalidArgument
from orisun_server.storage.boundaries import BoundaryRecord, BoundaryStatus
from orisun_server.storage.index_catalog import BUILDING, READY, IndexRecord, beside_name, check
from orisun_server.storage.index_progress import Facts, Locker, Progress, facts, progress
from orisun_server.storage.index_sql import IndexCondition, IndexDefinition, IndexField, ValueType
from orisun_server.storage.names import BoundaryNames

from ..api import API_VERSION
from ..api.boundary import KIND as BOUNDARY
from ..api.boundary import parse as parse_boundary
from ..api.conditions import READY as IS_READY
from ..api.conditions import is_true, remove_condition, set_condition
from ..api.index import BLOCKED, KIND, EventIndexSpec, parse
from ..api.manager import Manager
from ..kube import Object, Ref
from . import Blocked, Context, Outcome
from .managers import check_free, cluster_of, manager_of, release_of_gone
from .postgres import Session
from .report import Report, concluded, read_spec

#: Seconds until a build is looked at again.
_BUILDING = 3.0
#: Seconds for which a build may wait for a transaction before it is worth a word.
_PATIENCE = 2.0


async def reconcile(context: Context, namespace: str, name: str) -> Outcome:
    """Bring one EventIndex a step further. Raises KubeError where the API server fails."""
    obj = await context.kube.get(Ref(API_VERSION, KIND, namespace, name))
    if obj is None:
        return await release_of_gone(context, KIND, namespace, name)
    if obj["metadata"].get("deletionTimestamp"):
        return Outcome()
    report = Report(context, obj)
    return await concluded(report, _look(context, obj, report))


async def _look(context: Context, obj: Object, report: Report) -> Outcome:
    return await _converge(context, obj, read_spec(parse, obj), report)


async def _converge(context: Context, obj: Object, spec: EventIndexSpec, report: Report) -> Outcome:
    namespace = obj["metadata"]["namespace"]
    report.status["index"] = spec.name
    definition = _definition(spec)
    owner = await context.kube.get(Ref(API_VERSION, BOUNDARY, namespace, spec.boundary_ref.name))
    if owner is None:
        raise Blocked(
            "BoundaryNotFound",
            f"there is no Boundary {namespace}/{spec.boundary_ref.name}: create it, or delete this resource and name"
            " another",
            retry=15.0,
        )
    try:
        boundary = parse_boundary(owner)
    except ValidationError:
        raise Blocked("BoundaryNotReady", f"Boundary {namespace}/{spec.boundary_ref.name} is not valid") from None
    report.status["boundary"] = boundary.name
    cluster = await cluster_of(context, namespace, boundary.cluster_ref.name)
    async with context.postgres.session(cluster) as session:
        found = await session.boundaries.find(boundary.name)
        if not _is_active(found, await manager_of(context, BOUNDARY, namespace, spec.boundary_ref.name)):
            raise Blocked(
                "BoundaryNotReady",
                f"Boundary {namespace}/{spec.boundary_ref.name} is not active yet: its own status says why",
                stalled=False,
                retry=2.0,
            )
        names = BoundaryNames(boundary.pg_schema, boundary.name)
        me = await manager_of(context, KIND, namespace, obj["metadata"]["name"])
        await _claim(session, (boundary.name, definition.name), me, report, cluster=cluster)
        record = await _settle(session, names, definition, str(me), report)
        return await _show(session, record, report)


def _is_active(record: BoundaryRecord | None, manager: Manager) -> bool:
    return record is not None and record.status is BoundaryStatus.ACTIVE and manager.is_called(record.managed_by)


def _definition(spec: EventIndexSpec) -> IndexDefinition:
    """As the catalog has it. Raises Blocked."""
    definition = IndexDefinition(
        spec.name,
        tuple(IndexField(normal_key(one.json_key), ValueType[one.value_type]) for one in spec.fields),
        tuple(IndexCondition(normal_key(one.key), one.operator, one.value) for one in spec.conditions),
        spec.combinator,
    )
    try:
        check(definition)
    except InvalidArgument as error:
        raise Blocked("InvalidSpec", str(error)) from None
    return definition


async def _settle(
    session: Session, names: BoundaryNames, definition: IndexDefinition, me: str, report: Report
) -> IndexRecord | None:
    """Bring the catalog to the definition; the record of that shape, None when somebody else changed it just now."""
    catalog, name = session.index_catalog, definition.name
    current = await catalog.find(names.boundary, name)
    beside = await catalog.find(names.boundary, beside_name(name))
    if current is None:
        if is_true(report.before, IS_READY):
            await report.event("DriftRepaired", f'index "{name}" was dropped; it is built again', warning=True)
        await catalog.add(names, definition, managed_by=me)
    elif current.definition == definition:
        if beside is not None:
            await catalog.retire(beside)
    elif current.state == BUILDING:
        # nobody uses it yet
        await catalog.retire(current)
        await catalog.add(names, definition, managed_by=me)
    else:
        if beside is not None and replace(beside.definition, name=name) != definition:
            await catalog.retire(beside)
            beside = None
        if beside is None:
            await catalog.add(names, definition, managed_by=me, beside=True)
            await report.event("Rebuilding", f'index "{name}" is built with its new shape beside the old one')
        elif beside.state == READY and await catalog.swap(names.boundary, name):
            await report.event("Swapped", f'index "{name}" has its new shape; the old one is dropped')
    await session.indexes.look()
    for candidate in (name, beside_name(name)):
        found = await catalog.find(names.boundary, candidate)
        if found is not None and replace(found.definition, name=name) == definition:
            return found
    return None


async def _claim(session: Session, names: tuple[str, str], me: Manager, report: Report, *, cluster: Object) -> None:
    """Make an index, if there is one, ours; ``names`` are its boundary's and its own. Raises Blocked."""
    boundary, name = names
    current = await session.index_catalog.find(boundary, name)
    if current is None or current.managed_by == str(me):
        return
    mine = me.is_called(current.managed_by)
    if not mine:
        await check_free(report.context, cluster, current.managed_by, f'index "{name}" of boundary "{boundary}"')
    if await session.index_catalog.manage(current, str(me)) and not mine:
        await report.event("Adopted", f'index "{name}" existed, and is managed by this resource now')


async def _show(session: Session, record: IndexRecord | None, report: Report) -> Outcome:
    if record is None:
        report.waiting("Building", "the index has just been changed")
        return Outcome(1.0)
    there = await facts(session.database, record)
    report.status["pgName"] = record.pg_name
    is_whole = record.state == READY and record.definition.name == report.status["index"]
    if is_whole and there is not None:
        await _show_ready(record, there, report)
        return Outcome(max(1.0, report.figures_due()) if report.figures_due() else None)
    build = await progress(session.database, record)
    report.status["state"] = BUILDING
    report.status["progress"] = _progress(build)
    _show_locker(build.locker if build else None, report)
    beside = record.definition.name != report.status["index"]
    text = f'index "{report.status["index"]}" is being built' + ("; the old one serves meanwhile" if beside else "")
    if record.last_error:
        raise Blocked("BuildFailed", f"{text}; the last attempt failed: {record.last_error}", retry=_BUILDING)
    report.waiting("Rebuilding" if beside else "Building", text)
    return Outcome(_BUILDING)


async def _show_ready(record: IndexRecord, there: Facts, report: Report) -> None:
    before = report.before
    if before.get("pgName") == record.pg_name and before.get("oid") not in (None, there.oid):
        await report.event(
            "DriftRepaired",
            f'index "{record.definition.name}" was missing or invalid in PostgreSQL; it was built again',
            warning=True,
        )
    if report.status.get("oid") != there.oid:
        # figures of another index
        report.status.pop("figuresTime", None)
    report.status |= {"state": READY, "oid": there.oid}
    report.status["progress"] = {"phase": "done", "blocksDone": 0, "blocksTotal": 0, "percent": 100}
    remove_condition(report.status, BLOCKED)
    report.figures({"sizeBytes": there.size, "size": readable(there.size), "scans": there.scans})
    report.ready("Built", f'index "{record.definition.name}" serves')


def _progress(build: Progress | None) -> dict[str, object]:
    if build is None:
        return {"phase": "queued", "blocksDone": 0, "blocksTotal": 0, "percent": 0}
    return {
        "phase": build.phase,
        "blocksDone": build.blocks_done,
        "blocksTotal": build.blocks_total,
        "percent": build.percent,
    }


def _show_locker(locker: Locker | None, report: Report) -> None:
    if locker is None or (locker.age is not None and locker.age < _PATIENCE):
        remove_condition(report.status, BLOCKED)
        return
    age = "for a time that PostgreSQL hides" if locker.age is None else f"for {duration(locker.age)}"
    who = ", ".join(part for part in (locker.application, locker.role, locker.state) if part)
    text = (
        f"the build waits for a transaction that has been open {age} in process {locker.pid}"
        f"{f' ({who})' if who else ''}: end it, by SELECT pg_terminate_backend({locker.pid}) if need be"
    )
    set_condition(report.status, BLOCKED, True, "OpenTransaction", text, report.generation)


def duration(seconds: float) -> str:
    """For people, and coarse, so that a status does not change with each look: 20 s, 5 min, 3 h."""
    if seconds < 60:
        return f"{int(seconds) // 10 * 10 or int(seconds)} s"
    return f"{int(seconds) // 60} min" if seconds < 3600 else f"{int(seconds) // 3600} h"


def readable(size: int) -> str:
    """Bytes for people: 16 KiB, 1.2 GiB."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"
