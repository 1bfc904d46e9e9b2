"""GitOps: a real Argo CD brings operator and store from git, judges their health, heals drift, and keeps the data."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from e2e.access import Access
from e2e.database import Database
from e2e.gitops import Argo, Repository, in_wave, texts
from e2e.kubernetes import Kubernetes, run, until
from e2e.release import CHART, ROOT, Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster, index, show
from tests.manifests import documents

HEALTH = ROOT / "docs" / "argocd" / "health"
KUSTOMIZE = ROOT / "examples" / "kubernetes" / "kustomize"


@pytest.fixture(scope="module")
async def argo(kubernetes: Kubernetes) -> AsyncIterator[Argo]:
    scripts = kubernetes.scripts
    if scripts is None or not (scripts / "argocd.sh").exists():
        pytest.skip("needs argocd.sh, which installs Argo CD with a git server")
    argo = Argo(kubernetes, scripts)
    await argo.up()
    for file in sorted(HEALTH.glob("*.lua")):
        await argo.health(file.stem, file)
    yield argo
    if not os.environ.get("ORISUN_E2E_KEEP"):
        await argo.down()


async def _operator(release: Release) -> str:
    """The chart as Argo CD itself would render it, without its hooks."""
    return await run(
        "helm", "template", release.name, str(CHART), "-n", release.namespace, "--no-hooks", *(await release.values())
    )


@pytest.mark.timeout(1200)
async def test_from_git(
    kubernetes: Kubernetes,
    argo: Argo,
    operator: Release,
    namespace: Namespace,
    database: Database,
    access: Access,
    images: tuple[str, str],
    next_image: str,
    tmp_path: Path,
) -> None:
    space, store = namespace.name, Servers(namespace, access, "store")
    name = f"shop-{secrets.token_hex(3)}"
    await operator.uninstall()
    repository = await argo.repository(name, tmp_path / "git")
    repository.files = {
        "operator.yaml": await _operator(operator),
        "cluster.yaml": in_wave(1, cluster(database.spec, replicas=1, image=images[0])),
        "boundary.yaml": in_wave(2, boundary("orders", deletionPolicy="Retain")),
        "index.yaml": in_wave(3, index("account", "orders", "account")),
    }
    try:
        began = time.monotonic()
        await repository.push("operator, cluster, boundary, index")
        await argo.follow(name, repository, space)
        await argo.until(name, "Synced", "Healthy", timeout=300)
        show("Argo CD, push to Synced and Healthy, seconds", round(time.monotonic() - began, 1))
        made = [
            (await kubernetes.must(kind, thing, space))["metadata"]["creationTimestamp"]
            for kind, thing in (("orisun", "store"), ("bnd", "orders"), ("evidx", "orders-account"))
        ]
        # a wave begins when all of the last is Healthy, and a pause later
        assert made[0] < made[1] < made[2], f"waves out of order: {made}"
        async with store.client("orders") as client:
            await client.save({"account": "a"})

        await _heals_drift(kubernetes, argo, name, space)
        await _tells_what_is_stalled(argo, name, repository)
        await _tells_of_work(argo, name, repository, database)
        await _rolls_an_image(kubernetes, argo, name, repository, store, database, next_image)
        await _stays_in_sync(argo, name, operator, access)

        del repository.files["boundary.yaml"], repository.files["index.yaml"], repository.files["more.yaml"]
        await repository.push("no boundary")
        await argo.refresh(name)
        await kubernetes.gone("bnd", "orders", space)
        assert await database.execute("SELECT count(*) FROM orders.orders_orisun_es_event") == "1"
        await argo.until(name, "Synced", "Healthy")
    finally:
        await _leave(kubernetes, operator, name)


async def _leave(kubernetes: Kubernetes, operator: Release, *applications: str) -> None:
    """Argo CD looks after nothing any more, and the operator is Helm's again."""
    await kubernetes.kubectl("delete", "application", *applications, "-n", "argocd", "--ignore-not-found")
    labels = f"app.kubernetes.io/instance={operator.name},app.kubernetes.io/component=operator"
    kinds = "deployment,service,serviceaccount,role,rolebinding,poddisruptionbudget"
    for one in (operator.namespace, *operator.watched):
        await kubernetes.kubectl("delete", kinds, "-n", one, "-l", labels, "--ignore-not-found")
    await kubernetes.kubectl("delete", "clusterrole,clusterrolebinding", "-l", labels, "--ignore-not-found")
    await operator.ensure()


async def _heals_drift(kubernetes: Kubernetes, argo: Argo, name: str, space: str) -> None:
    await kubernetes.patch("bnd", "orders", {"spec": {"deletionPolicy": "Delete"}}, space)

    async def healed() -> bool:
        return bool((await kubernetes.must("bnd", "orders", space))["spec"].get("deletionPolicy", "Retain") == "Retain")

    await until(healed, 90, "drift of a Boundary is healed")
    await kubernetes.delete("svc", "store", namespace=space)

    async def there() -> bool:
        return await kubernetes.get("svc", "store", space) is not None

    await until(there, 60, "a deleted Service, by the operator")
    await argo.until(name, "Synced", "Healthy", timeout=90)


async def _tells_what_is_stalled(argo: Argo, name: str, repository: Repository) -> None:
    repository.files["wrong.yaml"] = in_wave(4, index("wrong", "nowhere", "key"))
    await repository.push("an index of no boundary")
    await argo.refresh(name)

    async def told() -> bool:
        state = await argo.health_of(name, "EventIndex", "nowhere-wrong")
        assert state == "Degraded", state
        return True

    await until(told, 90, "Degraded")
    del repository.files["wrong.yaml"]
    await repository.push("without it")
    await argo.refresh(name)
    await argo.until(name, "Synced", "Healthy", timeout=120)


async def _tells_of_work(argo: Argo, name: str, repository: Repository, database: Database) -> None:
    """Progressing while tables are migrated and while an index is built, which an open transaction holds up; Healthy
    once they are there."""
    await database.execute("CREATE SCHEMA late")
    for held, file, obj, what in (
        ("CREATE TABLE late.late_orisun_es_event ()", "late.yaml", in_wave(2, boundary("late")), "Boundary/late"),
        (
            "LOCK TABLE orders.orders_orisun_es_event IN ROW EXCLUSIVE MODE",
            "more.yaml",
            in_wave(3, index("kind", "orders", "kind")),
            "EventIndex/orders-kind",
        ),
    ):
        async with database.held(held):
            repository.files[file] = obj
            await repository.push(what)
            await argo.refresh(name)

            async def told(what: str = what) -> bool:
                assert await argo.health_of(name, *what.split("/")) == "Progressing"
                return await argo.is_so(name, "Synced", "Progressing")

            await until(told, 90, f"{what} Progressing")
        await argo.until(name, "Synced", "Healthy", timeout=120)


async def _rolls_an_image(
    kubernetes: Kubernetes,
    argo: Argo,
    name: str,
    repository: Repository,
    store: Servers,
    database: Database,
    next_image: str,
) -> None:
    repository.files["cluster.yaml"] = in_wave(1, cluster(database.spec, replicas=1, image=next_image))
    await repository.push("the next image")
    await argo.refresh(name)
    seen: set[str] = set()

    async def rolled() -> bool:
        seen.add(await argo.health_of(name, "OrisunCluster", "store"))
        pods = await store.pods()
        containers = [one for pod in pods for one in pod["spec"]["containers"] if one["name"] == "server"]
        assert [one["image"] for one in containers] == [next_image], containers
        return await argo.is_so(name, "Synced", "Healthy")

    await until(rolled, 180, "the next image", interval=0.1)
    assert "Progressing" in seen, seen


async def _stays_in_sync(argo: Argo, name: str, operator: Release, access: Access) -> None:
    """No fight over fields: over three timers of the operator and as many refreshes it is Synced, and syncs nothing."""

    async def written_down() -> bool:
        """The last sync is over, and in the history."""
        status = (await argo.application(name))["status"]
        return bool(status["history"][-1]["revision"] == status["sync"]["revision"])

    await until(written_down, 60, "the last sync's history")
    before = len((await argo.application(name))["status"].get("history") or ())
    for _ in range(3):
        await operator.looks(access, 1, timeout=60)
        await argo.refresh(name)
        assert await argo.is_so(name, "Synced", "Healthy")
    history = (await argo.application(name))["status"].get("history") or ()
    assert len(history) == before, json.dumps(history[before:])


async def test_the_documents_applications(
    kubernetes: Kubernetes,
    argo: Argo,
    operator: Release,
    namespace: Namespace,
    access: Access,
    images: tuple[str, str],
    tmp_path: Path,
) -> None:
    """application.yaml with a repository and images of ours: the operator from its chart, a store from a directory.
    Then both from the Kustomize overlay over install.yaml."""
    if operator.watched:
        pytest.skip("they look after all namespaces, and others work in this cluster")
    name = f"documented-{secrets.token_hex(3)}"
    repository = await argo.repository(name, tmp_path / "git")
    cluster_yaml, boundary_yaml, index_yaml = documents((KUSTOMIZE / "overlay" / "store.yaml").read_text())
    repository.files = {
        **{str(Path("helm") / CHART.name / path): text for path, text in texts(CHART).items()},
        "store/cluster.yaml": in_wave(1, cluster_yaml),
        "store/boundary.yaml": in_wave(2, boundary_yaml),
        "store/index.yaml": in_wave(3, index_yaml),
    }
    await operator.uninstall()
    applications = documents((ROOT / "docs" / "argocd" / "application.yaml").read_text())
    (server, tag), (nats, nats_tag) = (image.rsplit(":", 1) for image in images)
    for one, space in zip(applications, (operator.namespace, namespace.name), strict=True):
        one["spec"]["source"].update(repoURL=repository.url, targetRevision="main")
        one["spec"]["destination"]["namespace"] = space
    values = applications[0]["spec"]["source"]["helm"]["valuesObject"]
    values["image"]["repository"] = server
    values |= {"natsImage": {"repository": nats, "tag": nats_tag}}
    values["image"]["tag"] = tag
    names = [one["metadata"]["name"] for one in applications]
    try:
        await repository.push("the operator's chart, and a store")
        await kubernetes.apply(*applications, namespace="argocd")
        for one in names:
            await argo.until(one, "Synced", "Healthy", timeout=300)
        async with Servers(namespace, access, "quickstart").client("orders") as client:
            await client.save({"account": "a"})
        await kubernetes.kubectl("delete", "application", *names, "-n", "argocd")

        overlay = "kustomize/overlay"
        repository.files = {f"kustomize/{path}": text for path, text in texts(KUSTOMIZE).items()}
        kustomization = f"{overlay}/kustomization.yaml"
        text = repository.files[kustomization]
        text = re.sub(r"registry.example/orisun:.*", images[0], text)
        text = re.sub(r"newName: .*", f"newName: {server}", re.sub(r"newTag: .*", f"newTag: {tag}", text))
        repository.files[kustomization] = re.sub(r"registry.example/nats:.*", images[1], text)
        await repository.push("all of it by Kustomize")
        await argo.follow(name, repository, namespace.name, path=overlay)
        await argo.until(name, "Synced", "Healthy", timeout=240)
        repository.files[f"{overlay}/store.yaml"] += "---\n" + json.dumps(boundary("payments", cluster="quickstart"))
        await repository.push("another boundary")
        await argo.refresh(name)
        await kubernetes.wait_for("bnd", "payments", namespace.name)
        await argo.until(name, "Synced", "Healthy")
    finally:
        await _leave(kubernetes, operator, name, *names)


async def test_health_of_every_state(
    kubernetes: Kubernetes, argo: Argo, operator: Release, namespace: Namespace, tmp_path: Path
) -> None:
    """Progressing while PostgreSQL and the tables are made, then Healthy, with no operator in git; Suspended asleep."""
    name = f"plain-{secrets.token_hex(3)}"
    repository = await argo.repository(name, tmp_path / "git")
    repository.files = {
        "store.yaml": in_wave(1, cluster(EMBEDDED, replicas=1)) + "---\n" + in_wave(2, boundary("orders"))
    }
    await repository.push("a store")
    seen: set[str] = set()
    try:
        await argo.follow(name, repository, namespace.name)

        async def healthy() -> bool:
            seen.update(
                [await argo.health_of(name, "OrisunCluster", "store"), await argo.health_of(name, "Boundary", "orders")]
            )
            return await argo.is_so(name, "Synced", "Healthy")

        await until(healthy, 240, "Synced and Healthy", interval=0.1)
        assert seen - {"", "Missing"} == {"Progressing", "Healthy"}, seen
        asleep = cluster(EMBEDDED, replicas=1, hibernate=True)
        repository.files["store.yaml"] = in_wave(1, asleep) + "---\n" + in_wave(2, boundary("orders"))
        await repository.push("good night")
        await argo.refresh(name)
        await argo.until(name, "Synced", "Suspended", timeout=120)
    finally:
        await kubernetes.kubectl("delete", "application", name, "-n", "argocd", "--ignore-not-found", "--wait=true")
