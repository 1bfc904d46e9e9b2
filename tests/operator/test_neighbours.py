"""cert-manager and the Prometheus operator: their kinds and a Secret, made by hand here in the shape that they have."""

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

_CERTIFICATES, _MONITORS = "cert-manager.io/v1", "monitoring.coreos.com/v1"


def _crd(api_version: str, kind: str) -> Object:
    """A kind that takes any fields."""
    group, _, version = api_version.partition("/")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.lower()}s.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": f"{kind.lower()}s"},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture(scope="module")
async def neighbours(kube: Kube) -> AsyncIterator[None]:
    """The kinds, for this module: others test what happens without them."""
    made = [_crd(_CERTIFICATES, "Certificate"), _crd(_MONITORS, "PodMonitor")]
    for crd in made:
        await kube.create(crd)

    async def served() -> bool:
        for crd in made:
            conditions = ((await kube.get(Ref.of(crd)) or {}).get("status") or {}).get("conditions") or ()
            if not any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                return False
        return True

    await eventually(served, 30, 0.05)
    yield
    for crd in made:
        await kube.delete(Ref.of(crd))


@pytest.fixture
async def stage(api_server: ApiServer, neighbours: None, namespace: str, settings: Settings) -> AsyncIterator[Stage]:
    """With a connection of its own, since others are not to know these kinds."""
    mine = await Kube.connect(api_server.kubeconfig)
    stage = Stage(mine, namespace, settings)
    yield stage
    await stage.close()
    await mine.close()


async def test_a_certificate_is_asked_for_awaited_and_used(stage: Stage) -> None:
    issuer = {"name": "company", "kind": "ClusterIssuer"}
    await stage.create(tls={"mode": "certManager", "issuerRef": issuer, "dnsNames": ["events.example"]})
    await stage.reconcile()
    certificate = await stage.get(_CERTIFICATES, "Certificate", f"{NAME}-tls")
    assert certificate is not None
    spec = certificate["spec"]
    assert spec["secretName"] == f"{NAME}-tls"
    assert spec["issuerRef"] == {**issuer, "group": "cert-manager.io"}
    assert {f"{NAME}.{stage.namespace}.svc", "events.example"} <= set(spec["dnsNames"])
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingCertificate")
    said = {
        "type": "Ready",
        "status": "False",
        "reason": "DoesNotExist",
        "message": 'ClusterIssuer "company" not found',
    }
    await stage.kube.patch(Ref.of(certificate), {"status": {"conditions": [said]}})
    await stage.reconcile()
    assert 'it says: ClusterIssuer "company" not found' in (await stage.condition("Ready"))[2]
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
    again = await stage.get(_CERTIFICATES, "Certificate", f"{NAME}-tls")
    assert again is not None
    assert again["spec"]["dnsNames"] == spec["dnsNames"]
    # its Secret stays as long as pods read it, and is cert-manager's: a person says what becomes of it
    await stage.patch(tls={"mode": "operator", "issuerRef": None, "dnsNames": None})
    await stage.reconcile()
    assert await stage.get(_CERTIFICATES, "Certificate", f"{NAME}-tls") is None
    assert (await stage.condition("Stalled"))[:2] == ("True", "NameTaken")
    await stage.kube.delete(Ref.of(secret))
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"


async def test_a_pod_monitor_comes_and_goes_with_the_spec(stage: Stage) -> None:
    wanted = {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}
    await stage.create(monitoring={"podMonitor": wanted})
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    monitor = await stage.get(_MONITORS, "PodMonitor", NAME)
    assert monitor is not None
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("admin", "/metrics", "15s")
    labels = next(iter((await stage.pods()).values()))["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    # somebody deletes it
    await stage.kube.delete(Ref.of(monitor))
    await stage.reconcile()
    assert await stage.get(_MONITORS, "PodMonitor", NAME) is not None
    assert any("PodMonitor" in note for note in await stage.events("DriftRepaired"))
    await stage.patch(monitoring={"podMonitor": {"enabled": False}})
    await stage.settle()
    assert await stage.get(_MONITORS, "PodMonitor", NAME) is None


async def test_nothing_is_written_when_nothing_changed_with_every_child_that_there_can_be(stage: Stage) -> None:
    monitoring = {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    peers = [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]
    optional = {
        "tls": {"mode": "certManager", "issuerRef": {"name": "company"}},
        "monitoring": monitoring,
        "networkPolicy": {"from": peers},
        "podDisruptionBudget": {"maxUnavailable": 2},
        "resources": {"requests": {"cpu": "0.5"}, "limits": {"memory": "1024Mi"}},
        "nats": {"resources": {"requests": {"cpu": 0.1}}},
        "grpc": {"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}},
        "scheduling": {"tolerations": [{"operator": "Exists"}], "affinity": {}},
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "podTemplate": {"labels": {"team": "shop"}, "annotations": {"a": "b"}},
    }
    now = datetime.datetime.now(datetime.UTC)
    made = issue(make_authority("company", now), ["x"], datetime.timedelta(days=90), now)
    await stage.secret(f"{NAME}-tls", **{"tls.crt": made.certificate.decode(), "tls.key": made.key.decode()})
    await stage.create(**optional)
    await stage.settle()
    kinds = (
        *(("v1", kind) for kind in ("Service", "ConfigMap", "Secret", "ServiceAccount", "Pod")),
        *(("apps/v1", "StatefulSet"), ("policy/v1", "PodDisruptionBudget"), (_MONITORS, "PodMonitor")),
        *(("networking.k8s.io/v1", "NetworkPolicy"), (_CERTIFICATES, "Certificate"), ("events.k8s.io/v1", "Event")),
        ("orisun.io/v1alpha1", "OrisunCluster"),
    )

    async def versions() -> dict[str, str]:
        found = [one for api, kind in kinds for one in await stage.kube.list(api, kind, stage.namespace)]
        assert {one["kind"] for one in found} == {kind for _, kind in kinds}
        return {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in found}

    before, writes = await versions(), stage.kube.writes
    for _ in range(10):
        assert (await stage.reconcile()).requeue is None
    assert stage.kube.writes == writes
    assert await versions() == before
