"""Who of several replicas works, on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from orisun_operator.kube import Kube, Ref
from orisun_operator.leader import Leader, LeaseLost

_DURATION = 1.2


@contextlib.asynccontextmanager
async def _running(leader: Leader) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(leader.hold())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _leader(kube: Kube, namespace: str, name: str) -> Leader:
    return Leader(kube, namespace, "orisun-operator", _DURATION, name)


async def test_one_leads_and_hands_over_at_once(kube: Kube, namespace: str) -> None:
    one, two = _leader(kube, namespace, "one"), _leader(kube, namespace, "two")
    await one.acquire()
    async with _running(one):
        waiting = asyncio.create_task(two.acquire())
        # longer than the Lease lasts unless it is renewed
        done, _ = await asyncio.wait([waiting], timeout=2 * _DURATION)
        assert not done
    await one.release()
    await asyncio.wait_for(waiting, _DURATION)
    lease = await kube.get(Ref("coordination.k8s.io/v1", "Lease", namespace, "orisun-operator"))
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "two"
    assert lease["spec"]["leaseTransitions"] == 1


async def test_a_dead_holder_is_succeeded_after_the_duration(kube: Kube, namespace: str) -> None:
    one, two = _leader(kube, namespace, "one"), _leader(kube, namespace, "two")
    await one.acquire()  # and never renewed
    started = asyncio.get_running_loop().time()
    await asyncio.wait_for(two.acquire(), 10 * _DURATION)
    assert asyncio.get_running_loop().time() - started >= _DURATION
    # whoever comes back late finds that out
    async with _running(one) as hold:
        with pytest.raises(LeaseLost, match="two"):
            await asyncio.wait_for(hold, 5 * _DURATION)


async def test_a_holder_that_cannot_renew_gives_up_before_others_take_over(kube: Kube, namespace: str) -> None:
    one = _leader(kube, namespace, "one")
    await one.acquire()
    one._ref = one._ref._replace(namespace="no-such-namespace")  # as if the API server were away
    started = asyncio.get_running_loop().time()
    async with _running(one) as hold:
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(hold, 5 * _DURATION)
    assert asyncio.get_running_loop().time() - started < _DURATION * 1.2


async def test_of_two_at_once_one_gets_it(kube: Kube, namespace: str) -> None:
    leaders = [_leader(kube, namespace, f"number-{n}") for n in range(5)]
    tasks = [asyncio.create_task(leader.acquire()) for leader in leaders]
    done, pending = await asyncio.wait(tasks, timeout=_DURATION * 0.8)
    for task in pending:
        task.cancel()
    assert len(done) == 1
