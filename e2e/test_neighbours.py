"""What other operators would make, made by hand in the same shape: CloudNativePG's Service and Secret, cert-manager's
kind and Secret."""

from __future__ import annotations

import base64
import datetime

from e2e.access import Access
from e2e.database import Database
from e2e.kubernetes import Kubernetes, Object, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster
from e2e.test_tls import shown_certificate
from orisun_operator.certificates import issue, make_authority

_CERTIFICATES: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "certificates.cert-manager.io"},
    "spec": {
        "group": "cert-manager.io",
        "scope": "Namespaced",
        "names": {"kind": "Certificate", "plural": "certificates"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


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

    async def asks_for_tls() -> bool:
        """CloudNativePG always has TLS, this PostgreSQL has none yet: it was found by Service and Secret."""
        condition = await kubernetes.condition("orisun", "store", namespace.name)
        assert "events-rw" in condition["message"], condition
        assert "rejected SSL" in condition["message"], condition
        return True

    await until(asks_for_tls, 90, "TLS is asked for")
    await database.speak_tls()
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders")
    encrypted = (
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr <> '127.0.0.1'"
    )
    assert await database.execute(encrypted) == "t"
    async with Servers(namespace, access, "store").client("orders") as client:
        await client.save({"n": "1"})


async def test_cert_manager(kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access) -> None:
    """By the rights of its chart the operator may ask for a Certificate; servers show what comes of it."""
    space, host = namespace.name, f"store.{namespace.name}.svc"
    await kubernetes.apply(_CERTIFICATES, namespace=space)
    try:
        await kubernetes.kubectl("wait", "--for=condition=Established", "crd/certificates.cert-manager.io")
        tls = {"mode": "certManager", "issuerRef": {"name": "company", "kind": "ClusterIssuer"}}
        await namespace.apply(cluster(EMBEDDED, replicas=1, tls=tls))

        async def asked_for() -> Object:
            found = await kubernetes.get("certificate", "store-tls", space)
            assert found is not None, await kubernetes.condition("orisun", "store", space)
            return found

        spec = (await until(asked_for, 120, "a Certificate"))["spec"]
        assert (spec["secretName"], spec["issuerRef"]["name"]) == ("store-tls", "company")
        await kubernetes.wait_for("orisun", "store", space, status="False", reason="AwaitingCertificate")
        now = datetime.datetime.now(datetime.UTC)
        authority = make_authority("company", now)
        made = issue(authority, spec["dnsNames"], datetime.timedelta(days=90), now)
        files = {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": authority.certificate}
        await namespace.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "store-tls"},
                "type": "kubernetes.io/tls",
                "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
            }
        )
        await kubernetes.ready(space, "orisun/store", timeout=240)
        async with access.service(space, "store") as address:
            assert await shown_certificate(address, host, authority.certificate.decode())
    finally:
        await kubernetes.kubectl("delete", "crd", "certificates.cert-manager.io", "--ignore-not-found")
