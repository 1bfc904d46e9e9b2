"""50 boundaries and 100 indexes at once: how long, and how many requests it takes."""

from __future__ import annotations

import time

import pytest

from e2e.access import Access
from e2e.kubernetes import Kubernetes, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Namespace, boundary, cluster, index, show


@pytest.mark.timeout(900)
async def test_fifty_boundaries_a_hundred_indexes(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access
) -> None:

    async def requests() -> int:
        """Of the operator to the API server, so far."""
        figures = await operator.figures(access)
        return int(
            sum(value for name, value in figures.items() if name.startswith("orisun_operator_api_requests_total"))
        )

    await namespace.apply(cluster(EMBEDDED, replicas=1))
    await kubernetes.ready(namespace.name, "orisun/store", timeout=240)
    before, began = await requests(), time.monotonic()
    names = [f"many{number}" for number in range(50)]
    await namespace.apply(
        *(boundary(name) for name in names), *(index(key, name, key) for name in names for key in ("one", "two"))
    )

    async def all_ready() -> bool:
        found = await kubernetes.list("bnd", namespace.name) + await kubernetes.list("evidx", namespace.name)
        ready = [
            one
            for one in found
            for condition in (one.get("status") or {}).get("conditions") or ()
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]
        assert len(ready) == 150, f"{len(ready)} of 150"
        return True

    await until(all_ready, 600, "150 resources Ready", interval=1)
    show("50 boundaries and 100 indexes Ready, seconds", round(time.monotonic() - began, 1))
    asked = await requests() - before
    show("requests to the API server", asked)
    assert 0 < asked < 150 * 30, "a request for each resource now and then, and no storm of them"
