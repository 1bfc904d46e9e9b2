"""What other operators would make, made by hand in the same shape: CloudNativePG's Service and Secret."""

from __future__ import annotations

from e2e.access import Access
from e2e.kubernetes import Kubernetes
from e2e.release import Release
from e2e.stores import Database, Namespace, Servers, boundary, cluster


async def test_cloud_native_pg(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database, access: Access
) -> None:
    await namespace.apply(cluster({"cloudNativePG": {"clusterName": "events"}}, replicas=1), boundary("orders"))
    # it may come later than the store
    await kubernetes.wait_for("orisun", "store", namespace.name, "Ready", "False", timeout=60)
    assert "events-app" in (await kubernetes.condition("orisun", "store", namespace.name))["message"]
    login = {"username": "postgres", "password": database.PASSWORD, "dbname": "orisun", "host": "events-rw"}
    await namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "events-rw"},
            "spec": {"selector": {"app": database.NAME}, "ports": [{"name": "postgres", "port": 5432}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "events-app"},
            "type": "kubernetes.io/basic-auth",
            "stringData": {**login, "port": "5432", "user": "postgres"},
        },
    )
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    async with Servers(namespace, access, "store").client("orders") as client:
        await client.save({"a": "b"})
