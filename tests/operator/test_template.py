"""What servers are made from until what the spec wants may take its place: the schema has to fit, the Secrets too."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orisun_operator.api import PREFIX
from orisun_operator.api.cluster import ClusterSpec
from orisun_operator.kube import Object, Ref
from orisun_operator.resources import applied
from orisun_operator.resources.cluster import Cluster
from tests.harness import eventually
from tests.operator.clusters import NAME, Plan, Stage

LOOKS = 5


async def _images(stage: Stage) -> set[str]:
    """Of the servers that run, or are about to."""
    template = (await stage.statefulset())["spec"]["template"]
    made = [pod["spec"] for pod in (await stage.pods()).values()]
    return {spec["containers"][0]["image"] for spec in (template["spec"], *made)}


async def _replaced(stage: Stage, name: str) -> int:
    """How often a pod that has just been made is made anew over some looks, while it is not ready yet."""
    uids = set()
    for _ in range(LOOKS):
        pod = (await stage.pods())[name]
        uids.add(pod["metadata"]["uid"])
        await stage.reconcile()
        if "deletionTimestamp" in ((await stage.pods()).get(name) or {}).get("metadata", {}):
            await stage.end(name)
        await stage.follow()
    return len(uids) - 1


async def _evict(stage: Stage, name: str) -> None:
    await stage.end(name)
    await stage.follow()


async def _edit(stage: Stage, ref: Ref, patch: Object) -> None:
    """As somebody else does."""
    path, query = await stage.kube._server.path(ref), {"fieldManager": "kubectl-edit"}
    content = "application/merge-patch+json"
    await stage.kube._server.request("PATCH", path, body=patch, content=content, query=query)


async def test_a_pod_that_is_evicted_while_a_plan_waits_starts_in_peace(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    await Plan(stage).make()
    await stage.patch(image="orisun:9")
    await stage.reconcile()
    await _evict(stage, "store-2")
    assert await _replaced(stage, "store-2") == 0
    assert (await stage.condition("Ready"))[1] in {"AwaitingPods", "AwaitingSchema"}
    await stage.ready("store-2")
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingSchema")
    assert (await stage.status())["updatedReplicas"] == 0


async def test_a_pod_starts_in_peace_while_a_changed_postgres_cannot_be_reached(stage: Stage) -> None:
    await stage.create(replicas=1)
    await stage.settle()
    external = (await stage.kube.get(stage.ref) or {})["spec"]["postgres"]["external"]
    await stage.patch(postgres={"external": {**external, "host": "127.0.0.1", "port": 1}})
    await _evict(stage, "store-0")
    assert await _replaced(stage, "store-0") == 0
    await stage.patch(postgres={"external": external})
    await stage.ready("store-0")
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"


async def test_scaling_takes_no_image_along_whose_schema_does_not_fit(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    plan = Plan(stage)
    await plan.make()
    await stage.patch(image="orisun:9", replicas=5)
    await stage.settle(waiting="store-3")
    await stage.settle(waiting="store-4")
    assert await _images(stage) == {"orisun:1"}
    await plan.approve()
    await stage.settle()
    assert await _images(stage) == {"orisun:9"}
    assert (await stage.statefulset())["spec"]["replicas"] == 5


async def test_one_server_grows_to_three_when_the_schema_fits(stage: Stage) -> None:
    """The servers of three are made otherwise than one, and neither takes the other's template along."""
    await stage.create(replicas=1)
    await stage.settle()
    plan = Plan(stage)
    await plan.make()
    await stage.patch(replicas=3)
    for _ in range(LOOKS):
        await stage.reconcile()
        assert await stage.follow() == []
    assert (await stage.condition("Ready"))[1] == "AwaitingSchema"
    assert await stage.events("StreamsRebuilt") == []
    await plan.approve()
    await stage.settle()
    assert (await stage.statefulset())["spec"]["replicas"] == 3
    assert len(await stage.events("StreamsRebuilt")) == 1


async def test_a_statefulset_deleted_by_hand_comes_back_as_it_was(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    plan = Plan(stage)
    await plan.make()
    await stage.patch(image="orisun:9", env=[{"name": "MINE", "value": "1"}])
    await stage.reconcile()
    before = (await stage.statefulset())["spec"]["template"]
    await stage.kube.delete(Ref("apps/v1", "StatefulSet", stage.namespace, NAME))
    for _ in range(LOOKS):
        await stage.reconcile()
    assert (await stage.statefulset())["spec"]["template"] == before
    assert (await stage.statefulset())["spec"]["replicas"] == 3
    await plan.approve()
    await stage.settle()
    assert await _images(stage) == {"orisun:9"}


async def test_a_cluster_wakes_as_it_fell_asleep_while_a_plan_waits(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    plan = Plan(stage)
    await plan.make()
    await stage.patch(image="orisun:9", hibernate=True)
    await stage.settle()
    await stage.patch(hibernate=False)
    await stage.settle(waiting="store-2")
    assert await _images(stage) == {"orisun:1"}
    await plan.approve()
    await stage.settle()
    assert await _images(stage) == {"orisun:9"}


async def test_while_a_template_waits_drift_is_repaired_to_the_one_in_force(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    await Plan(stage).make()
    await stage.patch(image="orisun:9")
    await stage.reconcile()
    edit = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
    await _edit(stage, Ref("apps/v1", "StatefulSet", stage.namespace, NAME), edit)
    await stage.reconcile()
    assert (await stage.statefulset())["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 60
    writes = stage.kube.writes
    for _ in range(LOOKS):
        await stage.reconcile()
    assert stage.kube.writes == writes
    assert await _images(stage) == {"orisun:1"}


@pytest.mark.parametrize("gone", [False, True])
async def test_what_somebody_writes_into_the_memory_leads_to_nothing(stage: Stage, gone: bool) -> None:
    """The operator may make pods, and whoever may write ConfigMaps may not."""
    await stage.create()
    await stage.settle()
    await Plan(stage).make()
    await stage.patch(image="orisun:9")
    await stage.reconcile()
    before = (await stage.statefulset())["spec"]["template"]
    memory = Ref("v1", "ConfigMap", stage.namespace, f"{NAME}-applied")
    content = json.loads((await stage.kube.get(memory) or {})["data"]["statefulset.json"])
    content |= {"apiVersion": "apps/v1", "kind": "StatefulSet"}
    content["metadata"] |= {"name": "elsewhere", "namespace": "default", "ownerReferences": []}
    content["spec"]["template"]["spec"]["hostNetwork"] = True
    await _edit(stage, memory, {"data": {"statefulset.json": json.dumps(content)}})
    if gone:
        await stage.kube.delete(Ref("apps/v1", "StatefulSet", stage.namespace, NAME))
    for _ in range(LOOKS):
        await stage.reconcile()
    assert await stage.kube.get(Ref("apps/v1", "StatefulSet", "default", "elsewhere")) is None
    assert "hostNetwork" not in (await stage.statefulset())["spec"]["template"]["spec"]
    assert "hostNetwork" not in (await stage.kube.get(memory) or {})["data"]["statefulset.json"]
    if not gone:
        # and it is a memory again
        await stage.kube.delete(Ref("apps/v1", "StatefulSet", stage.namespace, NAME))
        await stage.reconcile()
        assert (await stage.statefulset())["spec"]["template"] == before


def test_a_memory_is_of_one_cluster_and_makes_nothing_of_another_name() -> None:
    spec = {"replicas": 3, "template": {"metadata": {}, "spec": {"containers": []}}}
    cluster = Cluster("shop", NAME, "uid-1", ClusterSpec.model_construct(), image="", nats_image="")
    ours = {f"{PREFIX}incarnation": "cluster-1"}
    metadata = {"name": "other", "namespace": "other", "labels": {"a": "b"}, "annotations": {**ours, "theirs": "1"}}
    memory = applied.memory(cluster, {"metadata": metadata, "spec": spec}, b"key")
    content = applied.in_force(memory, None, uid="uid-1", key=b"key")
    assert content == {"metadata": {"annotations": ours}, "spec": spec}
    restored = applied.restored(cluster, content)
    assert restored["metadata"] == cluster.metadata(NAME, annotations=ours)
    for uid, key in (("uid-2", b"key"), ("uid-1", b"other"), ("uid-1", b"")):
        assert applied.in_force(memory, None, uid=uid, key=key) is None


async def test_a_statefulset_that_the_api_server_refuses_is_not_remembered(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    memory = Ref("v1", "ConfigMap", stage.namespace, f"{NAME}-applied")
    before = (await stage.kube.get(memory) or {})["data"]
    await stage.patch(env=[{"name": "NO NAME=", "value": "1"}])
    await stage.reconcile()
    assert (await stage.condition("Ready"))[1] == "Refused"
    assert (await stage.kube.get(memory) or {})["data"] == before


async def test_what_an_older_operator_left_is_taken_over(stage: Stage) -> None:
    """It remembered nothing beside the StatefulSet."""
    await stage.create()
    await stage.settle()
    await Plan(stage).make()
    await stage.patch(image="orisun:9", replicas=4)
    await stage.kube.delete(Ref("v1", "ConfigMap", stage.namespace, f"{NAME}-applied"))
    await stage.settle(waiting="store-3")
    assert await _images(stage) == {"orisun:1"}


def _newer(stage: Stage) -> None:
    settings = stage.operator().settings.model_copy(update={"server_image": "orisun:2", "nats_image": "orisun-nats:2"})
    stage.context = replace(stage.context, settings=settings)


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_newer_operator_and_a_statefulset_made_anew_restart_nothing(stage: Stage, by_hand: bool) -> None:
    await stage.create()
    await stage.settle()
    before = {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()}
    _newer(stage)
    if by_hand:
        await stage.kube.delete(Ref("apps/v1", "StatefulSet", stage.namespace, NAME), propagation="Orphan")
    else:
        await stage.patch(nats={"storage": {"size": "4Gi"}})
    await stage.settle()
    assert {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()} == before
    assert (await stage.status())["image"] == "orisun:1"


async def test_shrinking_goes_on_where_it_was_when_the_statefulset_is_made_anew(stage: Stage) -> None:
    await stage.create(replicas=5)
    await stage.settle()
    await stage.patch(replicas=3, nats={"storage": {"size": "4Gi"}})
    asked: list[Any] = []
    for _ in range(LOOKS):
        await stage.reconcile()
        await stage._collect()
        found = await stage.get("apps/v1", "StatefulSet", NAME)
        asked += [found["spec"]["replicas"]] if found is not None else []
        if asked[-1:] == [4]:
            break
    # one server at a time, gated, and the volumes on the way
    assert asked[-1] == 4, asked
    assert set(asked) <= {5, 4}


async def _embedded_image(stage: Stage) -> str:
    async def image() -> str:
        await stage.reconcile()
        await stage._collect()
        found = await stage.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
        storage = found and found["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
        assert found is None or storage == "1Gi" or found["metadata"]["generation"] == 1
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"]) if found and storage == "2Gi" else ""

    return str(await eventually(image, 20, 0.01))


@pytest.mark.parametrize("asleep", [False, True])
async def test_a_larger_volume_of_the_embedded_postgres_keeps_its_image(stage: Stage, asleep: bool) -> None:
    await stage.create(replicas=1, postgres={"embedded": {"storage": {"size": "1Gi"}}}, hibernate=asleep)
    await stage.reconcile()
    if not asleep:
        await stage.embedded_pod()
    _newer(stage)
    await stage.patch(postgres={"embedded": {"storage": {"size": "2Gi"}}}, image="orisun:9")
    assert await _embedded_image(stage) == "orisun:1"


async def test_an_embedded_postgres_that_is_deleted_by_hand_comes_back_with_the_current_image(stage: Stage) -> None:
    await stage.create(replicas=1, postgres={"embedded": {"storage": {"size": "1Gi"}}})
    await stage.reconcile()
    statefulset = await stage.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
    assert statefulset is not None
    await stage.embedded_pod()
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": f"{NAME}-postgres", "controller": True}
    patch = {"metadata": {"ownerReferences": [{**owner, "uid": statefulset["metadata"]["uid"]}]}}
    await stage.kube.patch(Ref("v1", "Pod", stage.namespace, f"{NAME}-postgres-0"), patch)
    _newer(stage)
    # its pod is still there for a moment
    await stage.kube.delete(Ref.of(statefulset))
    await stage.reconcile()
    again = await stage.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
    assert again is not None
    assert again["spec"]["template"]["spec"]["containers"][0]["image"] == "orisun:2"


@pytest.mark.parametrize("what", ["admin", "tls"])
async def test_a_secret_of_no_use_keeps_nobody_from_looking_at_the_pods(stage: Stage, what: str) -> None:
    await stage.secret("mine", username="root", password="long enough")
    boundary_name = stage.settings.admin_boundary
    await stage.create(admin={"boundary": boundary_name, "secretRef": {"name": "mine"}})
    await stage.settle()
    if what == "admin":
        await stage.kube.delete(Ref("v1", "Secret", stage.namespace, "mine"))
    else:
        await stage.patch(tls={"mode": "secret", "secretName": "missing"})
    for name in await stage.pods():
        await stage.failing(name)
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "SecretNotFound")
    assert (await stage.condition("Available"))[0] == "False"
    assert (await stage.status())["readyReplicas"] == 0
    # a StatefulSet deleted by hand comes back
    uids = {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()}
    before = (await stage.statefulset())["spec"]["template"]
    await stage.kube.delete(Ref("apps/v1", "StatefulSet", stage.namespace, NAME))
    for _ in range(LOOKS):
        await stage.reconcile()
    assert (await stage.statefulset())["spec"]["template"] == before
    assert {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()} == uids
    # and the cluster may sleep
    await stage.patch(hibernate=True)
    await stage.settle()
    assert await stage.pods() == {}
    assert (await stage.status())["phase"] == "Hibernated"


@pytest.mark.parametrize("asleep", [False, True])
async def test_no_server_is_added_with_a_password_that_everybody_knows(stage: Stage, asleep: bool) -> None:
    await stage.create()
    await stage.settle()
    if asleep:
        await stage.patch(hibernate=True)
        await stage.settle()
    await stage.secret(f"{NAME}-admin", password="changeit")
    await stage.patch(hibernate=False, replicas=5)
    for _ in range(LOOKS):
        await stage.reconcile()
        assert await stage.follow() == []
    assert (await stage.condition("Stalled"))[:2] == ("True", "DefaultPassword")
    await stage.secret(f"{NAME}-admin", password="a better one")
    await stage.settle()
    assert len(await stage.pods()) == 5


async def test_unreachable_postgres_is_told_rather_than_the_pods_that_wait_for_it(stage: Stage) -> None:
    await stage.create(replicas=1)
    await stage.settle()
    external = (await stage.kube.get(stage.ref) or {})["spec"]["postgres"]["external"]
    await stage.patch(postgres={"external": {**external, "host": "127.0.0.1", "port": 1}})
    await stage.failing("store-0", "CrashLoopBackOff", "no PostgreSQL")
    stage.late = 400.0
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "UnreachablePostgres")
    assert (await stage.condition("Stalled"))[0] == "False"


async def test_a_pod_is_late_from_the_moment_that_it_was_not_ready_any_more(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    stage.late = 400.0
    await stage.failing("store-1", "CrashLoopBackOff", "a moment ago")
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingPods")
    assert (await stage.condition("Stalled"))[0] == "False"
    stage.late = 800.0
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "PodsNotReady")


async def test_the_budget_stays_while_several_servers_run(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    await stage.patch(replicas=1)
    await stage.reconcile()
    assert await stage.get("policy/v1", "PodDisruptionBudget", NAME) is not None
    await stage.settle()
    await stage.reconcile()
    assert await stage.get("policy/v1", "PodDisruptionBudget", NAME) is None
