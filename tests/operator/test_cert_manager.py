"""TLS by cert-manager, whose kind and Secret are made by hand here, in the shape that it gives them."""

from __future__ import annotations

import base64
import datetime
from collections.abc import AsyncIterator

import pytest

from orisun_operator.certificates import issue, make_authority
from orisun_operator.kube import Kube, Object, Ref
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import NAME, Stage
from tests.operator.kubernetes import ApiServer

_API = "cert-manager.io/v1"
_CRD: Object = {
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
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


@pytest.fixture
async def stage(api_server: ApiServer, kube: Kube, namespace: str, settings: Settings) -> AsyncIterator[Stage]:
    """With a connection of its own, since others are not to know this kind."""
    await kube.create(_CRD)
    mine = await Kube.connect(api_server.kubeconfig)
    stage = Stage(mine, namespace, settings)
    try:

        async def served() -> bool:
            found = await kube.get(Ref.of(_CRD))
            conditions = ((found or {}).get("status") or {}).get("conditions") or ()
            return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

        await eventually(served, 30, 0.05)
        yield stage
    finally:
        await stage.close()
        await mine.close()
        await kube.delete(Ref.of(_CRD))


async def test_a_certificate_is_asked_for_awaited_and_used(stage: Stage) -> None:
    issuer = {"name": "company", "kind": "ClusterIssuer"}
    await stage.create(tls={"mode": "certManager", "issuerRef": issuer, "dnsNames": ["events.example"]})
    await stage.reconcile()
    certificate = await stage.get(_API, "Certificate", f"{NAME}-tls")
    assert certificate is not None
    spec = certificate["spec"]
    assert spec["secretName"] == f"{NAME}-tls"
    assert spec["issuerRef"] == {**issuer, "group": "cert-manager.io"}
    assert {f"{NAME}.{stage.namespace}.svc", "events.example"} <= set(spec["dnsNames"])
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingCertificate")
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("company", now)
    made = issue(authority, spec["dnsNames"], datetime.timedelta(days=90), now)
    data = {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": authority.certificate}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{NAME}-tls", "namespace": stage.namespace},
        "type": "kubernetes.io/tls",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }
    await stage.kube.create(secret)
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    tls = (await stage.status())["tls"]
    assert tls["secret"] == f"{NAME}-tls"
    assert tls["notAfter"].startswith((now + datetime.timedelta(days=90)).strftime("%Y-%m-%d"))
    writes = stage.kube.writes
    await stage.reconcile()
    assert stage.kube.writes == writes
    # somebody edits it
    await stage.kube.patch(Ref.of(certificate), {"spec": {"dnsNames": ["other"]}})
    await stage.reconcile()
    again = await stage.get(_API, "Certificate", f"{NAME}-tls")
    assert again is not None
    assert again["spec"]["dnsNames"] == spec["dnsNames"]
