"""What a person sees with kubectl."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import Stage
from tests.operator.kubernetes import ApiServer, cache
from tests.operator.stores import Store


class Kubectl:
    """``await kubectl("get", "bnd")`` in the test's namespace: what it prints, errors too."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        program = shutil.which("kubectl", path=os.pathsep.join([str(cache()), os.environ.get("PATH", "")]))
        if program is None:
            pytest.skip("no kubectl: what it shows is NOT TESTED")
        self._command = (program, "--kubeconfig", str(kubeconfig), "--namespace", namespace)

    async def __call__(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return output.decode()

    async def table(self, *arguments: str) -> dict[str, str]:
        """The one row of ``get``, column to what stands below it; a column may be empty."""
        text = await self("get", *arguments)
        heads, row = text.rstrip("\n").splitlines()
        starts = [0, *(i for i in range(1, len(heads)) if heads[i] != " " and heads[i - 1] == " ")]
        ends = [*starts[1:], None]
        return {heads[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}


@pytest.fixture
def kubectl(api_server: ApiServer, namespace: str) -> Kubectl:
    return Kubectl(api_server.kubeconfig, namespace)


async def test_boundaries_and_indexes_at_a_glance(kubectl: Kubectl, store: Store) -> None:
    await store.boundary("orders", deletionPolicy="Archive")
    await store.settled("orders")
    await store.append("orders", 3)
    store.late = 61
    await store.settled("orders")
    await store.index("by-user", "orders", "user")
    await store.settled("by-user", kind="EventIndex")
    boundary = await kubectl.table("bnd")
    assert boundary.pop("AGE")
    assert boundary.pop("SCHEMA").isdigit()
    assert boundary == {
        "NAME": "orders",
        "CLUSTER": "store",
        "BOUNDARY": "orders",
        "EVENTS": "3",
        "LAG": "3",
        "READY": "True",
        "PHASE": "Active",
    }
    wide = await kubectl.table("bnd", "-o", "wide")
    assert (wide["POLICY"], wide["MESSAGE"]) == ("Archive", 'boundary "orders" takes events')
    index = await kubectl.table("evidx", "-o", "wide")
    assert {key: index[key] for key in ("NAME", "BOUNDARY", "INDEX", "STATE", "PERCENT", "READY", "PHASE")} == {
        "NAME": "by-user",
        "BOUNDARY": "orders",
        "INDEX": "by-user",
        "STATE": "READY",
        "PERCENT": "100",
        "READY": "True",
        "PHASE": "Built",
    }
    assert (index["MESSAGE"], index["SIZE"].endswith(" KiB")) == ('index "by-user" serves', True)

    async def described() -> bool:
        text = await kubectl("describe", "bnd", "orders")
        return "Normal  Active" in text and 'boundary "orders" takes events' in text

    await eventually(described, 20, 0.2)


async def test_a_cluster_at_a_glance(kubectl: Kubectl, store: Store, settings: Settings) -> None:
    stage = Stage(store.kube, store.namespace, settings)
    await store.kube.delete(stage.ref)
    await stage.create()
    await stage.settle()
    row = await kubectl.table("orisun", "-o", "wide")
    assert row.pop("AGE")
    assert row == {
        "NAME": "store",
        "REPLICAS": "3",
        "READY": "3",
        "UPDATED": "3",
        "PHASE": "Ready",
        "POSTGRES": "external",
        "IMAGE": "orisun:1",
        "JETSTREAM": "Healthy",
        "MESSAGE": "3 servers serve",
    }
    assert "scaled" in await kubectl("scale", "orisun/store", "--replicas=5")
    assert (await kubectl.table("orisun"))["REPLICAS"] == "5"
    assert "replicas must be 1 or 3 to 9" in await kubectl("scale", "orisun/store", "--replicas=2")
    await stage.close()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("orisun.spec.tls.mode", "certManager: a Certificate of"),
        ("bnd.spec.migration", "approvedPlan"),
        ("bnd.status.pendingPlan", "Migrations that wait for an approval"),
        ("evidx.status.progress", "pg_stat_progress_create_index"),
    ],
)
async def test_fields_are_explained(kubectl: Kubectl, field: str, words: str) -> None:
    async def explained() -> bool:
        # the API server publishes the schema of a new kind a moment after the kind
        return words in " ".join((await kubectl("explain", field)).split())

    await eventually(explained, 30, 0.5)
