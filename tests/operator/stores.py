"""An OrisunCluster whose PostgreSQL is the test run's own, and the resources beside it, in a namespace of their own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncpg

from orisun_operator.api import API_VERSION
from orisun_operator.kube import Kube, Object, Ref
from orisun_operator.reconcile import Context, Outcome, boundary, index
from orisun_operator.reconcile.postgres import Postgres, Session
from orisun_operator.settings import OperatorSettings
from orisun_server.core.event import NewEvent
from orisun_server.settings import Settings
from orisun_server.storage.in_process import InProcessStore
from orisun_server.storage.migrations import Migration, Sources
from orisun_server.storage.names import BoundaryNames
from tests.harness import eventually

CLUSTER = "store"


class Store:
    """One cluster's resources; ``context`` is that of the operator. ``seconds`` added to ``late`` make its clock go."""

    def __init__(self, kube: Kube, namespace: str, settings: Settings) -> None:
        self.kube, self.namespace, self.settings = kube, namespace, settings
        self.late = 0.0
        self.context = self.operator()
        self.schema = settings.boundaries[0].schema

    def operator(self, sources: Sources | None = None) -> Context:
        """An operator of its own, with its own connections, and migrations of another release if given."""
        return Context(self.kube, Postgres(self.kube, sources), OperatorSettings(), self._now)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.late)

    async def make(self, name: str = CLUSTER, *, embedded: bool = False) -> None:
        """The Secret and the OrisunCluster; ``embedded`` is as if its PostgreSQL were the cluster's own."""
        settings = self.settings
        postgres: Object = {
            "external": {
                "host": settings.pg_host,
                "port": settings.pg_port,
                "database": settings.pg_name,
                "sslMode": "disable",
                "credentialsSecretRef": {"name": "credentials"},
            }
        }
        if embedded:
            postgres = {"embedded": {}}
            where = {"host": settings.pg_host, "port": str(settings.pg_port), "database": settings.pg_name}
            await self.secret({"username": settings.pg_user, "password": "anything", **where}, f"{name}-postgres")
        else:
            await self.secret({"username": settings.pg_user, "password": "anything"})
        await self.kube.create(
            {
                "apiVersion": API_VERSION,
                "kind": "OrisunCluster",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"replicas": 1, "admin": {"boundary": settings.admin_boundary}, "postgres": postgres},
            }
        )

    async def secret(self, data: Mapping[str, str], name: str = "credentials") -> None:
        ref = Ref("v1", "Secret", self.namespace, name)
        await self.kube.delete(ref)
        await self.kube.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": ref.name, "namespace": ref.namespace},
                "stringData": dict(data),
            }
        )

    async def index(self, name: str, of: str, /, *keys: str, **spec: Any) -> Object:
        """Create an EventIndex over these keys."""
        fields = [{"jsonKey": key} for key in keys]
        return await self.create("EventIndex", name, {"boundaryRef": {"name": of}, "fields": fields, **spec})

    async def boundary(self, name: str, /, **spec: Any) -> Object:
        """Create a Boundary; ``schema`` and ``clusterRef`` have defaults here."""
        return await self.create("Boundary", name, {"clusterRef": {"name": CLUSTER}, "schema": self.schema, **spec})

    async def create(self, kind: str, name: str, spec: Mapping[str, Any]) -> Object:
        obj = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": dict(spec),
        }
        made = await self.kube.create(obj)
        assert made is not None
        return made

    def ref(self, kind: str, name: str) -> Ref:
        return Ref(API_VERSION, kind, self.namespace, name)

    async def get(self, kind: str, name: str) -> Object:
        found = await self.kube.get(self.ref(kind, name))
        assert found is not None
        return found

    async def status(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get(kind, name)).get("status") or {}
        return found

    async def patch(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        await self.kube.patch(self.ref(kind, name), {"spec": spec})

    async def reconcile(self, name: str, kind: str = "Boundary", context: Context | None = None) -> Outcome:
        function = boundary.reconcile if kind == "Boundary" else index.reconcile
        return await function(context or self.context, self.namespace, name)

    async def settled(
        self, name: str, reason: str = "", kind: str = "Boundary", *, context: Context | None = None
    ) -> dict[str, Any]:
        """Reconcile until the Ready condition has that reason (by default that of readiness); the status then."""
        reason = reason or {"Boundary": "Active", "EventIndex": "Built"}[kind]

        async def there() -> dict[str, Any] | None:
            await self.reconcile(name, kind, context)
            status = await self.status(kind, name)
            return status if condition(status, "Ready")["reason"] == reason else None

        try:
            found = await eventually(there, 40, 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}; {await self.status(kind, name)}") from None
        assert found is not None
        return found

    async def gone(self, name: str, kind: str = "Boundary") -> None:
        """Reconcile until the API server has the object no more."""

        async def gone() -> bool:
            await self.reconcile(name, kind)
            return await self.kube.get(self.ref(kind, name)) is None

        await eventually(gone, 40, 0.05)

    async def append(self, name: str, count: int, *, first: int = 0) -> None:
        """Store events as an application does in its own process."""
        events = [
            NewEvent(f"{name}-{n}", "Happened", f'{{"n": {n}, "user": "u{n % 7}", "number": 0.1000}}', "{}")
            for n in range(first, first + count)
        ]
        async with await self.session() as session, session.database.write.acquire() as connection:
            await InProcessStore(session.migrator.admin.schema, refresh=0).append(connection, name, events)

    async def session(self) -> contextlib.AbstractAsyncContextManager[Session]:
        return self.context.postgres.session(await self.get("OrisunCluster", CLUSTER))

    async def events(self, reason: str) -> list[str]:
        """The messages of the Events with that reason in the namespace."""
        found = await self.kube.list("events.k8s.io/v1", "Event", self.namespace)
        return [event["note"] for event in found if event["reason"] == reason]

    async def close(self) -> None:
        await self.context.postgres.close()


def later_release() -> Sources:
    """Migrations of a release that brings one more of boundaries."""
    sources = Sources.packaged()
    sql = "-- oldest-server: 0.1.0\nCOMMENT ON TABLE {q_events} IS 'of a later release';\n"
    later = Migration(len(sources.boundary) + 1, "later", sql, "0" * 64, "0.1.0")
    return Sources(sources.admin, (*sources.boundary, later))


def condition(status: Mapping[str, Any], type: str) -> dict[str, Any]:
    """The condition of that type. Raises KeyError."""
    return {c["type"]: dict(c) for c in status["conditions"]}[type]


async def together(*works: Any) -> list[Any]:
    """Run at once; failures raise."""
    return list(await asyncio.gather(*works))


@contextlib.asynccontextmanager
async def held(store: Store, boundary_name: str, application: str = "a forgotten shell") -> AsyncIterator[int]:
    """An open transaction that has written to the boundary, which builds and drops wait for; its process."""
    settings = store.settings
    connection = await asyncpg.connect(
        host=settings.pg_host,
        port=settings.pg_port,
        user=settings.pg_user,
        database=settings.pg_name,
        server_settings={"application_name": application},
    )
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"LOCK TABLE {BoundaryNames(store.schema, boundary_name).q_events} IN ROW EXCLUSIVE MODE")
    try:
        yield connection.get_server_pid()
    finally:
        await transaction.rollback()
        await connection.close()
