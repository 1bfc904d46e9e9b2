"""The chart's ClusterRole, rendered in examples/, is enough for what the operator does: its code runs under it here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orisun_operator.kube import Kube, KubeError, Object, Ref
from orisun_operator.leader import Leader
from orisun_operator.metrics import Metrics
from orisun_operator.noticing import Noticed
from orisun_operator.reconcile import Context
from orisun_operator.reconcile.postgres import Postgres
from orisun_operator.work import Key, WorkQueue
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import NAME, Stage
from tests.operator.helm import OPERATOR, helm, values
from tests.operator.kubernetes import ApiServer
from tests.operator.stores import Store
from tests.operator.test_removal import deleting, has_tables

_ROOT = Path(__file__).parents[2]
_INSTALL = _ROOT / "examples" / "kubernetes" / "kustomize" / "base" / "install.yaml"
_ROLE = "orisun-system-orisun-operator"
RBAC = "rbac.authorization.k8s.io/v1"


def chart_role() -> Object:
    # SafeLoader stumbles over a bare = of the CRDs
    (text,) = (
        one
        for one in _INSTALL.read_text().split("\n---\n")
        if f"kind: ClusterRole\nmetadata:\n  name: {_ROLE}\n" in one
    )
    role: Object = yaml.safe_load(text)
    return role


@pytest.fixture
async def limited(api_server: ApiServer, kube: Kube, namespace: str) -> AsyncIterator[Kube]:
    """A connection with the rights of the role and no others."""
    async with _limited(api_server, kube, f"operator-of-{namespace}", chart_role()["rules"]) as connection:
        yield connection


@contextlib.asynccontextmanager
async def _limited(api_server: ApiServer, kube: Kube, user: str, rules: list[Object]) -> AsyncIterator[Kube]:
    role: Object = {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules}
    binding = {
        "apiVersion": RBAC,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    await kube.create(role)
    await kube.create(binding)
    limited = await Kube.connect(api_server.kubeconfig)
    limited._server.headers["Impersonate-User"] = user
    try:
        yield limited
    finally:
        await limited.close()
        await kube.delete(Ref.of(binding))
        await kube.delete(Ref.of(role))


def _with(context: Context, kube: Kube) -> Context:
    return replace(context, kube=kube, postgres=Postgres(kube))


async def test_a_cluster_lives_its_life(kube: Kube, limited: Kube, namespace: str, settings: Settings) -> None:
    stage = Stage(kube, namespace, settings)
    stage.context = _with(stage.context, limited)
    try:
        await stage.create(tls={"mode": "operator"})
        await stage.settle()
        for kind, name in (("Service", NAME), ("ConfigMap", f"{NAME}-nats"), ("Secret", f"{NAME}-admin")):
            await kube.delete(Ref("v1", kind, namespace, name))
        await stage.settle()
        assert len(await stage.events("DriftRepaired")) == 3
        for ordinal in range(3):
            await stage.claim(ordinal)
        await stage.patch(nats={"storage": {"size": "3Gi"}}, networkPolicy={"enabled": False})
        await stage.settle()
        assert await stage.events("StatefulSetRecreated") != []
        assert await stage.get("networking.k8s.io/v1", "NetworkPolicy", NAME) is None
        await stage.patch(image="orisun:2", replicas=1, tls={"mode": "none"})
        await stage.settle()
        assert await stage.get("policy/v1", "PodDisruptionBudget", NAME) is None
        assert await stage.get("v1", "Secret", f"{NAME}-tls") is None
        assert await stage.claims() == [f"jetstream-{NAME}-0"]
        assert (await stage.condition("Ready"))[0] == "True"
    finally:
        await stage.close()


async def test_boundaries_and_indexes_come_and_go(store: Store, limited: Kube) -> None:
    store.context = _with(store.context, limited)
    await deleting(store, "Archive")
    await store.settled("orders", "Archiving")
    assert await store.kube.list("batch/v1", "Job", store.namespace) != []
    await store.patch("Boundary", "orders", {"deletionPolicy": "Delete"})
    await store.gone("orders")
    assert await store.events("EventsDeleted") != []


async def _rendered(*given: str) -> list[Object]:
    """Roles and bindings of the chart."""
    where = ("op", OPERATOR, "--namespace", "orisun-system", "--show-only", "templates/rbac.yaml")
    output = await helm("template", *where, *values(*given))
    return [one for one in yaml.safe_load_all(output) if one]


@contextlib.asynccontextmanager
async def _installed(api_server: ApiServer, kube: Kube, namespace: str) -> AsyncIterator[Kube]:
    """The service account of a release that looks after this namespace, with all that the chart gives it by default."""
    objects = [
        one
        for one in await _rendered(f"watchNamespaces={{{namespace}}}")
        if one["metadata"].get("namespace") != "orisun-system"  # its Lease
    ]
    for obj in objects:
        await kube.create(obj)
    limited = await Kube.connect(api_server.kubeconfig)
    limited._server.headers["Impersonate-User"] = "system:serviceaccount:orisun-system:op-orisun-operator"
    try:
        # the API server takes a moment to know
        await eventually(lambda: _may_read_secrets(limited, namespace), 30, 0.05)
        yield limited
    finally:
        await limited.close()
        for obj in objects:
            await kube.delete(Ref.of(obj))


async def _may_read_secrets(limited: Kube, namespace: str) -> bool:
    try:
        await limited.list("v1", "Secret", namespace)
    except KubeError as error:
        if error.status != 403:
            raise
        return False
    return True


async def test_an_operator_of_one_namespace_writes_nowhere_else(
    store: Store, api_server: ApiServer, kube: Kube
) -> None:
    await store.boundary("orders")
    other = f"{store.namespace}-other"
    for name in (other, f"{other}-too"):
        await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    patch = {"spec": {"description": "changed"}}
    async with _installed(api_server, kube, other) as limited:
        for kind, name in (("OrisunCluster", "store"), ("EventIndex", "orders-a")):
            with pytest.raises(KubeError, match="forbidden"):
                await limited.patch(store.ref(kind, name), patch)
            with pytest.raises(KubeError, match="forbidden"):
                await limited.list("orisun.io/v1alpha1", kind, store.namespace)

        async def is_refused() -> bool:
            # a policy takes a moment to be in force
            try:
                await limited.patch(store.ref("Boundary", "orders"), patch)
            except KubeError as error:
                return error.status == 403 and "does not look after that namespace" in str(error)
            return False

        await eventually(is_refused, 30, 0.2)
        mine = Ref("orisun.io/v1alpha1", "Boundary", other, "bills")
        await kube.create(
            {
                "apiVersion": mine.api_version,
                "kind": mine.kind,
                "metadata": {"name": mine.name, "namespace": other},
                "spec": {"clusterRef": {"name": "store"}},
            }
        )
        await limited.patch(mine, {"metadata": {"finalizers": ["orisun.io/boundary-data"]}})
        await limited.patch(mine, {"metadata": {"finalizers": []}})
        for ref in (Ref("v1", "Secret", store.namespace, "credentials"), Ref("v1", "Namespace", "", f"{other}-too")):
            with pytest.raises(KubeError, match="forbidden"):
                await limited.get(ref)


@pytest.mark.parametrize("role", [True, False], ids=["with its role", "without"])
async def test_a_namespace_that_ends_keeps_the_events_and_says_so(
    store: Store, api_server: ApiServer, role: bool
) -> None:
    """Of an operator of this namespace alone, whose Role may go before the Boundaries."""
    await deleting(store, "Delete")
    async with _installed(api_server, store.kube, store.namespace) as limited:
        await store.kube.delete(Ref("v1", "Namespace", "", store.namespace))
        if not role:
            for kind in ("RoleBinding", "Role"):
                await store.kube.delete(Ref(RBAC, kind, store.namespace, _ROLE.replace("orisun-o", "op-orisun-o")))

            async def is_lost() -> bool:
                return not await _may_read_secrets(limited, store.namespace)

            await eventually(is_lost, 30, 0.05)
            queue = WorkQueue({}, workers=1, timer=60.0, metrics=Metrics())
            # what a process that begins now knows of it
            with pytest.raises(KubeError, match="forbidden"):
                await Noticed(queue, 60.0).compare(limited, store.namespace)
            assert set(queue._queued) == {Key("boundaries", store.namespace, "orders")}
        context = _with(store.context, limited)

        async def is_let_go() -> bool:
            # roles that were made a moment ago may not be in force yet; the queue tries again, too
            with contextlib.suppress(KubeError):
                await store.reconcile("orders", context=context)
            return await store.kube.get(store.ref("Boundary", "orders")) is None

        await eventually(is_let_go, 30, 0.2)
        assert (await store.reconcile("orders", context=context)).gone
    assert await has_tables(store)
    events = await store.kube.list("events.k8s.io/v1", "Event", "default")
    (note,) = (one["note"] for one in events if one["regarding"]["name"] == store.namespace)
    assert "deletionPolicy Delete is taken for Retain" in note


@pytest.fixture
async def namespaced(api_server: ApiServer, kube: Kube, namespace: str) -> AsyncIterator[Kube]:
    """The rights that the chart gives an operator of this namespace alone, but for its Lease."""
    user, made = f"operator-in-{namespace}", []
    for obj in await _rendered(f"watchNamespaces={{{namespace}}}", "rbac.finalizers=false"):
        if obj["metadata"].get("namespace") != namespace:
            continue
        if obj["kind"] == "RoleBinding":
            obj["subjects"] = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]
        assert obj["kind"] in ("Role", "RoleBinding")
        await kube.create(obj)
        made.append(obj)
    assert len(made) == 2
    limited = await Kube.connect(api_server.kubeconfig)
    limited._server.headers["Impersonate-User"] = user
    yield limited
    await limited.close()


async def test_the_roles_of_one_namespace_are_enough_for_it(
    kube: Kube, namespaced: Kube, namespace: str, settings: Settings
) -> None:
    stage = Stage(kube, namespace, settings)
    stage.context = _with(stage.context, namespaced)
    try:
        await stage.create()
        await stage.settle()
        assert (await stage.condition("Ready"))[0] == "True"
    finally:
        await stage.close()
    with pytest.raises(KubeError, match="forbidden"):
        await namespaced.list("v1", "Secret")
    with pytest.raises(KubeError, match="forbidden"):
        await namespaced.list("v1", "Secret", "default")


async def test_boundaries_in_one_namespace_with_the_roles_of_that_one(store: Store, namespaced: Kube) -> None:
    store.context = _with(store.context, namespaced)
    await deleting(store, "Delete")
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
    # which Kubernetes cluster this is may not be known there
    assert record is not None
    assert record.managed_by == f"Boundary/{store.namespace}/orders"
    await store.gone("orders")
    assert await store.events("EventsDeleted") != []


async def test_it_goes_no_further(limited: Kube, namespace: str) -> None:
    for ref in (
        Ref("v1", "Node", "", "x"),
        Ref("rbac.authorization.k8s.io/v1", "ClusterRole", "", "x"),
        Ref("apps/v1", "Deployment", namespace, "x"),
    ):
        with pytest.raises(KubeError, match="forbidden"):
            await limited.get(ref)
    with pytest.raises(KubeError, match="forbidden"):
        await limited.delete(Ref("orisun.io/v1alpha1", "Boundary", namespace, "x"))
    with pytest.raises(KubeError, match="forbidden"):
        await Leader(limited, namespace, "orisun-operator", 15.0)._try()
