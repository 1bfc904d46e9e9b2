"""What other operators would make, made by hand in the same shape: CloudNativePG's Service and Secret."""

from __future__ import annotations

from e2e.kubernetes import Kubernetes, until
from e2e.release import Release
from e2e.stores import Database, Namespace, boundary, cluster


async def test_cloud_native_pg(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database
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

    async def asks_for_tls() -> bool:
        """CloudNativePG always has TLS, this PostgreSQL has none: it was found by Service and Secret."""
        condition = await kubernetes.condition("orisun", "store", namespace.name)
        assert "events-rw" in condition["message"], condition
        assert "rejected SSL" in condition["message"], condition
        return True

    await until(asks_for_tls, 90, "TLS is asked for")
