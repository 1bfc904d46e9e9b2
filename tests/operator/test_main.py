"""The process: two replicas on a real API server, one works; killed or stopped, the other goes on."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orisun_operator.kube import Kube, Ref
from orisun_operator.main import heed
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import NAME, Stage
from tests.operator.kubernetes import ApiServer
from tests.operator.processes import Operator
from tests.operator.stores import Store, condition


@pytest.fixture
async def operators(api_server: ApiServer, namespace: str, tmp_path: Path) -> AsyncIterator[list[Operator]]:
    # so that no test is passed, or failed, by the timer
    told = {"TIMER": "3600"}
    made = [Operator(api_server.kubeconfig, namespace, tmp_path / f"operator-{n}.log", **told) for n in range(2)]
    yield made
    for operator in made:
        if operator.process is not None:
            await operator.end(signal.SIGKILL)


async def test_one_of_two_works_and_the_other_takes_over(
    kube: Kube, namespace: str, settings: Settings, operators: list[Operator]
) -> None:
    stage = Stage(kube, namespace, settings)
    first, second = operators
    await first.start()
    await eventually(first.leads, 30, 0.1, message=first.log())
    await second.start()
    await stage.create()
    service = Ref("v1", "Service", namespace, NAME)

    async def there() -> bool:
        return await kube.get(service) is not None

    await eventually(there, 30, 0.1, message=first.log())
    # drift is noticed by a watch
    await kube.delete(service)
    await eventually(there, 30, 0.1)
    assert not second.leads()
    await first.end(signal.SIGKILL)
    await kube.delete(service)
    await eventually(second.leads, 30, 0.1)
    await eventually(there, 30, 0.1)
    assert await second.end(signal.SIGTERM) == 0
    assert "Exception in callback" not in second.log()
    lease = await kube.get(Ref("coordination.k8s.io/v1", "Lease", namespace, "orisun-operator"))
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""
    await stage.close()


async def test_a_plan_is_shown_and_carried_out_when_it_is_approved(
    kube: Kube, namespace: str, settings: Settings, operators: list[Operator]
) -> None:
    stage, store, operator = Stage(kube, namespace, settings), Store(kube, namespace, settings), operators[0]
    await stage.create()
    await operator.start()
    await store.boundary("orders", migration={"mode": "Plan"}, clusterRef={"name": NAME})

    async def waiting() -> dict[str, Any] | None:
        return (await store.status("Boundary", "orders")).get("pendingPlan")

    plan = await eventually(waiting, 30, 0.1, message="no plan is shown")
    assert plan is not None
    assert (plan["fromVersion"], "CREATE TABLE" in plan["sql"]) == (0, True)

    async def says(reason: str, words: str = "") -> bool:
        status = await store.status("Boundary", "orders")
        found = condition(status, "Ready")
        return found["reason"] == reason and words in found["message"]

    await store.patch("Boundary", "orders", {"migration": {"approvedPlan": "0" * 16}})
    await eventually(lambda: says("PlanPending", "(it approves another one)"), 30, 0.1)
    async with await store.session() as session:
        assert await session.boundaries.find("orders") is None
    await store.patch("Boundary", "orders", {"migration": {"approvedPlan": plan["hash"]}})
    await eventually(lambda: says("Active"), 30, 0.1)
    status = await store.status("Boundary", "orders")
    assert (status["schemaVersion"], "pendingPlan" in status) == (plan["toVersion"], False)
    # these very tables
    tables = re.findall(r"CREATE TABLE (\S+)", plan["sql"])
    assert len(tables) > 2
    async with await store.session() as session:
        for table in tables:
            assert await session.database.admin.fetchval("SELECT to_regclass($1) IS NOT NULL", table), table
    await store.close()
    await stage.close()


async def test_a_written_status_asks_for_no_reconcile(
    kube: Kube, namespace: str, settings: Settings, operators: list[Operator]
) -> None:
    stage = Stage(kube, namespace, settings)
    operator = operators[0]
    await stage.create(paused=True)
    await operator.start()
    await eventually(lambda: operator.reconciles() == 1, 30, 0.1)
    await kube.patch(stage.ref, {"status": {"phase": "Changed"}}, subresource="status")
    await kube.patch(stage.ref, {"metadata": {"annotations": {"look": "now"}}})
    # the second notice comes after the first, so that nothing has to be waited for
    await eventually(lambda: operator.reconciles() > 1, 30, 0.1)
    assert operator.reconciles() == 2
    await stage.close()


async def test_losing_the_lease_ends_the_process(kube: Kube, namespace: str, operators: list[Operator]) -> None:
    operator = operators[0]
    await operator.start()
    await eventually(operator.leads, 30, 0.1, message=operator.log())
    ref = Ref("coordination.k8s.io/v1", "Lease", namespace, "orisun-operator")
    await kube.patch(ref, {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 60}})
    assert operator.process is not None
    assert await asyncio.wait_for(operator.process.wait(), 30) == 1
    assert "the Lease is lost" in operator.log()


async def test_a_failed_callback_of_kopf_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    def request_cancel_callback() -> None:
        raise AssertionError

    def another() -> None:
        raise AssertionError

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(heed)
    try:
        loop.call_soon(request_cancel_callback)
        loop.call_soon(another)
        await eventually(lambda: bool(caplog.records))
    finally:
        loop.set_exception_handler(None)
    (record,) = caplog.records
    assert "another" in record.getMessage()
