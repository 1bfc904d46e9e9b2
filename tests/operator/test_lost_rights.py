"""The operator's process without the rights that it needs: it says so, does what it still can, and heals by itself.

On an API server of its own, where it looks after all namespaces.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orisun_operator.kube import Kube, Object, Ref
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import Stage
from tests.operator.conftest import install, started
from tests.operator.kubernetes import LIMITED_USER, ApiServer
from tests.operator.processes import Operator
from tests.operator.test_rights import RBAC, chart_role

_NAMESPACE = "shop"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with started(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


@pytest.fixture(scope="module")
async def own_kube(own_server: ApiServer) -> AsyncIterator[Kube]:
    kube = await Kube.connect(own_server.kubeconfig)
    await install(kube)
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
    leases = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]}]
    await _grant(kube, "leases", leases)
    yield kube
    await kube.close()


@pytest.fixture
async def operator(own_server: ApiServer, own_kube: Kube, tmp_path: Path) -> AsyncIterator[Operator]:
    made = Operator(own_server.limited_kubeconfig, _NAMESPACE, tmp_path / "operator.log", NAMESPACES="", TIMER="1")
    yield made
    if made.process is not None:
        await made.end(signal.SIGKILL)
    await _revoke(own_kube, "operator")


@pytest.fixture
async def stage(own_kube: Kube, settings: Settings) -> AsyncIterator[Stage]:
    """With an OrisunCluster that is paused: its status alone is written."""
    stage = Stage(own_kube, _NAMESPACE, settings)
    await stage.create(paused=True)
    yield stage
    await own_kube.delete(stage.ref)
    await stage.close()


async def _grant(kube: Kube, name: str, rules: list[Object]) -> None:
    await kube.create({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
    await kube.create(
        {
            "apiVersion": RBAC,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": LIMITED_USER}],
        }
    )


async def _revoke(kube: Kube, name: str) -> None:
    await kube.delete(Ref(RBAC, "ClusterRoleBinding", "", name))
    await kube.delete(Ref(RBAC, "ClusterRole", "", name))


async def _observed(stage: Stage, generation: int) -> None:
    async def is_observed() -> bool:
        return bool((await stage.status())["observedGeneration"] == generation)

    await eventually(is_observed, 40, 0.1)


async def test_without_its_role_it_says_so_and_goes_on_once_it_has_it(
    own_kube: Kube, stage: Stage, operator: Operator
) -> None:
    await operator.start()
    await eventually(lambda: "resources are not looked after" in operator.log(), 30, 0.1)
    assert "give the operator the roles of its chart" in operator.log()
    assert operator.healthz() == "ok"  # no new process could do more
    await _grant(own_kube, "operator", chart_role()["rules"])
    await _observed(stage, 1)
    assert (await stage.status())["phase"] == "Paused"

    await _revoke(own_kube, "operator")
    await stage.patch(paused=True, hibernate=True)
    await eventually(lambda: "a reconcile failed" in operator.log(), 30, 0.1)
    assert operator.healthz() == "ok"
    await _grant(own_kube, "operator", chart_role()["rules"])
    await _observed(stage, 2)
    assert operator.process is not None
    assert operator.process.returncode is None
    assert "Traceback" not in operator.log()


async def test_what_a_silent_kopf_does_not_tell_is_done_and_healthz_knows(
    own_kube: Kube, stage: Stage, operator: Operator
) -> None:
    # Kopf may list and not watch: it tells what there is when it begins, and then no more
    rules = copy.deepcopy(chart_role()["rules"])
    for rule in rules:
        if rule["apiGroups"] == ["orisun.io"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != "watch"]
    await _grant(own_kube, "operator", rules)
    await operator.start()
    await _observed(stage, 1)
    await stage.patch(hibernate=True)
    await _observed(stage, 2)

    async def is_told() -> bool:
        # each change is news that Kopf owes
        await stage.patch(replicas=3 + 2 * (operator.reconciles() % 2))
        return "Kopf has not told of orisunclusters shop/store" in operator.healthz()

    await eventually(is_told, 60, 0.5)
    await _revoke(own_kube, "operator")
    await _grant(own_kube, "operator", chart_role()["rules"])
    await eventually(lambda: operator.healthz() == "ok", 60, 0.1)


async def test_a_status_that_may_not_be_written_is_told_by_an_event(
    own_kube: Kube, stage: Stage, operator: Operator
) -> None:
    rules = [rule for rule in chart_role()["rules"] if not any(one.endswith("/status") for one in rule["resources"])]
    await _grant(own_kube, "operator", rules)
    await operator.start()

    async def told() -> bool:
        return any("status" in note for note in await stage.events("Forbidden"))

    await eventually(told, 30, 0.1)
    await _revoke(own_kube, "operator")
    await _grant(own_kube, "operator", chart_role()["rules"])
    await _observed(stage, 1)
