"""What the README promises: three resources applied with kubectl are a store that saves and reads events."""

from __future__ import annotations

import base64
import json
import shutil
import time

import pytest

from e2e.access import Access
from e2e.kubernetes import Kubernetes, run
from e2e.release import ROOT, Release
from e2e.stores import Namespace, Servers, show

QUICKSTART = ROOT / "examples" / "kubernetes" / "quickstart.yaml"
EVENT = {
    "boundary": "orders",
    "query": {
        "criteria": [{"tags": [{"key": "account", "value": "a-1"}]}],
        "expected_position": {"transaction_id": -1, "global_id": -1},
    },
    "events": [
        {"event_id": "first", "event_type": "OrderPlaced", "data": json.dumps({"account": "a-1"}), "metadata": "{}"}
    ],
}


@pytest.mark.smoke
async def test_quickstart(kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access) -> None:
    began = time.monotonic()
    await namespace.apply(QUICKSTART)
    await kubernetes.ready(namespace.name, "orisun/quickstart", "bnd/orders", "evidx/orders-account", timeout=240)
    show("apply to Ready, seconds", round(time.monotonic() - began, 1))
    table = await kubernetes.kubectl("get", "orisun,bnd,evidx", "-n", namespace.name)
    show("kubectl get", "\n" + table)
    # without the last column, the age
    rows = [line.split()[:-1] for line in table.splitlines() if line]
    version = str((await kubernetes.must("bnd", "orders", namespace.name))["status"]["schemaVersion"])
    assert rows == [
        ["NAME", "REPLICAS", "READY", "UPDATED", "PHASE", "POSTGRES"],
        ["orisuncluster.orisun.io/quickstart", "1", "1", "1", "Ready", "embedded"],
        ["NAME", "CLUSTER", "BOUNDARY", "SCHEMA", "EVENTS", "LAG", "READY", "PHASE"],
        ["boundary.orisun.io/orders", "quickstart", "orders", version, "0", "0", "True", "Active"],
        ["NAME", "BOUNDARY", "INDEX", "STATE", "PERCENT", "SIZE", "READY", "PHASE"],
        ["eventindex.orisun.io/orders-account", "orders", "account", "READY", "100", "8.0", "KiB", "True", "Built"],
    ]
    cluster = Servers(namespace, access, "quickstart")
    if shutil.which("grpcurl"):
        password = await kubernetes.password(namespace.name, "quickstart")
        token = base64.b64encode(f"admin:{password}".encode()).decode()
        async with access.service(namespace.name, "quickstart") as address:
            call = ("grpcurl", "-plaintext", "-H", f"Authorization: Basic {token}", "-d", "@", address)
            saved = json.loads(await run(*call, "orisun.EventStore/SaveEvents", stdin=json.dumps(EVENT)))
            assert saved["logPosition"]["transaction_id"] == "1", saved
            question = json.dumps({"boundary": "orders", "count": 10})
            found = json.loads(await run(*call, "orisun.EventStore/GetEvents", stdin=question))
            assert [event["eventId"] for event in found["events"]] == ["first"]
    async with cluster.client("orders") as client:
        position = await client.save({"account": "a-2"})
        assert (await client.log())[-1].position == position
    assert await kubernetes.password(namespace.name, "quickstart") != "changeit"
