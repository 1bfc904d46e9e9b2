"""Boundaries that are deleted: what becomes of their events. The archive's Job is run here as its pod would run it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orisun_operator.api.boundary import FINALIZER
from orisun_operator.kube import Object, Ref
from orisun_operator.resources.archive import LABEL, short
from orisun_server.storage.archive import check
from orisun_server.storage.boundaries import Boundary, BoundaryStatus
from tests.operator.stores import CLUSTER, Store, condition, held


async def active(store: Store, name: str = "orders") -> bool:
    async with await store.session() as session:
        record = await session.boundaries.find(name)
    return record is not None and record.status is BoundaryStatus.ACTIVE


async def has_tables(store: Store, name: str = "orders") -> bool:
    async with await store.session() as session:
        return await session.boundaries.has_tables(Boundary.at(name, store.schema))


async def deleting(store: Store, policy: str, **spec: Any) -> None:
    """A boundary with 2,500 events whose resource is being deleted."""
    await store.boundary("orders", deletionPolicy=policy, **spec)
    await store.index("by-user", "orders", "user")
    await store.settled("orders")
    await store.settled("by-user", kind="EventIndex")
    assert (await store.get("Boundary", "orders"))["metadata"]["finalizers"] == [FINALIZER]
    await store.append("orders", 2500)
    await store.kube.delete(store.ref("Boundary", "orders"))


async def test_delete_drops_the_events_and_frees_the_name(store: Store) -> None:
    await deleting(store, "Delete")
    await store.gone("orders")
    assert await store.events("EventsDeleted") == ['boundary "orders" and its 2500 events were dropped']
    async with await store.session() as session:
        assert await session.boundaries.find("orders") is None
        assert await session.index_catalog.managed() == []
    assert not await has_tables(store)
    status = await store.settled("by-user", "BoundaryNotFound", "EventIndex")
    assert condition(status, "Stalled")["status"] == "True"
    await store.boundary("orders")
    assert (await store.settled("orders"))["eventCount"] == 0
    await store.settled("by-user", kind="EventIndex")


async def test_the_finalizer_follows_the_policy(store: Store) -> None:
    await store.boundary("orders", deletionPolicy="Delete")
    await store.settled("orders")
    await store.patch("Boundary", "orders", {"deletionPolicy": "Retain"})
    await store.reconcile("orders")
    assert not (await store.get("Boundary", "orders"))["metadata"].get("finalizers")


async def test_a_namespace_that_ends_keeps_the_events(store: Store) -> None:
    await deleting(store, "Delete")
    # no controller ends it here: it stays Terminating, as one with many resources does for long
    await store.kube.delete(Ref("v1", "Namespace", "", store.namespace))
    await store.gone("orders")
    assert await active(store)
    # of the namespace, since nothing can be written into it
    notes = [
        e["note"]
        for e in await store.kube.list("events.k8s.io/v1", "Event", "default")
        if e["regarding"]["name"] == store.namespace
    ]
    assert notes == [
        "Boundary orders: deletionPolicy Delete is taken for Retain, since the namespace is being deleted:"
        " the events stay"
    ]
    store.late = 61
    async with await store.session() as session:
        figures = await session.boundaries.figures(Boundary.at("orders", store.schema))
    assert figures.events == 2500


async def test_without_its_cluster_a_deletion_ends_and_keeps_the_events(store: Store) -> None:
    await deleting(store, "Delete")
    await store.kube.delete(store.ref("OrisunCluster", CLUSTER))
    await store.gone("orders")
    assert any("stay" in text for text in await store.events("EventsRetained"))
    await store.make()
    assert await active(store)


async def test_unreachable_postgres_holds_a_deletion_until_it_is_back_or_the_policy_changes(store: Store) -> None:
    await deleting(store, "Delete")
    await store.secret({"username": "nobody_" + store.schema, "password": "x"})
    status = await store.settled("orders", "BadCredentials")
    assert "set spec.deletionPolicy: Retain" in condition(status, "Ready")["message"]
    await store.patch("Boundary", "orders", {"deletionPolicy": "Retain"})
    await store.gone("orders")
    await store.secret({"username": store.settings.pg_user, "password": "x"})
    assert await active(store)


async def job_of(store: Store) -> Object:
    (job,) = await store.kube.list("batch/v1", "Job", store.namespace)
    return job


def pod_of(job: Object) -> Object:
    """A pod as the job's controller would make it."""
    template, metadata = job["spec"]["template"], job["metadata"]
    container = template["spec"]["containers"][0]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-x",
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
        },
        "spec": {"containers": [{"name": container["name"], "image": container["image"]}]},
    }


async def run_job(store: Store, volume: Path) -> None:
    """What kubelet and job controller do: run the pod's command, on a volume, and say how it ended."""
    job = await job_of(store)
    container = job["spec"]["template"]["spec"]["containers"][0]
    mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "archive")
    report = volume / "termination-log"
    arguments = [
        argument.replace(mount, str(volume)).replace("/dev/termination-log", str(report))
        for argument in container["args"]
    ]
    assert container["command"] == ["orisun", "archive"]
    variables = {}
    for variable in container["env"]:
        if (reference := variable.get("valueFrom")) is not None:
            key = reference["secretKeyRef"]
            secret = await store.kube.get(Ref("v1", "Secret", store.namespace, key["name"]))
            assert secret is not None
            variables[variable["name"]] = base64.b64decode(secret["data"][key["key"]]).decode()
        else:
            variables[variable["name"]] = variable["value"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "orisun",
        "archive",
        *arguments,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    message = report.read_text() if report.exists() else output.decode()
    pod = pod_of(job)
    await store.kube.delete(Ref.of(pod))
    made = await store.kube.create(pod)
    assert made is not None
    ended = {
        "exitCode": process.returncode,
        "message": message,
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:00:01Z",
        "containerID": "test://1",
    }
    status = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
    await store.kube.patch(
        Ref.of(pod),
        {"status": {"containerStatuses": [{**status, "state": {"terminated": ended}}]}},
        subresource="status",
    )
    kind = "Complete" if process.returncode == 0 else "Failed"
    first = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[kind]
    conditions = [
        {"type": type, "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:01Z"}
        for type in (first, kind)
    ]
    # now, by the operator's clock
    for each in conditions:
        each["lastTransitionTime"] = store.context.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
    ends: dict[str, Any] = {"startTime": conditions[0]["lastTransitionTime"], "conditions": conditions}
    if kind == "Complete":
        ends |= {"completionTime": conditions[0]["lastTransitionTime"], "succeeded": 1}
    await store.kube.patch(Ref.of(job), {"status": ends}, subresource="status")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path


async def test_archive_writes_the_events_checks_them_and_only_then_drops_them(store: Store, volume: Path) -> None:
    await deleting(store, "Archive", archive={"size": "5Gi"})
    await store.settled("orders", "Archiving")
    claim = await store.kube.get(Ref("v1", "PersistentVolumeClaim", store.namespace, "orders-archive"))
    assert claim is not None
    assert claim["spec"]["resources"]["requests"]["storage"] == "5Gi"
    assert "ownerReferences" not in claim["metadata"]
    pod = (await job_of(store))["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert "anything" not in json.dumps(pod)
    # closed, and all there
    assert not await active(store)
    assert await has_tables(store)

    await run_job(store, volume)
    # somebody reads: the tables go a moment later, and until then the status says where the archive is
    async with held(store, "orders"):
        status = await store.settled("orders", "BoundaryInUse")
    assert (status["archive"]["claimName"], status["archive"]["count"]) == ("orders-archive", 2500)
    await store.gone("orders")
    assert not await has_tables(store)
    (event,) = await store.events("Archived")
    assert "2500 events" in event
    uid = (await store.kube.list("batch/v1", "Job", store.namespace))[0]["metadata"]["ownerReferences"][0]["uid"]
    file = volume / f"orders-{uid[:8]}.jsonl.gz"
    manifest = check(volume, file.name)
    assert (manifest.count, manifest.last_commit_position, manifest.last_prepare_position) == (2500, 2500, 2499)
    with gzip.open(file, "rt") as lines:
        first = json.loads(next(lines))
        assert first["data"]["n"] == 0
        assert first["event_id"] == "orders-0"
        assert first["date_created"].endswith("Z")
    # numbers as PostgreSQL has them, not as a float has them
    assert b'"number": 0.1000' in gzip.decompress(file.read_bytes()).split(b"\n")[0]


@pytest.fixture
async def embedded(store: Store) -> Store:
    await store.kube.delete(store.ref("OrisunCluster", CLUSTER))
    await store.make(embedded=True)
    return store


async def test_an_embedded_postgres_is_archived_from_and_dropped_in_like_any_other(
    embedded: Store, volume: Path
) -> None:
    await deleting(embedded, "Archive")
    await embedded.settled("orders", "Archiving")
    environment = (await job_of(embedded))["spec"]["template"]["spec"]["containers"][0]["env"]
    (host,) = (one for one in environment if one["name"] == "ORISUN_PG_HOST")
    assert host["valueFrom"]["secretKeyRef"] == {"name": f"{CLUSTER}-postgres", "key": "host"}
    await run_job(embedded, volume)
    await embedded.gone("orders")
    assert not await has_tables(embedded)
    assert len(await embedded.events("Archived")) == 1
    await embedded.boundary("bills", deletionPolicy="Delete")
    await embedded.settled("bills")
    await embedded.kube.delete(embedded.ref("Boundary", "bills"))
    await embedded.gone("bills")
    assert not await has_tables(embedded, "bills")


async def test_an_embedded_postgres_that_hibernates_holds_a_deletion_in_words(embedded: Store) -> None:
    await deleting(embedded, "Delete")
    await embedded.patch("OrisunCluster", CLUSTER, {"hibernate": True})
    message = condition(await embedded.settled("orders", "ClusterHibernates"), "Ready")["message"]
    assert "set spec.hibernate to false" in message
    assert "set spec.deletionPolicy: Retain" in message
    await embedded.patch("OrisunCluster", CLUSTER, {"hibernate": False})
    await embedded.gone("orders")
    assert not await has_tables(embedded)


async def test_an_archive_that_is_not_what_postgres_holds_drops_nothing(store: Store, volume: Path) -> None:
    await deleting(store, "Archive")
    await store.settled("orders", "Archiving")
    await run_job(store, volume)
    async with await store.session() as session:
        names = Boundary.at("orders", store.schema).names
        await session.database.admin.execute(f"DELETE FROM {names.q_events} WHERE global_id = 2499")
    status = await store.settled("orders", "ArchiveDiffers")
    assert "nothing is dropped" in condition(status, "Ready")["message"]
    assert await has_tables(store)


async def test_a_job_that_fails_is_tried_again(store: Store, volume: Path) -> None:
    await deleting(store, "Archive")
    await store.settled("orders", "Archiving")
    await run_job(store, volume / "missing")
    status = await store.settled("orders", "ArchiveFailed")
    assert "nothing was dropped" in condition(status, "Ready")["message"]
    assert "missing" in condition(status, "Ready")["message"]
    before = (await job_of(store))["metadata"]["uid"]
    store.late = 61
    await store.reconcile("orders")
    await store.settled("orders", "Archiving")
    assert (await job_of(store))["metadata"]["uid"] != before
    await run_job(store, volume)
    await store.gone("orders")
    assert not await has_tables(store)


async def test_a_pod_that_does_not_start_is_told(store: Store) -> None:
    await deleting(store, "Archive")
    await store.settled("orders", "Archiving")
    job = await job_of(store)
    pod = pod_of(job)
    await store.kube.create(pod)
    why = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims"
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    status = {"phase": "Pending", "conditions": [scheduled]}
    await store.kube.patch(Ref.of(pod), {"status": status}, subresource="status")
    message = condition(await store.settled("orders", "ArchiveWaits"), "Ready")["message"]
    assert why in message
    assert "nothing is dropped" in message
    await store.kube.patch(Ref.of(pod), {"status": {"phase": "Running", "conditions": []}}, subresource="status")
    await store.settled("orders", "Archiving")


async def test_a_claim_that_is_named_has_to_exist(store: Store) -> None:
    await deleting(store, "Archive", archive={"claimName": "backups"})
    status = await store.settled("orders", "ClaimNotFound")
    assert "backups" in condition(status, "Stalled")["message"]
    assert await has_tables(store)


async def test_a_claim_that_cannot_be_made_is_told_in_the_words_of_the_api_server(store: Store) -> None:
    await deleting(store, "Archive", archive={"storageClassName": "No Class"})
    status = await store.settled("orders", "Refused")
    assert "storageClassName" in condition(status, "Stalled")["message"]
    assert await has_tables(store)


async def test_a_change_of_mind_brings_a_closed_boundary_back(store: Store) -> None:
    await deleting(store, "Archive")
    await store.settled("orders", "Archiving")
    assert not await active(store)
    await store.patch("Boundary", "orders", {"deletionPolicy": "Retain"})
    await store.gone("orders")
    assert await active(store)
    await store.append("orders", 1, first=9999)
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
    assert record is not None
    assert record.managed_by == ""


def test_names_are_cut_and_stay_apart() -> None:
    one, other = short("x" * 70 + "1", "-archive-abcde"), short("x" * 70 + "2", "-archive-abcde")
    assert one != other
    assert (len(one), one.endswith("-archive-abcde"), short("a", "-b")) == (63, True, "a-b")
    assert LABEL.count("/") == 1


async def test_a_paused_cluster_holds_a_deletion_and_lets_a_retained_one_go(store: Store) -> None:
    await deleting(store, "Delete")
    await store.patch("OrisunCluster", CLUSTER, {"paused": True})
    status = await store.settled("orders", "ClusterPaused")
    assert "deletionPolicy Delete waits until its spec.paused is false" in condition(status, "Ready")["message"]
    assert condition(status, "Stalled")["status"] == "False"
    await store.boundary("kept")
    await store.settled("kept", "ClusterPaused")
    await store.kube.delete(store.ref("Boundary", "kept"))
    await store.gone("kept")
    await store.patch("OrisunCluster", CLUSTER, {"paused": False})
    assert await active(store)
    await store.gone("orders")
    assert not await has_tables(store)
