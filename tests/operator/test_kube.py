"""The Kubernetes API as the operator uses it, against a real API server."""

from __future__ import annotations

import base64
from collections import OrderedDict

import pytest

from orisun_operator.drift import APPLIED_ANNOTATION
from orisun_operator.kube import KindMissing, Kube, NotOurs, Object, Ref


def _config_map(namespace: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "thing", "namespace": namespace, "labels": {"made-by": "test"}},
        "data": data,
    }


async def _version(kube: Kube, obj: Object) -> str:
    found = await kube.get(Ref.of(obj))
    assert found is not None
    return str(found["metadata"]["resourceVersion"])


async def test_an_object_is_applied_once_and_then_left_alone(kube: Kube, namespace: str) -> None:
    wanted = _config_map(namespace, a="1")
    first = await kube.apply(wanted)
    assert first.created
    assert first.changed
    writes, version = kube.writes, await _version(kube, wanted)
    for _ in range(10):
        assert not (await kube.apply(wanted)).changed
    assert kube.writes == writes
    assert await _version(kube, wanted) == version


async def test_a_changed_wish_is_no_repair(kube: Kube, namespace: str) -> None:
    await kube.apply(_config_map(namespace, a="1", b="2"))
    second = await kube.apply(_config_map(namespace, a="1"))
    assert second.changed
    assert not second.repaired
    assert second.obj["data"] == {"a": "1"}


async def test_what_somebody_else_changed_or_added_is_taken_back_and_told(kube: Kube, namespace: str) -> None:
    wanted = _config_map(namespace, a="1")
    await kube.apply(wanted)
    await kube._server.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/configmaps/thing",
        body={"data": {"a": "changed", "extra": "x"}, "metadata": {"labels": {"theirs": "stays"}}},
        content="application/merge-patch+json",
        query={"fieldManager": "kubectl-edit"},
    )
    repaired = await kube.apply(wanted)
    assert repaired.changed
    assert set(repaired.repaired) == {"data.a", "data.extra"}
    assert repaired.obj["data"] == {"a": "1"}
    assert repaired.obj["metadata"]["labels"] == {"made-by": "test", "theirs": "stays"}
    writes = kube.writes
    assert not (await kube.apply(wanted)).changed
    assert kube.writes == writes


async def test_an_object_of_somebody_else_is_not_taken_over(kube: Kube, namespace: str) -> None:
    theirs = _config_map(namespace, a="theirs")
    await kube.create(theirs)
    ours = _config_map(namespace, a="ours")
    ours["metadata"]["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": "us", "uid": "1-2-3"}]
    with pytest.raises(NotOurs, match="exists already"):
        await kube.apply(ours)


async def test_an_unknown_kind_is_missing(kube: Kube, namespace: str) -> None:
    assert await kube.get(Ref("monitoring.coreos.com/v1", "PodMonitor", namespace, "x")) is None
    with pytest.raises(KindMissing, match="PodMonitor"):
        await kube.list("monitoring.coreos.com/v1", "PodMonitor", namespace)


async def test_events_count_up_and_are_not_repeated_at_once(kube: Kube, namespace: str) -> None:
    made = await kube.create(_config_map(namespace, a="1"))
    assert made is not None
    for _ in range(3):
        await kube.event(made, "Warning", "Tested", "it was tested")
    (event,) = [e for e in await kube.list("events.k8s.io/v1", "Event", namespace) if e["reason"] == "Tested"]
    assert event["note"] == "it was tested"
    # five minutes later
    kube._events._said = OrderedDict((name, (at - 300, n)) for name, (at, n) in kube._events._said.items())
    await kube.event(made, "Warning", "Tested", "it was tested")
    (event,) = [e for e in await kube.list("events.k8s.io/v1", "Event", namespace) if e["reason"] == "Tested"]
    assert event["series"]["count"] == 4
    # an operator that has started since knows of none
    kube._events._said.clear()
    await kube.event(made, "Warning", "Tested", "it was tested")
    (event,) = [e for e in await kube.list("events.k8s.io/v1", "Event", namespace) if e["reason"] == "Tested"]
    assert event["series"]["count"] == 5


async def test_a_status_is_written_only_where_it_differs(kube: Kube, namespace: str) -> None:
    made = await kube.create(
        {
            "apiVersion": "orisun.io/v1alpha1",
            "kind": "OrisunCluster",
            "metadata": {"name": "store", "namespace": namespace},
            "spec": {"replicas": 1, "postgres": {"embedded": {}}},
        }
    )
    assert made is not None
    assert made["status"] == {"observedGeneration": -1}
    jetstream = {"state": "Healthy", "leader": "store-0"}
    await kube.patch_status(made, {"observedGeneration": 1, "phase": "Testing", "jetstream": jetstream})
    found = await kube.get(Ref.of(made))
    assert found is not None
    await kube.patch_status(found, {**found["status"], "jetstream": {"state": "Degraded"}})
    found = await kube.get(Ref.of(made))
    assert found is not None
    assert found["status"]["jetstream"] == {"state": "Degraded"}
    writes = kube.writes
    await kube.patch_status(found, found["status"])
    assert kube.writes == writes
    await kube.patch_status(found, {"observedGeneration": 1})
    found = await kube.get(Ref.of(made))
    assert found is not None
    assert "phase" not in found["status"]


async def test_a_status_is_for_the_object_that_was_read_and_not_for_one_of_its_name(kube: Kube, namespace: str) -> None:
    obj = {
        "apiVersion": "orisun.io/v1alpha1",
        "kind": "OrisunCluster",
        "metadata": {"name": "store", "namespace": namespace},
        "spec": {"replicas": 1, "postgres": {"embedded": {}}},
    }
    old = await kube.create(obj)
    assert old is not None
    # somebody's label meanwhile does not keep a status from being written
    await kube.patch(Ref.of(obj), {"metadata": {"labels": {"team": "one"}}})
    await kube.patch_status(old, {"observedGeneration": 1})
    found = await kube.get(Ref.of(obj))
    assert found is not None
    assert found["status"] == {"observedGeneration": 1}
    await kube.delete(Ref.of(obj))
    assert await kube.create(obj) is not None
    await kube.patch_status(old, {"observedGeneration": 2, "phase": "Of the old one"})
    found = await kube.get(Ref.of(obj))
    assert found is not None
    assert found["status"] == {"observedGeneration": -1}
    await kube.delete(Ref.of(obj))
    await kube.patch_status(old, {"observedGeneration": 3})


async def test_finalizers_come_and_go(kube: Kube, namespace: str) -> None:
    made = await kube.create(_config_map(namespace, a="1"))
    assert made is not None
    await kube.set_finalizer(made, "orisun.io/one")
    # from a stale copy: the other one must survive
    await kube.set_finalizer(made, "orisun.io/two")
    found = await kube.get(Ref.of(made))
    assert found is not None
    assert found["metadata"]["finalizers"] == ["orisun.io/one", "orisun.io/two"]
    await kube.remove_finalizer(made, "orisun.io/one")
    await kube.remove_finalizer(found, "orisun.io/one")
    await kube.remove_finalizer(found, "orisun.io/two")
    found = await kube.get(Ref.of(made))
    assert found is not None
    assert not found["metadata"].get("finalizers")


async def test_of_a_secret_nothing_is_told_but_its_keys(kube: Kube, namespace: str) -> None:
    def secret(password: str) -> Object:
        data = {"password": base64.b64encode(password.encode()).decode(), "username": "YWRtaW4="}
        metadata = {"name": "thing", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}

    def stamp(obj: Object) -> str:
        return str(obj["metadata"]["annotations"][APPLIED_ANNOTATION])

    first = await kube.apply(secret("secret1"))
    # who may see the annotation cannot try passwords on it
    again = await kube.apply(secret("secret2"))
    assert (again.changed, again.repaired) == (True, ())
    assert again.obj["data"] != first.obj["data"]
    assert stamp(again.obj) == stamp(first.obj)
    assert not (await kube.apply(secret("secret2"))).changed
    # what others do is told all the same
    await kube._server.request(
        "PATCH",
        await kube._server.path(Ref.of(first.obj)),
        body={"data": {"password": "b3RoZXI="}},
        content="application/merge-patch+json",
        query={"fieldManager": "kubectl-edit"},
    )
    assert (await kube.apply(secret("secret2"))).repaired == ("data.password",)
    await kube._server.request(
        "PATCH",
        await kube._server.path(Ref.of(first.obj)),
        body={"data": {"username": None}},
        content="application/merge-patch+json",
        query={"fieldManager": "kubectl-edit"},
    )
    mended = await kube.apply(secret("secret2"))
    assert mended.repaired == ("data.username",)
    assert mended.obj["data"] == secret("secret2")["data"]
