"""How the operator reaches a cluster's PostgreSQL: from spec and Secrets, with connections kept and renewed."""

from __future__ import annotations

import asyncio
import base64
import datetime
from collections.abc import Mapping
from typing import Any

import asyncpg
import pytest

from orisun_operator.certificates import make_authority
from orisun_operator.kube import Kube, Ref
from orisun_operator.reconcile import Blocked
from orisun_operator.reconcile import postgres as sessions
from orisun_operator.reconcile.failures import explained
from orisun_operator.reconcile.postgres import Postgres
from orisun_operator.reconcile.target import Target, find_target
from orisun_server.errors import FailedPrecondition, SchemaMismatch, Unavailable
from orisun_server.settings import Settings
from tests.operator.clusters import Stage
from tests.operator.stores import CLUSTER, Store, condition, together
from tests.proxy import PostgresProxy


def cluster(namespace: str, postgres: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": "store", "uid": "u"}, "spec": {"postgres": dict(postgres)}}


async def secret(kube: Kube, namespace: str, name: str, data: Mapping[str, bytes]) -> None:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    metadata = {"name": name, "namespace": namespace}
    await kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded})


CREDENTIALS = {"username": b"events", "password": b"a secret"}


async def test_external(kube: Kube, namespace: str) -> None:
    await secret(kube, namespace, "db", {"login": b"events", "word": b"a secret"})
    authority = make_authority("company", datetime.datetime.now(datetime.UTC))
    await secret(kube, namespace, "authority", {"root.pem": authority.certificate, "key": b"another secret"})
    external: dict[str, Any] = {
        "host": "db.example.com",
        "port": 6432,
        "database": "shop",
        "sslMode": "verify-full",
        "credentialsSecretRef": {"name": "db", "usernameKey": "login", "passwordKey": "word"},
        "caSecretRef": {"name": "authority", "key": "root.pem"},
    }
    assert await find_target(kube, cluster(namespace, {"external": external})) == Target(
        "db.example.com", 6432, "shop", "events", "a secret", "verify-full", authority.certificate.decode()
    )
    external["caSecretRef"]["key"] = "key"
    with pytest.raises(Blocked, match="key is no certificate in PEM") as caught:
        await find_target(kube, cluster(namespace, {"external": external}))
    assert (caught.value.reason, "another secret" in str(caught.value)) == ("BadCertificate", False)


async def test_cloudnativepg(kube: Kube, namespace: str) -> None:
    await secret(kube, namespace, "pg-app", {**CREDENTIALS, "dbname": b"shop", "host": b"pg-rw", "port": b"5432"})
    found = await find_target(kube, cluster(namespace, {"cloudNativePG": {"clusterName": "pg"}}))
    # by a name that is known in other namespaces too
    assert found == Target(f"pg-rw.{namespace}.svc", 5432, "shop", "events", "a secret", "require")


async def test_embedded(kube: Kube, namespace: str) -> None:
    spec = cluster(namespace, {"embedded": {}})
    with pytest.raises(Blocked) as caught:
        await find_target(kube, spec)
    # the operator makes it: waiting is enough
    assert (caught.value.reason, caught.value.stalled) == ("SecretNotFound", False)
    where = {"host": b"store-postgres", "port": b"5432", "database": b"orisun"}
    await secret(kube, namespace, "store-postgres", {**CREDENTIALS, **where})
    found = await find_target(kube, spec)
    assert found[:5] == (f"store-postgres.{namespace}.svc", 5432, "orisun", "events", "a secret")
    spec["spec"]["hibernate"] = True
    with pytest.raises(Blocked, match=r"set spec\.hibernate to false") as caught:
        await find_target(kube, spec)
    assert (caught.value.reason, caught.value.stalled) == ("ClusterHibernates", False)


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        ({"username": b"events"}, "UnknownSecretKey", "no key 'password' (it has username)"),
        ({"username": b"\xff", "password": b"x"}, "InvalidSecret", "key 'username' must be text in UTF-8"),
        ({}, "UnknownSecretKey", "(it has none)"),
    ],
)
async def test_secrets_that_do_not_fit(
    kube: Kube, namespace: str, data: dict[str, bytes], reason: str, message: str
) -> None:
    await secret(kube, namespace, "db", data)
    external = {"host": "db", "credentialsSecretRef": {"name": "db"}}
    with pytest.raises(Blocked) as caught:
        await find_target(kube, cluster(namespace, {"external": external}))
    assert (caught.value.reason, caught.value.stalled, message in str(caught.value)) == (reason, True, True)


async def test_a_missing_secret_is_named(kube: Kube, namespace: str) -> None:
    external = {"host": "db", "credentialsSecretRef": {"name": "db"}}
    with pytest.raises(Blocked, match=f"Secret {namespace}/db, which spec.postgres.external") as caught:
        await find_target(kube, cluster(namespace, {"external": external}))
    assert (caught.value.reason, caught.value.stalled) == ("SecretNotFound", True)


async def test_sessions_are_shared_and_renewed_when_the_secret_changes(store: Store) -> None:
    found = await store.get("OrisunCluster", CLUSTER)
    postgres = store.context.postgres

    async def once() -> object:
        async with postgres.session(found) as session:
            return session

    sessions = await together(*(once() for _ in range(5)))
    assert len({id(session) for session in sessions}) == 1
    async with postgres.session(found) as before:
        # another password; this PostgreSQL asks for none
        await store.secret({"username": store.settings.pg_user, "password": "another"})
        async with postgres.session(found) as after:
            assert after is not before
        # who uses the old one goes on with it
        assert await before.database.admin.fetchval("SELECT 1") == 1
    with pytest.raises(asyncpg.InterfaceError):
        await before.database.admin.fetchval("SELECT 1")
    await postgres.forget(store.namespace, CLUSTER)
    with pytest.raises(asyncpg.InterfaceError):
        await after.database.admin.fetchval("SELECT 1")


async def test_pools_are_small(store: Store) -> None:
    async with await store.session() as session:
        pools = (session.database.write, session.database.read, session.database.admin)
        assert sum(pool.get_max_size() for pool in pools) <= 8


async def test_wrong_credentials_and_databases_heal(store: Store) -> None:
    await store.boundary("orders")
    await store.secret({"username": "nobody_" + store.schema, "password": "x"})
    status = await store.settled("orders", "BadCredentials")
    assert condition(status, "Stalled")["status"] == "True"
    assert "correct the Secret" in condition(status, "Ready")["message"]
    await store.secret({"username": store.settings.pg_user})
    status = await store.settled("orders", "UnknownSecretKey")
    assert "password" in condition(status, "Ready")["message"]
    await store.kube.delete(Ref("v1", "Secret", store.namespace, "credentials"))
    await store.settled("orders", "SecretNotFound")
    await store.secret({"username": store.settings.pg_user, "password": "x"})
    await store.settled("orders")


async def test_an_unreachable_postgres_is_asked_again(kube: Kube, namespace: str, settings: Settings) -> None:
    async with PostgresProxy(settings) as proxy:
        store = Store(kube, namespace, proxy.settings)
        await store.make()
        await store.boundary("orders")
        try:
            await store.settled("orders")
            await proxy.stop()
            status = await store.settled("orders", "UnreachablePostgres")
            assert condition(status, "Stalled")["status"] == "False"
            assert condition(status, "Reconciling")["status"] == "True"
            assert condition(status, "SchemaReady")["status"] == "True"
            await proxy.start()
            await store.settled("orders")
        finally:
            await store.close()


async def test_a_look_that_cannot_go_on_says_so_to_the_queue(kube: Kube, namespace: str, settings: Settings) -> None:
    stage = Stage(kube, namespace, settings)
    try:
        await stage.create(replicas=1)
        await stage.settle()
        assert not (await stage.reconcile()).blocked
        for spec, reason in (
            ({"postgres": {"external": {"port": 1}}}, "UnreachablePostgres"),
            ({"scheduling": {"affinity": {"nodeAfinity": {}}}}, "Refused"),
        ):
            await stage.patch(**spec)
            assert (await stage.reconcile()).blocked
            assert (await stage.condition("Ready"))[1] == reason
            await stage.patch(postgres={"external": {"port": settings.pg_port}}, scheduling=None)
            await stage.settle()
            assert not (await stage.reconcile()).blocked
        await stage.patch(paused=True)
        assert not (await stage.reconcile()).blocked
    finally:
        await stage.close()


async def test_a_catalog_that_is_gone_begins_anew(store: Store) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    async with await store.session() as session:
        await session.database.admin.execute(f'DROP SCHEMA "{session.migrator.admin.schema}" CASCADE')
    # its tables are there, and nobody knows by which release: they are not touched
    status = await store.settled("orders", "ProvisioningFailed")
    assert "the ledger of migrations does not know it" in condition(status, "Ready")["message"]


async def test_one_attempt_answers_all_who_ask(kube: Kube, namespace: str) -> None:
    await secret(kube, namespace, "db", CREDENTIALS)
    external = {"host": "127.0.0.1", "port": 1, "credentialsSecretRef": {"name": "db"}}
    postgres = Postgres(kube)
    spec = cluster(namespace, {"external": external})

    async def reason() -> str:
        try:
            async with postgres.session(spec):
                return ""
        except Blocked as problem:
            return problem.reason

    loop = asyncio.get_running_loop()
    began = loop.time()
    assert set(await together(*(reason() for _ in range(50)))) == {"UnreachablePostgres"}
    assert loop.time() - began < 5
    await postgres.close()


async def test_who_asks_while_a_silent_postgres_is_connected_to_does_not_wait_for_it(
    kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all workers of the queue would wait there, and no other cluster be looked after."""
    monkeypatch.setattr(sessions, "_CONNECTS", 0.1)
    met, end = asyncio.Event(), asyncio.Event()

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        await end.wait()
        writer.close()

    await secret(kube, namespace, "db", CREDENTIALS)
    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        external = {"host": "127.0.0.1", "port": port, "sslMode": "disable", "credentialsSecretRef": {"name": "db"}}
        postgres, spec = Postgres(kube), cluster(namespace, {"external": external})

        async def reason() -> str:
            try:
                async with postgres.session(spec):
                    return ""
            except Blocked as problem:
                return problem.reason

        first = asyncio.create_task(reason())
        await asyncio.wait_for(met.wait(), 20)
        assert set(await together(*(reason() for _ in range(10)))) == {"AwaitingPostgres"}
        assert not first.done()
        end.set()
        assert await asyncio.wait_for(first, 30) == "UnreachablePostgres"
        # the next attempt, when the failure does not hold any more, takes as long; what is known is told at once
        monkeypatch.setattr(sessions, "_FAILURE_HOLDS", 0.0)
        monkeypatch.setattr(sessions, "_CONNECTS", 60.0)
        met.clear()
        end.clear()
        second = asyncio.create_task(reason())
        await asyncio.wait_for(met.wait(), 20)
        assert set(await together(*(reason() for _ in range(10)))) == {"UnreachablePostgres"}
        assert not second.done()
        end.set()
        await second
        await postgres.close()


def test_a_failure_holds_as_long_as_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now)

    def holds(lasted: float, ago: float) -> bool:
        return sessions._Failure("x", Blocked("Any", "thing"), now - ago - lasted, now - ago).holds

    assert (holds(0, 2.9), holds(0, 3.1)) == (True, False)
    assert (holds(10, 9.9), holds(10, 10.1)) == (True, False)
    assert (holds(1000, 29.9), holds(1000, 30.1)) == (True, False)


def raised(error: Exception, cause: BaseException | None = None) -> Blocked:
    with pytest.raises(Blocked) as caught, explained("db:5432/orisun"):
        raise error from cause
    return caught.value


def test_failures_have_reasons_and_say_what_to_do() -> None:
    away = raised(Unavailable("PostgreSQL at db:5432/orisun is not available"), OSError("refused"))
    assert (away.reason, away.stalled, "network policies" in str(away)) == ("UnreachablePostgres", False, True)
    wrong = raised(Unavailable("x"), asyncpg.InvalidPasswordError("password of user with 's3cret'"))
    assert (wrong.reason, wrong.stalled, "s3cret" in str(wrong)) == ("BadCredentials", True, False)
    assert raised(Unavailable("x"), asyncpg.InvalidCatalogNameError("x")).reason == "UnknownDatabase"
    odd = raised(asyncpg.UndefinedTableError("relation secret_thing does not exist"))
    assert (odd.reason, "secret_thing" in str(odd)) == ("PostgresFailed", False)
    assert raised(SchemaMismatch("newer")).reason == "SchemaMismatch"
    assert raised(FailedPrecondition("too old")).reason == "UnsuitablePostgres"
    assert raised(asyncpg.InsufficientPrivilegeError("schema")).reason == "MissingPrivilege"


def test_a_fingerprint_tells_nobody_the_password() -> None:
    one = Target("h", 1, "d", "u", "secret", "prefer")
    assert "secret" not in one.fingerprint
    assert one.fingerprint != one._replace(password="other").fingerprint
