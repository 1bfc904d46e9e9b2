"""The kind Boundary: registered in the catalog of its cluster's store, its tables made and migrated, its state shown.

Names the catalog's rows that it manages by ``managed_by``; a row of nobody is adopted, a row of another resource that
exists is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from orisun_server.errors import FailedPrecondition, InvalidArgument
from orisun_server.storage.boundaries import Boundary, BoundaryRecord, BoundaryStatus, check_name, check_placement
from orisun_server.storage.managed import Figures
from orisun_server.storage.migrations import ScopeStatus, boundary_scope, newest
from orisun_server.storage.names import quote

from ..api import API_VERSION
from ..api.boundary import DRIFTED, FINALIZER, KIND, SCHEMA_READY, BoundarySpec, parse
from ..api.conditions import READY, age_of, is_true, set_condition
from ..api.manager import Manager
from ..kube import Object, Ref
from . import Blocked, Context, Outcome
from .managers import check_free, cluster_of, manager_of, release_of_gone
from .postgres import Session
from .removal import remove
from .report import Report, concluded, position, read_spec

#: Seconds until a boundary that somebody else is making is looked at again.
_MAKING = 1.0
#: Seconds until every server knows of an active one: their polls are half a second apart. One more, since a status
#: has whole seconds.
_TAKEN_UP = 2.0


async def reconcile(context: Context, namespace: str, name: str) -> Outcome:
    """Bring one Boundary a step further. Raises KubeError where the API server fails."""
    obj = await context.kube.get(Ref(API_VERSION, KIND, namespace, name))
    if obj is None:
        return await release_of_gone(context, KIND, namespace, name)
    report = Report(context, obj)

    def on_blocked(problem: Blocked) -> None:
        if not is_true(report.status, SCHEMA_READY):
            _schema(report, False, problem.reason, str(problem))

    return await concluded(report, _look(context, obj, report), on_blocked)


async def _look(context: Context, obj: Object, report: Report) -> Outcome:
    spec = read_spec(parse, obj)
    if obj["metadata"].get("deletionTimestamp"):
        return await remove(context, obj, spec, report)
    return await _converge(context, obj, spec, report)


async def _converge(context: Context, obj: Object, spec: BoundarySpec, report: Report) -> Outcome:
    namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
    if spec.deletion_policy == "Retain":
        await context.kube.remove_finalizer(obj, FINALIZER)
    else:
        await context.kube.set_finalizer(obj, FINALIZER)
    report.status |= {"boundary": spec.name, "schema": spec.pg_schema}
    try:
        check_name(spec.name)
        check_placement("postgres", spec.pg_schema)
    except InvalidArgument as error:
        raise Blocked("InvalidSpec", str(error)) from None
    cluster = await cluster_of(context, namespace, spec.cluster_ref.name)
    async with context.postgres.session(cluster) as session:
        if spec.name == session.admin_boundary:
            raise Blocked(
                "ReservedName", f'"{spec.name}" is the admin boundary of the cluster: choose another spec.name'
            )
        me = await manager_of(context, KIND, namespace, name)
        record = await session.boundaries.find(spec.name)
        if record is not None:
            record = await _claim(session, record, spec, me, report, cluster=cluster)
        boundary = Boundary.at(spec.name, spec.pg_schema)
        if not await _migrate(session, boundary, spec, record, report):
            return Outcome()
        if record is None or record.status is BoundaryStatus.FAILED:
            record = await _register(session, boundary, spec, str(me), report, again=record is not None)
        if record is not None and record.status is BoundaryStatus.PROVISIONING:
            record = await session.boundaries.provision(record)
        if record is None or record.status is BoundaryStatus.PROVISIONING:
            report.waiting("Provisioning", f'the tables of boundary "{spec.name}" are being made')
            _schema(report, False, "Provisioning", "the tables are being made")
            return Outcome(_MAKING)
        if record.status is BoundaryStatus.FAILED:
            raise Blocked("ProvisioningFailed", f'boundary "{spec.name}": {record.last_error}', retry=15.0)
        return await _show(session, boundary, report)


async def _claim(
    session: Session, record: BoundaryRecord, spec: BoundarySpec, me: Manager, report: Report, *, cluster: Object
) -> BoundaryRecord | None:
    """The catalog's row as ours, with our description. Raises Blocked when it is another's, or elsewhere."""
    mine = me.is_called(record.managed_by)
    if not mine:
        await check_free(report.context, cluster, record.managed_by, f'boundary "{spec.name}"')
    if record.namespace != spec.pg_schema and record.status is not BoundaryStatus.FAILED:
        raise Blocked(
            "SchemaConflict",
            f'boundary "{spec.name}" exists in schema "{record.namespace}", not in "{spec.pg_schema}":'
            f" create this resource anew with spec.schema: {record.namespace}, or with another spec.name",
        )
    if (record.managed_by, record.description) == (str(me), spec.description):
        return record
    if not mine:
        await report.event("Adopted", f'boundary "{spec.name}" existed, and is managed by this resource now')
    return await session.boundaries.manage(record, str(me), spec.description)


async def _migrate(
    session: Session, boundary: Boundary, spec: BoundarySpec, record: BoundaryRecord | None, report: Report
) -> bool:
    """Apply what is pending, or show it and wait for its approval (False). Raises Blocked where neither is possible."""
    scope = boundary_scope(boundary.name, boundary.schema)
    (state,) = await session.migrator.status([scope])
    report.status["schemaVersion"] = state.version
    if state.problem:
        # of a newer release, or by somebody's hand
        if state.version <= newest(session.migrator.sources.boundary):
            _drifted(report, True, "LedgerAltered", state.problem)
        _schema(report, False, "SchemaMismatch", state.problem)
        raise Blocked("SchemaMismatch", state.problem)
    is_active = record is not None and record.status is BoundaryStatus.ACTIVE
    if is_active and (gone := await _gone(session, boundary, state)):
        _drifted(report, True, "TablesMissing", gone)
        _schema(report, False, "TablesMissing", gone)
        raise Blocked("TablesMissing", gone)
    _drifted(report, False, "AsApplied", "tables and ledger are as the migrations left them")
    pending = plan(state)
    if not pending:
        report.status.pop("pendingPlan", None)
        return True
    if spec.migration.mode == "Plan" and spec.migration.approved_plan != pending["hash"]:
        stale = " (it approves another one)" if spec.migration.approved_plan else ""
        text = (
            f"the tables go from version {pending['fromVersion']} to {pending['toVersion']} once"
            f" spec.migration.approvedPlan is {pending['hash']}{stale}: read status.pendingPlan.sql first"
        )
        report.status["pendingPlan"] = pending
        _schema(report, False, "PlanPending", text)
        report.stalled("PlanPending", text)
        return False
    if is_active:
        await session.migrator.apply([scope])
        report.status["schemaVersion"] = pending["toVersion"]
        await report.event("Migrated", f"the tables went from version {state.version} to {pending['toVersion']}")
    report.status.pop("pendingPlan", None)
    return True


async def _gone(session: Session, boundary: Boundary, state: ScopeStatus) -> str:
    """What somebody has dropped of an active boundary, and what to do; "" for nothing."""
    where = f'boundary "{boundary.name}" in schema "{boundary.schema}"'
    if not await session.boundaries.has_tables(boundary):
        return (
            f"the tables of {where} are gone: restore them from a backup; or, to begin without those events, delete the"
            " boundary's rows of orisun_boundary and orisun_migration in the admin schema"
        )
    # what another release's tables consist of is not known here
    if state.version != newest(session.migrator.sources.boundary):
        return ""
    missing = await session.boundaries.missing(boundary)
    return f"of {where} somebody has dropped {', '.join(missing)}: restore that from a backup" if missing else ""


def plan(state: ScopeStatus) -> dict[str, Any]:
    """The migrations that are pending, as status.pendingPlan; empty when none are."""
    if not state.pending:
        return {}
    parts = [
        f"-- {migration.version:04} {migration.name}\n{state.scope.render(migration.sql)}"
        for migration in state.pending
    ]
    if not state.applied:
        parts.insert(0, f"CREATE SCHEMA IF NOT EXISTS {quote(state.scope.schema)};\n")
    sql = "\n".join(parts)
    return {
        "hash": hashlib.sha256(sql.encode()).hexdigest()[:16],
        "fromVersion": state.version,
        "toVersion": newest(state.pending),
        "sql": sql,
    }


async def _register(
    session: Session, boundary: Boundary, spec: BoundarySpec, me: str, report: Report, *, again: bool
) -> BoundaryRecord | None:
    if not again and is_true(report.before, READY):
        await report.event(
            "DriftRepaired",
            f'the catalog did not list boundary "{spec.name}" any more; it is registered again',
            warning=True,
        )
    await session.boundaries.reopen(boundary)
    return await session.boundaries.register(spec.name, spec.description, spec.pg_schema, me)


async def _show(session: Session, boundary: Boundary, report: Report) -> Outcome:
    """An active boundary's state."""
    scope = boundary_scope(boundary.name, boundary.schema)
    (state,) = await session.migrator.status([scope])
    report.status["schemaVersion"] = state.version
    _schema(report, True, "UpToDate", f"the tables are at version {state.version}")
    try:
        figures = await session.boundaries.figures(boundary)
    except FailedPrecondition as error:
        raise Blocked("TablesMissing", str(error), retry=1.0) from error
    report.figures(shown(figures))
    age = age_of(report.status, SCHEMA_READY, report.context.clock())
    # a negative one is by another clock
    if figures.served and 0 <= age < _TAKEN_UP and not is_true(report.before, READY):
        report.waiting("Announcing", f'servers take up boundary "{boundary.name}"')
        return Outcome(_TAKEN_UP - age)
    report.ready("Active", f'boundary "{boundary.name}" takes events')
    return Outcome(max(1.0, report.figures_due()) if report.figures_due() else None)


def shown(figures: Figures) -> Mapping[str, Any]:
    """Figures as the status has them."""
    return {
        "eventCount": figures.events,
        "lastPosition": position(figures.last),
        "lastPublishedPosition": position(figures.published),
        "lag": figures.lag,
        # a node is called <machine>-<8 hex>-<8 hex>, and a pod's machine is the pod
        "publisherPod": figures.publisher.rsplit("-", 2)[0],
    }


def _schema(report: Report, value: bool, reason: str, message: str) -> None:
    _aspect(report, SCHEMA_READY, value, reason, message)


def _drifted(report: Report, value: bool, reason: str, message: str) -> None:
    _aspect(report, DRIFTED, value, reason, message)


def _aspect(report: Report, type: str, value: bool, reason: str, message: str) -> None:
    set_condition(report.status, type, value, reason, message, report.generation, now=report.context.clock())
