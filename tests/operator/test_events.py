"""Kubernetes Events: one for each condition that changes, and none for what begins as everything begins."""

from __future__ import annotations

from typing import Any

from orisun_operator.api.conditions import set_condition, transitions
from orisun_operator.jetstream import Health
from orisun_operator.reconcile.report import Report
from tests.operator.clusters import NAME, Stage


async def _told(stage: Stage) -> list[tuple[str, str, str]]:
    """Type, reason and note of each Event about the cluster."""
    events = await stage.kube.list("events.k8s.io/v1", "Event", stage.namespace)
    return [(e["type"], e["reason"], e["note"]) for e in events if e["regarding"]["name"] == NAME]


async def test_each_condition_that_changes_is_an_event(stage: Stage) -> None:
    await stage.create(replicas=1)
    await stage.settle()
    begun = await _told(stage)
    assert {type for type, _, _ in begun} == {"Normal"}, begun
    assert not any("is False" in note for _, _, note in begun), begun
    assert ("Normal", "Serving", "Available is True: 1 of 1 servers serve") in begun

    stage.jetstream.answer = Health("a stream has no leader")
    await stage.settle(degraded=True)
    assert ("Warning", "Degraded", "JetStreamHealthy is False: a stream has no leader") in await _told(stage)
    stage.jetstream.answer = Health()
    await stage.settle()
    assert ("Normal", "Healthy") in [(type, reason) for type, reason, _ in await _told(stage)]

    await stage.failing(f"{NAME}-0", "CrashLoopBackOff", "it ends")
    await stage.reconcile()
    # by itself that is what every start of a pod looks like
    assert ("Normal", "NotServing", "Available is False: no server serves") in await _told(stage)


async def test_what_is_asked_for_is_no_warning(stage: Stage) -> None:
    await stage.create(replicas=1)
    await stage.settle()
    await stage.patch(hibernate=True)
    await stage.settle()
    told = await _told(stage)
    assert ("Normal", "NotServing") in [(type, reason) for type, reason, _ in told]
    assert {type for type, _, _ in told} == {"Normal"}, told


async def test_a_wait_that_becomes_somebodys_task_is_told_though_its_reason_stays(stage: Stage) -> None:
    made = await stage.create()
    report = Report(stage.context, made)
    report.waiting("AwaitingJetStream", "wait")
    await report.send()
    report.stalled("AwaitingJetStream", "do something")
    await report.send()
    await report.send()
    assert sorted(await _told(stage)) == [
        ("Normal", "AwaitingJetStream", "wait"),
        ("Warning", "AwaitingJetStream", "do something"),
    ]


def test_transitions() -> None:
    def status(**conditions: bool) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for type, value in conditions.items():
            set_condition(made, type, value, f"Is{value}", "so it is", 1)
        return made

    def found(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, bool]]:
        return [(one.reason, one.worse) for one in transitions(before, after)]

    assert found({}, status(Available=False, SchemaReady=True, Drifted=False, Ready=False)) == []
    assert found({}, status(Drifted=True)) == [("IsTrue", True)]
    assert found(status(Drifted=True), status(Drifted=False)) == [("IsFalse", False)]
    assert found(status(BlockedByTransaction=True), {}) == [("BlockedByTransactionOver", False)]
    assert found(status(Available=True), status(Available=False)) == [("IsFalse", True)]
    assert found(status(Available=True, Ready=True), status(Available=True, Ready=False)) == []
