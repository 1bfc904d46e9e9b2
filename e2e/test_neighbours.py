"""What other operators would make, made by hand in the same shape: CloudNativePG's Service and Secret, cert-manager's
kind and Secret."""

from __future__ import annotations

import base64
import datetime
import textwrap

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
    kubernetes: Kubernetes,
    operator: Release,
    namespace: Namespace,
    database: Database,
    access: Access,
    images: tuple[str, str],
) -> None:
    await namespace.apply(cluster({"cloudNativePG": {"clusterName": "events"}}, replicas=1), boundary("orders"))
    # it may come later than the store
    await kubernetes.wait_for("orisun", "store", namespace.name, "Ready", "False", timeout=60)
    assert "events-app" in (await kubernetes.condition("orisun", "store", namespace.name))["message"]
    login = {"username": "postgres", "password": database.PASSWORD, "dbname": "orisun", "host": "events-rw"}
    await namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "events-app"},
            "type": "kubernetes.io/basic-auth",
            "stringData": {**login, "port": "5432", "user": "postgres"},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "events-rw"},
            "spec": {"selector": {"app": database.NAME}, "ports": [{"name": "postgres", "port": 5432}]},
        },
    )

    async def asks_for_tls() -> bool:
        """CloudNativePG always has TLS, this PostgreSQL has none."""
        condition = await kubernetes.condition("orisun", "store", namespace.name)
        assert "events-rw" in condition["message"], condition
        assert "rejected SSL" in condition["message"], condition
        return True

    await until(asks_for_tls, 90, "TLS is asked for")
    await namespace.apply(*_tls_before(database.NAME, images[0]))
    await kubernetes.patch("svc", "events-rw", {"spec": {"selector": {"app": "tls"}}}, namespace.name)
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders")
    async with Servers(namespace, access, "store").client("orders") as client:
        await client.save({"n": "1"})
    assert await database.execute("SELECT count(*) FROM orders.orders_orisun_es_event") == "1"


def _tls_before(host: str, image: str) -> list[Object]:
    """A pod that takes PostgreSQL's connections over TLS, those alone, and hands them on to a PostgreSQL without."""
    now = datetime.datetime.now(datetime.UTC)
    own = issue(make_authority("tls", now), ["events-rw"], datetime.timedelta(days=1), now)
    script = textwrap.dedent("""\
        import asyncio, ssl, sys
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")

        async def copy(reader, writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        async def serve(reader, writer):
            # SSLRequest: its length, and its number
            if await reader.readexactly(8) != bytes.fromhex("0000000804d2162f"):
                return writer.close()
            writer.write(b"S")
            await writer.start_tls(context)
            behind = await asyncio.open_connection(sys.argv[1], 5432)
            await asyncio.gather(copy(reader, behind[1]), copy(behind[0], writer), return_exceptions=True)

        async def main():
            async with await asyncio.start_server(serve, "0.0.0.0", 5432) as server:
                await server.serve_forever()

        asyncio.run(main())
        """)
    container = {
        "name": "tls",
        "image": image,
        "command": ["python", "-c", script, host],
        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    secure = {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    volume = {"name": "tls", "secret": {"secretName": "tls"}}
    files = {"tls.crt": own.certificate.decode(), "tls.key": own.key.decode()}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "stringData": files},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "tls", "labels": {"app": "tls"}},
            "spec": {"securityContext": secure, "containers": [container], "volumes": [volume]},
        },
    ]


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
