"""Fixtures of the operator's tests: ``kube`` leads to a real API server that knows the three kinds."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from orisun_operator.kube import Kube, Ref
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import Stage
from tests.operator.kubernetes import ApiServer, ProgramsMissing
from tests.operator.stores import Store

CRDS = Path(__file__).parents[2] / "crds"
_numbers = itertools.count(1)


@contextlib.contextmanager
def started(place: Path) -> Iterator[ApiServer]:
    """An API server in this directory; skips where its programs are missing."""
    server = ApiServer(place)
    try:
        server.start()
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def api_server(directory: Path) -> Iterator[ApiServer]:
    """A running API server."""
    place = directory / "kubernetes"
    place.mkdir()
    with started(place) as server:
        yield server


@pytest.fixture(scope="session")
async def kube(api_server: ApiServer) -> AsyncIterator[Kube]:
    """A connection to it, with the CRDs in place."""
    kube = await Kube.connect(api_server.kubeconfig)
    try:
        await install(kube)
        yield kube
    finally:
        await kube.close()


async def install(kube: Kube) -> None:
    """Bring the CRDs to an API server."""
    refs = []
    for file in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())
        await kube.create(crd)
        refs.append(Ref.of(crd))

    async def established() -> bool:
        for ref in refs:
            conditions = ((await kube.get(ref) or {}).get("status") or {}).get("conditions") or ()
            if not any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                return False
        return True

    await eventually(established, 30, 0.1)


@pytest.fixture
async def namespace(kube: Kube) -> str:
    """A namespace of the test's own."""
    name = f"test-{next(_numbers)}"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture
async def store(kube: Kube, namespace: str, settings: Settings) -> AsyncIterator[Store]:
    """An OrisunCluster in that namespace whose PostgreSQL is the run's own; no server runs."""
    store = Store(kube, namespace, settings)
    await store.make()
    yield store
    await store.close()


@pytest.fixture
async def stage(kube: Kube, namespace: str, settings: Settings) -> AsyncIterator[Stage]:
    """An OrisunCluster in that namespace, for tests of its pods: they are there, and no kubelet is."""
    stage = Stage(kube, namespace, settings)
    yield stage
    await stage.close()
