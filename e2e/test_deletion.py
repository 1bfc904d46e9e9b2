"""What deleting deletes: nothing unasked, and never for ever."""

from __future__ import annotations

import json
import textwrap

import pytest

from e2e.access import Access
from e2e.database import Database
from e2e.kubernetes import Kubernetes, Object, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster, index


@pytest.fixture
async def store(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database, access: Access
) -> Servers:
    """One server on a PostgreSQL that outlives it, with a boundary for each policy and three events in each."""
    policies = ("Retain", "Archive", "Delete")
    await namespace.apply(
        cluster(database.spec, replicas=1),
        *(boundary(policy.lower(), deletionPolicy=policy) for policy in policies),
        index("n", "retain", "n"),
    )
    names = [f"bnd/{policy.lower()}" for policy in policies]
    await kubernetes.ready(namespace.name, "orisun/store", "evidx/retain-n", *names, timeout=240)
    store = Servers(namespace, access, "store")
    for policy in policies:
        async with store.client(policy.lower()) as client:
            for number in range(3):
                await client.save({"n": str(number)})
    return store


async def _tables(database: Database) -> str:
    return await database.execute(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE tablename LIKE '%es_event'"
    )


async def _archived(namespace: Namespace, claim: str, image: str) -> Object:
    """The manifest of the one archive on a claim, once its file was found to be what it says."""
    script = textwrap.dedent("""\
        import gzip, hashlib, json, pathlib
        (path,) = pathlib.Path("/archive").glob("*.manifest.json")
        manifest = json.loads(path.read_text())
        data = (path.parent / manifest["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == manifest["sha256"]
        lines = [json.loads(line) for line in gzip.decompress(data).splitlines()]
        print(json.dumps({**manifest, "events": [line["data"] for line in lines]}))
        """)
    secure = {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": "reader",
        "image": image,
        "command": ["python", "-c", script],
        "volumeMounts": [{"name": "archive", "mountPath": "/archive"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    volume = {"name": "archive", "persistentVolumeClaim": {"claimName": claim}}
    spec = {"restartPolicy": "Never", "securityContext": secure, "containers": [container], "volumes": [volume]}
    await namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"}, "spec": spec})

    async def done() -> bool:
        phase = (await namespace.kubernetes.must("pod", "reader", namespace.name))["status"]["phase"]
        assert phase == "Succeeded", await namespace.kubernetes.kubectl("logs", "-n", namespace.name, "reader")
        return True

    await until(done, 60, "the archive is read")
    text = await namespace.kubernetes.kubectl("logs", "-n", namespace.name, "reader")
    return dict(json.loads(text))


@pytest.mark.smoke
async def test_policies(kubernetes: Kubernetes, store: Servers, database: Database, images: tuple[str, str]) -> None:
    space = store.namespace.name
    await kubernetes.delete("bnd", "retain", namespace=space)
    assert await database.execute("SELECT count(*) FROM retain.retain_orisun_es_event") == "3"
    async with store.client("retain") as client:
        await client.save({"n": "3"})
    await kubernetes.delete("bnd", "delete", namespace=space, timeout=180)
    assert "delete." not in await _tables(database)
    await kubernetes.delete("bnd", "archive", namespace=space, timeout=300)
    assert "archive." not in await _tables(database)
    archive = await _archived(store.namespace, "archive-archive", images[0])
    assert (archive["count"], archive["events"]) == (3, [{"n": "0"}, {"n": "1"}, {"n": "2"}])

    async def listed() -> bool:
        status = (await store.cluster())["status"]
        return "retain" in str(status.get("unmanaged") or status)

    await until(listed, 90, "the retained boundary is listed as unmanaged")


async def test_policies_with_an_embedded_postgres(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access, images: tuple[str, str]
) -> None:
    space, store = namespace.name, Servers(namespace, access, "store")
    policies = {"archived": "Archive", "deleted": "Delete"}
    boundaries = [boundary(name, deletionPolicy=policy) for name, policy in policies.items()]
    await namespace.apply(cluster(EMBEDDED, replicas=1, deletionPolicy="Delete"), *boundaries)
    await kubernetes.ready(space, "orisun/store", *(f"bnd/{name}" for name in policies), timeout=240)
    for name in policies:
        async with store.client(name) as client:
            await client.save({"n": "0"}, {"n": "1"})
        await kubernetes.delete("bnd", name, namespace=space, timeout=240)
    archive = await _archived(namespace, "archived-archive", images[0])
    assert (archive["count"], archive["events"]) == (2, [{"n": "0"}, {"n": "1"}])
    await namespace.apply(*boundaries)
    await kubernetes.ready(space, *(f"bnd/{name}" for name in policies))
    for name in policies:
        async with store.client(name) as client:
            assert await client.log() == [], f"{name} begins anew"
    await kubernetes.delete("orisun", "store", namespace=space, timeout=180)
    await kubernetes.gone("pvc", "data-store-postgres-0", space)
    assert await kubernetes.get("pvc", "archived-archive", space), "an archive stays"


async def test_deleting_the_cluster_keeps_the_data(kubernetes: Kubernetes, store: Servers, database: Database) -> None:
    space = store.namespace.name
    before = await _tables(database)
    await kubernetes.delete("orisun", "store", namespace=space, timeout=180)
    await store.none()
    assert await _tables(database) == before
    await store.namespace.apply(cluster(database.spec, replicas=1))
    await store.ready()
    async with store.client("retain") as client:
        assert len(await client.log()) == 3


async def test_a_namespace_never_hangs_and_takes_no_events_with_it(
    kubernetes: Kubernetes,
    operator: Release,
    namespace: Namespace,
    shared_namespace: Namespace,
    shared_database: Database,
    access: Access,
) -> None:
    """Archive and Delete count as Retain there: PostgreSQL, which is in another namespace, keeps every event."""
    secret = await kubernetes.must("secret", "db-credentials", shared_namespace.name)
    copy = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db-credentials"}, "data": secret["data"]}
    postgres = {"external": {**shared_database.spec["external"], "host": f"db.{shared_namespace.name}.svc"}}
    policies = {"archived": "Archive", "deleted": "Delete"}
    boundaries = [boundary(name, deletionPolicy=policy) for name, policy in policies.items()]
    await namespace.apply(copy, cluster(postgres, replicas=1), *boundaries)
    await kubernetes.ready(namespace.name, "orisun/store", *(f"bnd/{name}" for name in policies), timeout=240)
    for name in policies:
        async with Servers(namespace, access, "store").client(name) as client:
            await client.save({"n": "0"})
    await namespace.delete(wait=True, timeout=180)
    for name in policies:
        assert await shared_database.execute(f"SELECT count(*) FROM {name}.{name}_orisun_es_event") == "1"


@pytest.mark.smoke
async def test_a_namespace_never_hangs_without_the_operator(
    kubernetes: Kubernetes, store: Servers, operator: Release
) -> None:
    await operator.uninstall()
    try:
        assert (await kubernetes.must("bnd", "archive", store.namespace.name))["metadata"].get("finalizers") is None
        assert await store.pods(), "uninstalling the operator leaves clusters"
        await store.namespace.delete(wait=True, timeout=180)
    finally:
        await operator.ensure()
