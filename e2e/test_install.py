"""Ways in and out: Helm, kubectl, namespaces only; upgrades, back again, and the end. Clusters do not notice."""

from __future__ import annotations

import json

import pytest

from e2e.access import Access
from e2e.kubernetes import CommandError, Kubernetes, run, until
from e2e.release import CHART, CLUSTER_CHART, ROOT, Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster
from tests.manifests import documents

INSTALL = ROOT / "examples" / "kubernetes" / "kustomize" / "base"


@pytest.mark.smoke
async def test_charts_are_well_formed(kubernetes: Kubernetes) -> None:
    embedded = ("--set", "spec.replicas=1", "--set", "spec.postgres.embedded.storage.size=1Gi")
    await run("helm", "lint", "--strict", str(CHART))
    await run("helm", "lint", "--strict", str(CLUSTER_CHART), *embedded)
    await run(str(ROOT / "scripts" / "render_chart.sh"), "--check")
    for wrong in ("replicas=two", "image.pullPolicy=Sometimes", "watchNamespaces={A}", "replicsa=1"):
        with pytest.raises(CommandError, match=wrong.split("=", maxsplit=1)[0].split(".", maxsplit=1)[0]):
            await run("helm", "template", "x", str(CHART), "--set", wrong)
    with pytest.raises(CommandError, match="external, cloudNativePG or embedded"):
        await run("helm", "template", "x", str(CLUSTER_CHART))


@pytest.mark.parametrize(
    "values", ["replicas=1", "networkPolicy.enabled=true", "watchNamespaces={default,kube-public}", "crds.keep=false"]
)
async def test_the_api_server_takes_every_object(kubernetes: Kubernetes, operator: Release, values: str) -> None:
    """By its own OpenAPI, strictly: a field that it does not know is an error."""
    rendered = await run("helm", "template", "dry", str(CHART), "-n", operator.namespace, "--set", values)
    await kubernetes.kubectl(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--force-conflicts",
        "-f",
        "-",
        stdin=rendered,
    )


async def test_upgrade_and_rollback_restart_no_server(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access, next_image: str
) -> None:
    await namespace.apply(cluster(EMBEDDED, replicas=1), boundary("orders"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    # an image of its own, so that a newer operator's default is not a new image for the cluster
    pods = {pod["metadata"]["uid"] for pod in await store.pods()}
    await operator.install("--set", "logLevel=DEBUG", "--set", "podAnnotations.changed=yes")
    await operator.helm("test", operator.name, "--timeout", "120s")
    await operator.scale(2)
    await operator.helm("rollback", operator.name, "--wait", "--timeout", "180s")
    await operator.scale(2)
    await store.ready()
    assert {pod["metadata"]["uid"] for pod in await store.pods()} == pods
    history = json.loads(await operator.helm("history", operator.name, "--output", "json"))
    assert history[-1]["status"] == "deployed"


async def test_uninstall_leaves_clusters_and_install_takes_them_up(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access
) -> None:
    await namespace.apply(cluster(EMBEDDED, replicas=1), boundary("orders", deletionPolicy="Delete"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    pods = {pod["metadata"]["uid"] for pod in await store.pods()}
    await operator.uninstall()
    assert await kubernetes.get("crd", "orisunclusters.orisun.io"), "the CRDs, and with them everything, would be gone"
    assert not (await kubernetes.must("bnd", "orders", namespace.name))["metadata"].get("finalizers")
    async with store.client("orders") as client:
        await client.save({"a": "b"})
    await operator.ensure()
    await namespace.apply(boundary("payments"))
    await kubernetes.ready(namespace.name, "bnd/payments", "bnd/orders", "orisun/store")
    assert (await kubernetes.must("bnd", "orders", namespace.name))["metadata"].get("finalizers")
    assert {pod["metadata"]["uid"] for pod in await store.pods()} == pods


async def test_namespaces_only(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, shared_namespace: Namespace
) -> None:
    """Told of one namespace, it works there with a Role and leaves the others alone; and back again."""
    if operator.watched:
        pytest.skip("all tests run this way")
    await operator.install("--set", f"watchNamespaces={{{namespace.name}}}")
    try:
        for space in (shared_namespace, namespace):
            await space.apply(cluster(EMBEDDED, replicas=1), boundary("orders"))
        await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
        left = await kubernetes.must("orisun", "store", shared_namespace.name)
        assert left["status"] == {"observedGeneration": -1}
        label = f"app.kubernetes.io/instance={operator.name}"
        roles = (await kubernetes.kubectl("get", "clusterroles", "-l", label, "-o", "name")).split()
        assert [role.rpartition("-")[2] for role in roles] == ["finalizers"], roles
    finally:
        await operator.install()
    await kubernetes.ready(shared_namespace.name, "orisun/store", "bnd/orders", timeout=240)


async def test_kubectl(
    request: pytest.FixtureRequest,
    kubernetes: Kubernetes,
    operator: Release,
    namespace: Namespace,
    images: tuple[str, str],
) -> None:
    """install.yaml, as it is, in place of the chart; with the images under test."""
    if request.config.getoption("e2e_namespaced"):
        pytest.skip("install.yaml looks after all namespaces, and others work in this cluster")
    await operator.uninstall()
    rendered = await kubernetes.kubectl("kustomize", str(INSTALL))
    objects = documents(rendered)
    for one in objects:
        if one["kind"] == "Deployment":
            container = one["spec"]["template"]["spec"]["containers"][0]
            container["image"] = images[0]
            for variable in container["env"]:
                given = {"ORISUN_OPERATOR_SERVER_IMAGE": images[0], "ORISUN_OPERATOR_NATS_IMAGE": images[1]}
                if variable["name"] in given:
                    variable["value"] = given[variable["name"]]
    text = "\n---\n".join(json.dumps(one) for one in objects)
    try:
        await kubernetes.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
        await kubernetes.kubectl("rollout", "status", "-n", "orisun-system", "deploy/orisun-operator", "--timeout=120s")
        await namespace.apply(cluster(EMBEDDED, replicas=1), boundary("orders"))
        await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    finally:
        kept = "\n---\n".join(
            json.dumps(o) for o in objects if o["kind"] not in ("CustomResourceDefinition", "Namespace")
        )
        await kubernetes.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=kept)
        await operator.ensure()


async def test_cluster_chart(kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access) -> None:
    values = {
        "spec": {"replicas": 1, "postgres": EMBEDDED},
        "boundaries": {"orders": {"indexes": {"account": {"fields": [{"jsonKey": "account"}]}}}, "payments": None},
    }
    arguments = ("install", "shop", str(CLUSTER_CHART), "-n", namespace.name, "--set-json")
    await kubernetes.helm(*arguments, ",".join(f"{key}={json.dumps(value)}" for key, value in values.items()))
    await kubernetes.ready(namespace.name, "orisun/shop", "bnd/orders", "evidx/orders-account", timeout=240)
    async with Servers(namespace, access, "shop").client("orders") as client:
        await client.save({"account": "a"})
    await kubernetes.helm("uninstall", "shop", "-n", namespace.name, "--wait", timeout=180)

    async def nothing_runs() -> bool:
        return not await kubernetes.list("pod", namespace.name)

    await until(nothing_runs, 120, "no pods")
    assert await kubernetes.list("pvc", namespace.name), "the events of the embedded PostgreSQL are kept"
