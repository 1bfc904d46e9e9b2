"""The charts: helm takes them, the API server takes what they render, and they say what is wrong with values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orisun_operator.kube import Kube, Object
from tests.manifests import documents
from tests.operator.helm import CLUSTER, OPERATOR, HelmError, helm, values
from tests.operator.kubernetes import ApiServer
from tests.operator.test_documents import offer

_EMBEDDED = ("spec.replicas=1", "spec.postgres.embedded.storage.size=1Gi")
#: Kinds of other operators, which the API server of tests does not know.
_NEIGHBOURS = frozenset({"PodMonitor", "PrometheusRule"})
_HERE = re.compile(r"<<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)


async def rendered(chart: Path, *given: str) -> list[Object]:
    """Of every kind that the API server knows, hooks and tests included."""
    found = documents(await helm("template", "one", chart, "--namespace", "orisun-system", *values(*given)))
    return [one for one in found if one["kind"] not in _NEIGHBOURS]


@pytest.mark.parametrize(("chart", "given"), [(OPERATOR, ()), (CLUSTER, _EMBEDDED)], ids=["operator", "cluster"])
async def test_they_are_well_formed(chart: Path, given: tuple[str, ...]) -> None:
    assert "0 chart(s) failed" in await helm("lint", "--strict", chart, *values(*given))


@pytest.mark.parametrize(
    ("chart", "given"),
    [
        (OPERATOR, ()),
        (OPERATOR, ("watchNamespaces={shop,billing}", "crds.create=false", "networkPolicy.enabled=true")),
        (
            OPERATOR,
            (
                *("podMonitor.enabled=true", "prometheusRule.enabled=true", "dashboards.enabled=true", "replicas=1"),
                *("imagePullSecrets[0].name=registry", "nodeSelector.disk=fast", "priorityClassName=important"),
                *("tolerations[0].operator=Exists", "serviceAccount.annotations.a=b", "podLabels.team=one"),
                *("env[0].name=ORISUN_OPERATOR_LEASE_DURATION", "env[0].value=thirty", "fullnameOverride=op"),
            ),
        ),
        (CLUSTER, (*_EMBEDDED, "boundaries.orders.deletionPolicy=Archive", "labels.team=one", "annotations.a=b")),
    ],
    ids=["operator", "namespaced", "with everything", "cluster"],
)
async def test_the_api_server_takes_every_object(
    kube: Kube, namespace: str, chart: Path, given: tuple[str, ...]
) -> None:
    """By its own OpenAPI, strictly: a field that it does not know is an error."""
    objects = await rendered(chart, *given)
    assert len(objects) > 1
    for obj in objects:
        await offer(kube, namespace, obj)


@pytest.mark.parametrize("given", [(), ("watchNamespaces={shop}", "crds.create=false"), ("crds.keep=false",)])
async def test_the_notes_can_be_followed(
    api_server: ApiServer, kube: Kube, namespace: str, given: tuple[str, ...]
) -> None:
    # the CRDs are there, and no release's
    where = ("--namespace", "orisun-system", "--kubeconfig", api_server.kubeconfig, "--take-ownership")
    text = await helm("install", "one", OPERATOR, "--dry-run=client", *where, *values(*given))
    notes = text.partition("\nNOTES:\n")[2]
    (block,) = _HERE.findall(notes)
    objects = documents(block)
    assert [one["kind"] for one in objects] == ["OrisunCluster", "Boundary"]
    for obj in objects:
        await offer(kube, namespace, obj)
    assert ("all namespaces" in notes, "-n shop" in notes) == (not given or "keep" in given[0], "watch" in str(given))
    assert ("are yours to install" in notes, "WARNING" in notes) == ("create" in str(given), "keep" in str(given))
    # as values.yaml has it, before anybody said where it is
    assert re.search(r"orisun:\S+, is of no registry", notes)


@pytest.mark.parametrize(
    ("chart", "given", "words"),
    [
        (OPERATOR, "replicaCount=3", "additional properties 'replicaCount' not allowed"),
        (OPERATOR, "image.repo=x", "at '/image': additional properties 'repo' not allowed"),
        (OPERATOR, "watchNamespaces={Shop}", "at '/watchNamespaces/0': 'Shop' does not match"),
        (OPERATOR, "logLevel=debug", "value must be one of 'DEBUG', 'INFO', 'WARN', 'ERROR'"),
        (OPERATOR, "fullnameOverride=A_b", "at '/fullnameOverride'"),
        (OPERATOR, "podDisruptionBudget.maxUnavailable=0", "minimum: got 0, want 1"),
        (CLUSTER, "spec.replicas=1", "spec.postgres is needed: external, cloudNativePG or embedded"),
        (CLUSTER, "boundaries.a.clusterRef.name=x", "at '/boundaries/a/clusterRef'"),
        (CLUSTER, "boundaries.a.indexes.b.fields=", "at '/boundaries/a/indexes/b/fields'"),
    ],
)
async def test_values_of_no_use_are_told(chart: Path, given: str, words: str) -> None:
    with pytest.raises(HelmError) as told:
        await helm("template", "one", chart, *values(given))
    assert words in str(told.value)


async def test_names_that_resources_cannot_have() -> None:
    given = ("boundaries.My_orders.indexes.by_User.fields[0].jsonKey=user", "boundaries.a-b.name=a_b")
    objects: dict[str, Any] = {one["metadata"]["name"]: one for one in await rendered(CLUSTER, *_EMBEDDED, *given)}
    assert objects.keys() == {"one", "my-orders", "my-orders-by-user", "a-b"}
    assert objects["my-orders"]["spec"] == {"clusterRef": {"name": "one"}, "name": "My_orders"}
    index = objects["my-orders-by-user"]["spec"]
    assert (index["boundaryRef"], index["name"]) == ({"name": "my-orders"}, "by_User")
    assert objects["a-b"]["spec"]["name"] == "a_b"
