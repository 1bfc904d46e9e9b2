"""OrisunClusters: resources on a real API server, their catalog in a real PostgreSQL."""

from __future__ import annotations

import base64
import datetime
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from orisun_operator.api import API_VERSION
from orisun_operator.certificates import issue, make_authority
from orisun_operator.jetstream import Health, Peer
from orisun_operator.kube import KubeError, Object, Ref
from orisun_operator.reconcile.cluster_schema import Schema
from tests.operator.clusters import NAME, Plan, Stage


async def test_a_cluster_gets_all_its_children_and_is_ready_when_its_pods_are(stage: Stage) -> None:
    await stage.create()
    await stage.reconcile()
    await stage.reconcile()
    for api_version, kind, name in (
        ("apps/v1", "StatefulSet", NAME),
        ("v1", "Service", NAME),
        ("v1", "Service", f"{NAME}-headless"),
        ("v1", "Service", f"{NAME}-admin"),
        ("v1", "ServiceAccount", NAME),
        ("v1", "ConfigMap", f"{NAME}-nats"),
        ("v1", "Secret", f"{NAME}-nats-auth"),
        ("v1", "Secret", f"{NAME}-admin"),
        ("policy/v1", "PodDisruptionBudget", NAME),
        ("networking.k8s.io/v1", "NetworkPolicy", NAME),
    ):
        assert await stage.get(api_version, kind, name) is not None, (kind, name)
    assert (await stage.statefulset())["spec"]["replicas"] == 3
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingPods")
    assert (await stage.condition("SchemaReady"))[0] == "True"
    assert await stage.follow() == ["store-0", "store-1", "store-2"]
    for name in await stage.pods():
        await stage.ready(name)
    assert (await stage.reconcile()).requeue is None
    assert (await stage.condition("Ready"))[:2] == ("True", "Ready")
    status = await stage.status()
    assert status["observedGeneration"] == 1
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (3, 3, 3)
    assert status["phase"] == "Ready"
    assert status["postgres"] == {"mode": "external", "secret": "credentials"}
    admin = await stage.get("v1", "Secret", f"{NAME}-admin")
    assert admin is not None
    assert len(_value(admin, "password")) > 20


def _value(secret: Object, key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


async def test_nothing_is_written_when_nothing_changed(stage: Stage) -> None:
    await stage.create(monitoring={"podMonitor": {"enabled": False}}, resources={"requests": {"cpu": "0.5"}})
    await stage.settle()
    versions = await _versions(stage)
    writes = stage.kube.writes
    for _ in range(10):
        assert (await stage.reconcile()).requeue is None
    assert stage.kube.writes == writes
    assert await _versions(stage) == versions


async def test_a_newer_operator_restarts_nothing(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    uids = await _uids(stage)
    newer = stage.operator().settings.model_copy(update={"server_image": "orisun:2", "nats_image": "orisun-nats:2"})
    stage.context = replace(stage.context, settings=newer)
    await stage.settle()
    assert await _uids(stage) == uids
    assert (await stage.status())["image"] == "orisun:1"


async def test_drift_is_repaired_and_told(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    uids = await _uids(stage)
    await stage.kube.delete(Ref("v1", "Service", stage.namespace, NAME))
    await _edit(stage, "v1", "Service", f"{NAME}-headless", {"spec": {"publishNotReadyAddresses": False}})
    await _edit(stage, "v1", "ConfigMap", f"{NAME}-nats", {"data": {"nats.conf": "x", "more.conf": "y"}})
    container = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1, "hostNetwork": True}}}}
    await _edit(stage, "apps/v1", "StatefulSet", NAME, container)
    await _edit(stage, "v1", "Secret", f"{NAME}-nats-auth", {"data": {"auth.conf": "eA=="}})
    await stage.settle()
    assert await stage.get("v1", "Service", NAME) is not None
    service = await stage.get("v1", "Service", f"{NAME}-headless")
    assert service is not None
    assert service["spec"]["publishNotReadyAddresses"] is True
    config = await stage.get("v1", "ConfigMap", f"{NAME}-nats")
    assert config is not None
    assert set(config["data"]) == {"nats.conf"}
    pod = (await stage.statefulset())["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 60
    assert not pod.get("hostNetwork")
    told = "\n".join(await stage.events("DriftRepaired"))
    for words in ("Service", "was missing and is made again", "ConfigMap", "data.more.conf", "StatefulSet", "Secret"):
        assert words in told
    assert await _uids(stage) == uids


async def test_a_password_that_is_changed_as_it_may_be_is_no_drift(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    uids = await _uids(stage)
    await _edit(stage, "v1", "Secret", f"{NAME}-admin", {"data": {"password": "YSBiZXR0ZXIgb25l"}})
    await stage.settle()
    assert not set(uids.values()) & set((await _uids(stage)).values())
    assert await stage.events("DriftRepaired") == []
    await _edit(stage, "v1", "Secret", f"{NAME}-admin", {"data": {"password": "YW5vdGhlciBvbmU=", "more": "eA=="}})
    await stage.settle()
    found = await stage.get("v1", "Secret", f"{NAME}-admin")
    assert found is not None
    assert found["data"] == {"username": "YWRtaW4=", "password": "YW5vdGhlciBvbmU="}
    (told,) = await stage.events("DriftRepaired")
    assert told.endswith("was changed by somebody: data.more put back")


async def test_a_secret_deleted_by_hand_is_made_anew_and_rolled_out(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    uids = await _uids(stage)
    await stage.kube.delete(Ref("v1", "Secret", stage.namespace, f"{NAME}-nats-auth"))
    # with new credentials the old and the new servers cannot form a cluster: JetStream is not waited for
    stage.jetstream.answer = Health(problem="store-2: no quorum")
    await stage.settle(degraded=True)
    assert not set(uids.values()) & set((await _uids(stage)).values())


async def test_everything_is_written_by_one_field_manager(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    kinds = [("v1", kind) for kind in ("Service", "Secret", "ConfigMap", "ServiceAccount")]
    kinds += [("apps/v1", "StatefulSet"), ("policy/v1", "PodDisruptionBudget")]
    kinds += [("networking.k8s.io/v1", "NetworkPolicy"), (API_VERSION, "OrisunCluster")]
    written = [obj for kind in kinds for obj in await stage.kube.list(*kind, stage.namespace)]
    owned = [obj for obj in written if obj["metadata"].get("ownerReferences")]
    assert len(owned) > 8
    for obj in owned:
        entries = [(one["manager"], one["operation"]) for one in obj["metadata"]["managedFields"]]
        assert entries == [("orisun-operator", "Apply")], obj["metadata"]["name"]
    (cluster,) = (obj for obj in written if obj["kind"] == "OrisunCluster")
    status = [one for one in cluster["metadata"]["managedFields"] if one.get("subresource") == "status"]
    assert [one["manager"] for one in status] == ["orisun-operator"]


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("orisun:1", "orisun:2"),
        ("orisun", "orisun:2"),
        ("localhost:5000/team/orisun:1@sha256:0123", "localhost:5000/team/orisun:2"),
        ("localhost:5000/orisun", "localhost:5000/orisun:2"),
    ],
)
async def test_a_version_is_a_tag_of_the_operators_image(stage: Stage, default: str, expected: str) -> None:
    stage.context = replace(stage.context, settings=stage.context.settings.model_copy(update={"server_image": default}))
    await stage.create(version="2", nats={"image": "example.com/nats:9"})
    await stage.settle()
    containers = (await stage.statefulset())["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["image"] for one in containers} == {"server": expected, "nats": "example.com/nats:9"}
    status = await stage.status()
    assert (status["image"], status["natsImage"]) == (expected, "example.com/nats:9")


async def test_on_delete_waits_for_a_person(stage: Stage) -> None:
    await stage.create(updateStrategy={"type": "OnDelete"})
    await stage.settle()
    before = await _uids(stage)
    await stage.patch(image="orisun:9")
    await stage.settle()
    assert await _uids(stage) == before
    status, reason, message = await stage.condition("Ready")
    assert (status, reason, "delete store-0, store-1, store-2" in message) == ("False", "AwaitingDeletion", True)
    for name in before:
        await stage.end(name)
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    assert {one["spec"]["containers"][0]["image"] for one in (await stage.pods()).values()} == {"orisun:9"}


async def test_an_image_rolls_out_one_pod_at_a_time(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    await stage.patch(image="orisun:9")
    order = []
    for ordinal in (2, 1, 0):
        await stage.settle(ready=False, waiting=f"store-{ordinal}")
        now = await _uids(stage)
        order.append([name for name in now if now[name] != before.get(name)])
        assert (await stage.condition("Ready"))[0] == "False"
        assert (await stage.condition("Reconciling"))[0] == "True"
        await stage.ready(f"store-{ordinal}")
    assert order == [["store-2"], ["store-1", "store-2"], ["store-0", "store-1", "store-2"]]
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    assert (await stage.status())["image"] == "orisun:9"
    events = await stage.kube.list("events.k8s.io/v1", "Event", stage.namespace)
    assert {event["type"] for event in events if event["reason"] == "RollingOut"} == {"Normal"}


async def test_a_bad_image_stops_and_the_old_one_heals(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    await stage.patch(image="orisun:bad")
    await stage.settle(ready=False, waiting="store-2")
    await stage.failing("store-2")
    stage.late = 400.0
    await stage.reconcile()
    status, reason, message = await stage.condition("Stalled")
    assert (status, reason) == ("True", "PodsNotReady")
    assert "ImagePullBackOff" in message
    assert (await stage.condition("Available"))[0] == "True"
    for _ in range(3):
        await stage.reconcile()
    now = await _uids(stage)
    assert (now["store-0"], now["store-1"]) == (before["store-0"], before["store-1"])
    await stage.patch(image=None)
    await stage.settle()
    after = await _uids(stage)
    assert (after["store-0"], after["store-1"]) == (before["store-0"], before["store-1"])
    assert (await stage.condition("Ready"))[0] == "True"


async def test_a_rollout_waits_for_jetstream(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    stage.jetstream.answer = Health(problem="store-1: stream is not current")
    await stage.patch(image="orisun:9")
    for _ in range(3):
        await stage.reconcile()
    assert await _uids(stage) == before
    assert "store-1: stream is not current" in (await stage.condition("Ready"))[2]
    assert (await stage.condition("JetStreamHealthy"))[0] == "False"
    stage.jetstream.answer = Health()
    await stage.settle()
    assert not set(before.values()) & set((await _uids(stage)).values())


async def test_an_image_waits_for_the_approval_of_a_plan(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    plan = Plan(stage)
    await plan.make()
    await stage.patch(image="orisun:9")
    for _ in range(3):
        await stage.reconcile()
    assert await _uids(stage) == before
    template = (await stage.statefulset())["spec"]["template"]["spec"]
    assert {one["image"] for one in template["containers"]} == {"orisun:1", "orisun-nats:1"}
    assert (await stage.condition("SchemaReady"))[:2] == ("False", "SchemaPending")
    status, reason, message = await stage.condition("Ready")
    assert (status, reason) == ("False", "AwaitingSchema")
    assert f"has migrations to come (see Boundary {stage.namespace}/orders)" in message

    await plan.approve()
    await stage.settle()
    assert not set(before.values()) & set((await _uids(stage)).values())
    assert (await stage.condition("SchemaReady"))[0] == "True"


async def test_a_changed_service_or_budget_restarts_nothing(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    await stage.patch(
        grpc={"service": {"type": "LoadBalancer", "annotations": {"cloud/x": "y"}}},
        podDisruptionBudget={"maxUnavailable": 2},
        networkPolicy={"enabled": False},
        deletionPolicy="Delete",
    )
    await stage.settle()
    assert await _uids(stage) == before
    service = await stage.get("v1", "Service", NAME)
    assert service is not None
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["annotations"]["cloud/x"] == "y"
    assert await stage.get("networking.k8s.io/v1", "NetworkPolicy", NAME) is None


async def test_scaling_goes_one_ordinal_at_a_time_and_removes_members(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    await stage.patch(replicas=5)
    await stage.settle(ready=False, waiting="store-3")
    assert (await stage.statefulset())["spec"]["replicas"] == 4
    await stage.ready("store-3")
    await stage.settle()
    assert (await stage.statefulset())["spec"]["replicas"] == 5
    for ordinal in range(5):
        await stage.claim(ordinal)
    peers = tuple(Peer(f"store-{n}-abc", offline=n == 4) for n in range(5))
    names = {f"store-{n}": f"store-{n}-abc" for n in range(5)}
    stage.jetstream.answer = Health("", "store-0-abc", peers, names)
    await stage.patch(replicas=3)
    await stage.reconcile()
    assert (await stage.statefulset())["spec"]["replicas"] == 4
    await stage.follow()
    stage.jetstream.answer = Health("", "store-0-abc", peers, {f"store-{n}": f"store-{n}-abc" for n in range(4)})
    await stage.reconcile()
    assert stage.jetstream.removed == ["store-4-abc"]
    # not further before it is gone
    assert (await stage.statefulset())["spec"]["replicas"] == 4
    stage.jetstream.answer = Health("", "store-0-abc", peers[:4], {f"store-{n}": f"store-{n}-abc" for n in range(4)})
    await stage.reconcile()
    assert (await stage.statefulset())["spec"]["replicas"] == 3
    await stage.follow()
    await stage.reconcile()
    stage.jetstream.answer = Health("", "store-0-abc", peers[:3], {f"store-{n}": f"store-{n}-abc" for n in range(3)})
    await stage.settle()
    assert stage.jetstream.removed == ["store-4-abc", "store-3-abc"]
    assert await _uids(stage) == before
    assert await stage.claims() == ["jetstream-store-0", "jetstream-store-1", "jetstream-store-2"]


async def test_one_to_three_rebuilds_the_streams_after_a_warning(stage: Stage) -> None:
    await stage.create(replicas=1)
    await stage.settle()
    assert await stage.get("policy/v1", "PodDisruptionBudget", NAME) is None
    first = (await _uids(stage))["store-0"]
    await stage.patch(replicas=3)
    await stage.reconcile()
    status, reason, message = await stage.condition("JetStreamHealthy")
    assert (status, reason) == ("False", "Rebuilding")
    assert "subscriptions read PostgreSQL" in message
    assert (await stage.status())["jetstream"]["state"] == "Rebuilding"
    await stage.settle()
    assert (await stage.statefulset())["spec"]["replicas"] == 3
    assert (await _uids(stage))["store-0"] != first
    assert await stage.events("StreamsRebuilt") == [
        "with 3 servers JetStream begins anew; subscriptions read PostgreSQL meanwhile"
    ]
    found = await stage.kube.list("events.k8s.io/v1", "Event", stage.namespace)
    assert {event["type"] for event in found if event["reason"] == "StreamsRebuilt"} == {"Warning"}
    assert (await stage.condition("JetStreamHealthy"))[:2] == ("True", "Healthy")
    assert (await stage.status())["jetstream"]["incarnation"] == "cluster-2"
    assert await stage.get("policy/v1", "PodDisruptionBudget", NAME) is not None
    await stage.patch(replicas=1)
    await stage.reconcile()
    assert (await stage.condition("JetStreamHealthy"))[1] == "Rebuilding"
    await stage.settle()
    assert list(await stage.pods()) == ["store-0"]
    assert len(await stage.events("StreamsRebuilt")) == 2
    assert (await stage.status())["jetstream"]["incarnation"] == "single-3"


async def test_a_majority_lost_for_good_begins_jetstream_anew(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    names = {name: f"{name}-abc" for name in before}
    stage.jetstream.answer = Health("store-1: JetStream has not established contact with a meta leader", names=names)
    await stage.reconcile()
    assert (await stage.condition("JetStreamHealthy"))[:2] == ("False", "Degraded")
    assert (await stage.status())["jetstream"]["leaderlessSince"]
    # a server that is away for a while explains it
    stage.late = 200.0
    await stage.failing("store-2")
    await stage.reconcile()
    assert "leaderlessSince" not in (await stage.status())["jetstream"]
    await stage.ready("store-2")
    await stage.reconcile()
    stage.late = 450.0
    await stage.settle(degraded=True)
    assert await _uids(stage) == before
    # nobody looked for a while, and meanwhile they have found together
    lost, stage.jetstream.answer = stage.jetstream.answer, Health()
    stage.late = 510.0
    await stage.settle()
    assert await _uids(stage) == before
    stage.jetstream.answer = lost
    await stage.reconcile()
    stage.late = 820.0
    await stage.settle(waiting="store-2")
    await stage.settle(waiting="store-0")
    stage.jetstream.answer = Health(leader="store-1")
    await stage.settle()
    assert not set(before.values()) & set((await _uids(stage)).values())
    assert await stage.events("StreamsRebuilt") == [
        "after five minutes without a leader JetStream begins anew; subscriptions read PostgreSQL meanwhile"
    ]
    assert (await stage.status())["jetstream"] == {"state": "Healthy", "incarnation": "cluster-2"}
    writes = stage.kube.writes
    await stage.reconcile()
    assert stage.kube.writes == writes


async def test_jetstream_begins_anew_once_where_that_does_not_help(stage: Stage) -> None:
    """Servers whose routes are cut for good would all be made anew every five minutes."""
    await stage.create()
    await stage.settle()
    names = {name: f"{name}-abc" for name in await stage.pods()}
    lost = Health("store-1: JetStream has not established contact with a meta leader", names=names)
    stage.jetstream.answer = lost
    await stage.reconcile()
    for stage.late in (310.0, 320.0):
        await stage.settle(degraded=True)
    begun = await _uids(stage)
    assert (await stage.status())["jetstream"]["incarnation"] == "cluster-2"
    assert (await stage.condition("Stalled"))[0] == "False"
    for stage.late in (700.0, 1100.0, 1500.0):
        await stage.settle(stalled=True)
        assert (await stage.condition("Stalled"))[:2] == ("True", "JetStreamLeaderless")
        assert (await stage.condition("Available"))[0] == "True"
    assert await _uids(stage) == begun
    assert len(await stage.events("StreamsRebuilt")) == 1
    # one that has found a leader meanwhile may lose it as the first did
    stage.jetstream.answer = Health(leader="store-1", names=names)
    await stage.settle()
    assert "begunAnew" not in (await stage.status())["jetstream"]
    stage.jetstream.answer = lost
    await stage.reconcile()
    for stage.late in (1900.0, 1910.0):
        await stage.settle(degraded=True)
    assert (await stage.status())["jetstream"]["incarnation"] == "cluster-3"


async def test_a_nats_server_that_has_stopped_writing_is_made_anew_once(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    stopped = Health(problem="store-1: stream write error", ailing=("store-1",), stopped=("store-1",))
    stage.jetstream.answer = stopped
    await stage.patch(image="orisun:9")
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingJetStream")
    assert await _uids(stage) == before
    stage.late = 31.0
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "RestartingNats")
    assert await stage.events("RestartingNats")
    assert await stage.follow() == ["store-1"]
    await stage.ready("store-1")
    after = await _uids(stage)
    assert {name for name in after if after[name] != before[name]} == {"store-1"}
    # it has not helped: somebody is called, and the next time comes much later
    for stage.late in (62.0, 301.0, 3600.0):
        await stage.reconcile()
        assert (await stage.condition("Ready"))[1] == "AwaitingJetStream"
        assert (await stage.condition("Stalled"))[0] == str(stage.late > 300)
    assert await _uids(stage) == after
    stage.late = 3700.0
    await stage.reconcile()
    assert (await stage.condition("Ready"))[1] == "RestartingNats"
    assert await stage.follow() == ["store-1"]
    await stage.ready("store-1")
    stage.jetstream.answer = Health()
    await stage.settle()
    assert "restarted" in (await stage.status())["jetstream"]
    assert set((await _uids(stage)).values()).isdisjoint(before.values())
    stage.late = 7400.0
    await stage.reconcile()
    assert "restarted" not in (await stage.status())["jetstream"]


async def test_what_lasts_too_long_calls_somebody(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    stage.jetstream.answer = Health(problem="store-1: stream is not current")
    await stage.patch(image="orisun:9")
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[0] == "False"
    stage.late = 301.0
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "AwaitingJetStream")
    writes = stage.kube.writes
    await stage.reconcile()
    assert stage.kube.writes == writes

    stage.jetstream.answer = Health("", "store-0-a", (Peer("store-0-a", False), Peer("store-3-x", True)))
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "RemovingPeers")
    assert (await stage.condition("Stalled"))[0] == "False"
    stage.late = 602.0
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "RemovingPeers")

    # its node is dead: nobody says that it has ended
    stage.late, stage.jetstream.answer = 0.0, Health()
    await stage.kube.set_finalizer((await stage.pods())["store-2"], "tests/kubelet")
    await stage.reconcile()
    assert (await stage.condition("Ready"))[1] == "RollingOut"
    await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingPods")
    assert (await stage.condition("Stalled"))[0] == "False"
    stage.late = 1000.0
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "PodsNotEnding")
    await stage.kube.remove_finalizer((await stage.pods())["store-2"], "tests/kubelet")
    stage.late = 0.0
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"


async def test_hibernation_keeps_claims_and_waking_brings_all_back(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    for ordinal in range(3):
        await stage.claim(ordinal)
    await stage.patch(hibernate=True)
    await stage.settle()
    assert await stage.pods() == {}
    assert (await stage.status())["phase"] == "Hibernated"
    assert len(await stage.claims()) == 3
    writes = stage.kube.writes
    await stage.reconcile()
    assert stage.kube.writes == writes
    await stage.patch(hibernate=False)
    await stage.settle()
    assert len(await stage.pods()) == 3
    assert (await stage.condition("Ready"))[0] == "True"


async def test_paused_changes_nothing(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    await stage.patch(paused=True, image="orisun:9")
    await stage.kube.delete(Ref("v1", "Service", stage.namespace, NAME))
    await stage.reconcile()
    assert await stage.get("v1", "Service", NAME) is None
    assert (await stage.status())["phase"] == "Paused"
    assert not stage.context.postgres._entries
    await stage.patch(paused=False)
    await stage.settle()
    assert await stage.get("v1", "Service", NAME) is not None


async def test_a_changed_password_or_credential_is_rolled_out(stage: Stage) -> None:
    await stage.secret("mine", username="root", password="first-password")
    await stage.create(admin={"boundary": stage.settings.admin_boundary, "secretRef": {"name": "mine"}})
    await stage.settle()
    before = await _uids(stage)
    await stage.secret("mine", username="root", password="second-password")
    await stage.settle()
    between = await _uids(stage)
    assert not set(before.values()) & set(between.values())
    await stage.secret("mine", username="root", password="second-password", other="ignored")
    await stage.settle()
    assert await _uids(stage) == between


@pytest.mark.parametrize(
    ("password", "reason"), [("changeit", "DefaultPassword"), ("12345", "BadPassword"), (None, "UnknownSecretKey")]
)
async def test_a_bad_administrator_secret_stalls_and_heals(stage: Stage, password: str | None, reason: str) -> None:
    await stage.create(admin={"boundary": stage.settings.admin_boundary, "secretRef": {"name": "mine"}})
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "SecretNotFound")
    data = {"username": "root"} | ({"password": password} if password is not None else {})
    await stage.secret("mine", **data)
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", reason)
    assert (await stage.status())["observedGeneration"] == 1
    assert await stage.get("apps/v1", "StatefulSet", NAME) is None
    await stage.secret("mine", username="root", password="long enough")
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    assert (await stage.condition("Stalled"))[0] == "False"


async def test_unreachable_postgres_is_told_and_touches_nothing(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before = await _uids(stage)
    spec = (await stage.kube.get(stage.ref) or {})["spec"]["postgres"]["external"]
    await stage.patch(postgres={"external": {**spec, "host": "127.0.0.1", "port": 1}}, image="orisun:9")
    for _ in range(2):
        await stage.reconcile()
    assert await _uids(stage) == before
    status, reason, message = await stage.condition("SchemaReady")
    assert (status, reason) == ("False", "UnreachablePostgres")
    assert "127.0.0.1:1" in message
    assert (await stage.status())["image"] == "orisun:1"
    # children are repaired nevertheless
    await stage.kube.delete(Ref("v1", "Service", stage.namespace, NAME))
    await stage.reconcile()
    assert await stage.get("v1", "Service", NAME) is not None
    await stage.patch(postgres={"external": spec})
    await stage.settle()
    assert (await stage.status())["image"] == "orisun:9"


async def test_tls_of_the_operator_is_issued_and_renewed_without_a_restart(stage: Stage) -> None:
    await stage.create(tls={"mode": "operator", "duration": "100h", "renewBefore": "50h"})
    await stage.settle()
    before = await _uids(stage)
    first = await _certificate(stage)
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    )
    assert f"{NAME}.{stage.namespace}.svc" in names
    stage.late = 40 * 3600.0
    await stage.settle()
    assert await _certificate(stage) == first
    stage.late = 60 * 3600.0
    await stage.settle()
    second = await _certificate(stage)
    assert second.not_valid_after_utc > first.not_valid_after_utc
    assert (await stage.events("CertificateRenewed")) != []
    assert await _uids(stage) == before
    writes = stage.kube.writes
    await stage.reconcile()
    assert stage.kube.writes == writes


async def test_an_authority_is_known_before_it_signs_and_trusted_to_its_end(stage: Stage) -> None:
    await stage.create(tls={"mode": "operator"})
    year = 365 * 86400.0
    found = []
    for years in (0.0, 4.9, 5.1, 5.4, 5.6, 9.9, 10.1):
        stage.late = years * year
        await stage.settle()
        bundle = await stage.get("v1", "ConfigMap", f"{NAME}-ca")
        assert bundle is not None
        trusted = x509.load_pem_x509_certificates(bundle["data"]["ca.crt"].encode())
        server = await _certificate(stage)
        (signer,) = (one for one in trusted if _is_signed_by(server, one))
        found.append((len(trusted), signer))
        writes = stage.kube.writes
        await stage.reconcile()
        assert stage.kube.writes == writes
    first = found[0][1]
    assert [(count, signer == first) for count, signer in found] == [
        (1, True),
        (1, True),
        (2, True),
        (2, True),
        (2, False),
        (2, False),
        (2, False),
    ]


async def test_certificates_of_no_use_are_told_and_heal(stage: Stage) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("company", now)
    good, other = (issue(authority, ["store"], datetime.timedelta(hours=1), now) for _ in range(2))
    await stage.create(
        tls={"mode": "secret", "secretName": "mine", "clientAuth": {"caSecretRef": {"name": "clients", "key": "ca"}}}
    )
    clients = authority.certificate.decode()
    for certificate, key, ca, words in (
        (good.certificate, good.key, "x", "Secret {}/clients: ca is no certificate in PEM"),
        (b"x", good.key, clients, "Secret {}/mine: tls.crt is no certificate in PEM"),
        (good.certificate, b"x", clients, "Secret {}/mine: tls.key is no private key"),
        (good.certificate, other.key, clients, "Secret {}/mine: tls.key is not the key"),
    ):
        await stage.secret("mine", **{"tls.crt": certificate.decode(), "tls.key": key.decode()})
        await stage.secret("clients", ca=ca)
        await stage.reconcile()
        assert (await stage.condition("Stalled"))[:2] == ("True", "BadCertificate")
        assert words.format(stage.namespace) in (await stage.condition("Ready"))[2]
    await stage.secret("mine", **{"tls.crt": good.certificate.decode(), "tls.key": good.key.decode()})
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    # nobody renews it
    stage.late = 2 * 3600.0
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "CertificateExpired")
    assert (await stage.condition("Available"))[0] == "True"


async def test_cert_manager_is_asked_for_and_named_when_it_is_missing(stage: Stage) -> None:
    await stage.create(tls={"mode": "certManager", "issuerRef": {"name": "company"}})
    await stage.reconcile()
    assert (await stage.condition("Stalled"))[:2] == ("True", "CertManagerMissing")


async def test_a_missing_prometheus_operator_is_told_and_keeps_no_server_from_serving(stage: Stage) -> None:
    await stage.create(monitoring={"podMonitor": {"enabled": True}})
    await stage.settle(stalled=True)
    assert (await stage.condition("Stalled"))[:2] == ("True", "PodMonitorMissing")
    assert (await stage.condition("Available"))[0] == "True"
    await stage.patch(monitoring=None)
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"


async def test_the_embedded_postgres_comes_first_and_keeps_its_image(stage: Stage) -> None:
    await stage.create(replicas=1, postgres={"embedded": {"storage": {"size": "1Gi"}}})
    await stage.reconcile()
    postgres = await stage.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
    assert postgres is not None
    assert await stage.get("apps/v1", "StatefulSet", NAME) is None
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingPostgres")
    assert "goes with the claim" in (await stage.status())["postgres"]["note"]
    await stage.patch(image="orisun:9")
    await stage.reconcile()
    again = await stage.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
    assert again is not None
    assert again["spec"]["template"]["spec"]["containers"][0]["image"] == "orisun:1"
    assert again["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"


async def test_a_lost_password_of_the_embedded_postgres_restarts_it_with_the_new_one(stage: Stage) -> None:
    await stage.create(replicas=1, postgres={"embedded": {"storage": {"size": "1Gi"}}})
    await stage.reconcile()

    pod = stage.embedded_pod
    first = await pod()
    await stage.reconcile()
    assert await pod() == first
    # what else is in the Secret is put back, and restarts nothing
    secret = Ref("v1", "Secret", stage.namespace, f"{NAME}-postgres")
    await stage.kube.patch(secret, {"stringData": {"host": "elsewhere"}})
    await stage.reconcile()
    assert await pod() == first
    await stage.kube.delete(secret)
    await stage.reconcile()
    assert await pod() != first
    assert await stage.events("PostgresRestarted")
    second = await pod()
    await stage.reconcile()
    assert await pod() == second


async def test_the_claim_of_the_embedded_postgres_goes_with_the_resource_alone(stage: Stage) -> None:
    await stage.create(replicas=1, postgres={"embedded": {"storage": {"size": "1Gi"}}}, deletionPolicy="Delete")
    await stage.reconcile()
    postgres = await stage.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
    assert postgres is not None
    template = postgres["spec"]["volumeClaimTemplates"][0]
    name = f"data-{NAME}-postgres-0"
    spec = {key: value for key, value in template["spec"].items() if key != "status"}
    metadata = {"name": name, "namespace": stage.namespace}
    await stage.kube.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})

    async def owners() -> list[str]:
        await stage.reconcile()
        claim = await stage.get("v1", "PersistentVolumeClaim", name)
        assert claim is not None
        return [owner["kind"] for owner in claim["metadata"].get("ownerReferences") or ()]

    assert await owners() == ["OrisunCluster"]
    writes = stage.kube.writes
    assert await owners() == ["OrisunCluster"]
    assert stage.kube.writes == writes
    await stage.patch(deletionPolicy="Retain")
    assert await owners() == []


async def test_what_was_made_by_rpc_is_listed_and_left_alone(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    cluster = await stage.kube.get(stage.ref)
    assert cluster is not None
    async with stage.context.postgres.session(cluster) as session:
        record = await session.boundaries.register("by_rpc", "", stage.settings.boundaries[0].schema, "")
        assert record is not None
        await session.boundaries.provision(record)
    await stage.reconcile()
    status = await stage.status()
    assert "by_rpc" in status["unmanaged"]["boundaries"]
    assert status["unmanaged"]["boundaryCount"] == len(status["unmanaged"]["boundaries"])
    assert (await stage.condition("SchemaReady"))[0] == "True"


def test_more_than_a_status_can_hold_is_counted() -> None:
    names = [f"{'x' * 50}{number}" for number in range(30_000)]
    shown = Schema(unmanaged=names, unmanaged_indexes=names).shown()
    assert (shown["boundaryCount"], shown["indexCount"]) == (30_000, 30_000)
    assert shown["boundaries"] == shown["indexes"] == names[:200]


async def test_a_service_of_somebody_else_is_not_taken(stage: Stage) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": stage.namespace}}
    await stage.kube.create({**theirs, "spec": {"ports": [{"port": 80}]}})
    await stage.create()
    await stage.reconcile()
    status, reason, message = await stage.condition("Stalled")
    assert (status, reason) == ("True", "NameTaken")
    assert "Service" in message


async def test_a_larger_volume_makes_the_statefulset_anew_around_its_pods(stage: Stage) -> None:
    await stage.create()
    await stage.settle()
    before, statefulset = await _uids(stage), await stage.statefulset()
    await stage.patch(nats={"storage": {"size": "4Gi"}})
    await stage.settle()
    again = await stage.statefulset()
    assert again["metadata"]["uid"] != statefulset["metadata"]["uid"]
    # it asked for its three pods from the first moment: with fewer, its controller would end some
    assert again["metadata"]["generation"] == 1
    claim = again["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "4Gi"
    assert await _uids(stage) == before


async def _certificate(stage: Stage) -> x509.Certificate:
    secret = await stage.get("v1", "Secret", f"{NAME}-tls")
    assert secret is not None
    return x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))


def _is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


async def _uids(stage: Stage) -> dict[str, str]:
    return {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()}


async def _versions(stage: Stage) -> dict[str, str]:
    kinds = (("v1", "Service"), ("v1", "Secret"), ("v1", "ConfigMap"), ("v1", "ServiceAccount"), ("v1", "Pod"))
    more = (("apps/v1", "StatefulSet"), ("policy/v1", "PodDisruptionBudget"), ("networking.k8s.io/v1", "NetworkPolicy"))
    ours = ((API_VERSION, "OrisunCluster"), ("events.k8s.io/v1", "Event"))
    return {
        f"{kind}/{obj['metadata']['name']}": obj["metadata"]["resourceVersion"]
        for api_version, kind in (*kinds, *more, *ours)
        for obj in await stage.kube.list(api_version, kind, stage.namespace)
    }


async def _edit(stage: Stage, api_version: str, kind: str, name: str, patch: Object) -> None:
    """As ``kubectl edit`` by a person."""
    path = await stage.kube._server.path(Ref(api_version, kind, stage.namespace, name))
    await stage.kube._server.request(
        "PATCH",
        path,
        body=patch,
        content="application/merge-patch+json",
        query={"fieldManager": "kubectl-edit"},
    )


async def test_what_nobody_has_foreseen_is_told_without_its_words(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.create()

    async def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("with a password in it")

    monkeypatch.setattr(stage.jetstream, "health", break_down)
    await stage.reconcile()
    await stage.follow()
    for name in await stage.pods():
        await stage.ready(name)
    with pytest.raises(RuntimeError):
        await stage.reconcile()
    status, reason, message = await stage.condition("Ready")
    assert (status, reason) == ("False", "OperatorFailed")
    assert "RuntimeError" in message
    assert "password" not in message


async def test_what_is_over_with_the_next_look_leaves_the_status_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.create()
    await stage.settle()
    answer: list[KubeError] = []

    async def refuse(*_: object, **__: object) -> None:
        raise answer[0]

    monkeypatch.setattr(stage.jetstream, "health", refuse)
    answer[:] = [KubeError(409, "Conflict", "the object has been modified")]
    with pytest.raises(KubeError, match="modified"):
        await stage.reconcile()
    assert (await stage.condition("Ready"))[:2] == ("True", "Ready")
    answer[:] = [KubeError(500, "InternalError", "failed calling webhook")]
    await stage.reconcile()
    status, reason, message = await stage.condition("Ready")
    assert (status, reason) == ("False", "KubernetesUnavailable")
    assert "webhook" in message
    monkeypatch.undo()
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"


async def test_every_field_of_the_spec_reaches_what_it_is_about(stage: Stage) -> None:
    spread = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": NAME}},
    }
    toleration = {"key": "events", "operator": "Exists", "effect": "NoSchedule"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
    await stage.create(
        imagePullPolicy="Always",
        imagePullSecrets=[{"name": "registry"}],
        grpc={"reflection": False, "service": {"type": "NodePort", "nodePort": 30055, "annotations": {"a": "b"}}},
        nats={
            "resources": {"limits": {"memory": "64Mi"}},
            "jetstream": {"maxAge": "1h", "maxBytes": 1000000, "maxMsgs": 1000},
            "storage": {"size": "3Gi", "storageClassName": "fast"},
            "streamReplicas": 1,
        },
        resources={"requests": {"memory": "256Mi"}},
        scheduling={
            "affinity": affinity,
            "topologySpreadConstraints": [spread],
            "tolerations": [toleration],
            "nodeSelector": {"disk": "fast"},
            "priorityClassName": "important",
        },
        env=[{"name": "ORISUN_LOGGING_LEVEL", "value": "DEBUG"}],
        podTemplate={"labels": {"team": "one"}, "annotations": {"note": "two"}},
    )
    await stage.reconcile()
    statefulset = await stage.statefulset()
    template, pod = statefulset["spec"]["template"], statefulset["spec"]["template"]["spec"]
    containers = {one["name"]: one for one in pod["containers"]}
    assert {one["imagePullPolicy"] for one in containers.values()} == {"Always"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert containers["nats"]["resources"] == {"limits": {"memory": "64Mi"}}
    assert containers["server"]["resources"] == {"requests": {"memory": "256Mi"}}
    assert pod["topologySpreadConstraints"] == [spread]
    assert pod["tolerations"] == [toleration]
    assert pod["nodeSelector"] == {"disk": "fast"}
    assert pod["priorityClassName"] == "important"
    assert "preferredDuringSchedulingIgnoredDuringExecution" not in pod["affinity"]["podAntiAffinity"]
    assert template["metadata"]["labels"]["team"] == "one"
    assert template["metadata"]["annotations"]["note"] == "two"
    (claim,) = statefulset["spec"]["volumeClaimTemplates"]
    assert (claim["spec"]["resources"]["requests"]["storage"], claim["spec"]["storageClassName"]) == ("3Gi", "fast")
    variables = {one["name"]: one.get("value") for one in containers["server"]["env"]}
    expected = {
        "ORISUN_NATS_EVENT_STREAM_MAX_AGE": "1h",
        "ORISUN_NATS_EVENT_STREAM_MAX_BYTES": "1000000",
        "ORISUN_NATS_EVENT_STREAM_MAX_MSGS": "1000",
        "ORISUN_NATS_EVENT_STREAM_REPLICAS": "1",
        "ORISUN_GRPC_ENABLE_REFLECTION": "false",
        "ORISUN_LOGGING_LEVEL": "DEBUG",
    }
    assert {name: variables.get(name) for name in expected} == expected
    service = await stage.get("v1", "Service", NAME)
    assert service is not None
    assert service["metadata"]["annotations"]["a"] == "b"
    assert (service["spec"]["type"], service["spec"]["ports"][0]["nodePort"]) == ("NodePort", 30055)
    # what is taken out of the spec again goes there too
    await stage.patch(grpc={"service": {"annotations": None, "type": None, "nodePort": None}})
    await stage.reconcile()
    service = await stage.get("v1", "Service", NAME)
    assert service is not None
    assert "a" not in service["metadata"]["annotations"]
    assert service["spec"]["type"] == "ClusterIP"
    assert "nodePort" not in service["spec"]["ports"][0]
