"""Fixtures of the end-to-end suite: one Kubernetes and one operator for the run, a namespace for each test.

The cluster: ``--k8s-provider external`` takes the one of KUBECONFIG (or --k8s-kubeconfig), ``--k8s-provider kind``
makes one (pytest-kubernetes); scripts/e2e.sh (make e2e) chooses. The images are there, or are loaded (--e2e-load).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.access import Access
from e2e.chaos import fenced, heal
from e2e.database import Database
from e2e.kubernetes import Kubernetes, load, run
from e2e.release import ROOT, Release
from e2e.stores import Namespace

#: Namespaces that are made beforehand where the operator is told which ones to look after.
_POOL = 40
_numbers = itertools.count()
#: Tells namespaces of runs apart, which may still be ending.
_RUN = secrets.token_hex(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    group = parser.getgroup("orisun")
    group.addoption("--e2e-image", default=os.environ.get("E2E_IMAGE", f"orisun:{version}"), help="server and operator")
    group.addoption("--e2e-nats-image", default=os.environ.get("E2E_NATS_IMAGE", f"orisun-nats:{version}"), help="NATS")
    group.addoption("--e2e-next-image", default="", help="a later server, for upgrades; made where images are loaded")
    group.addoption("--e2e-load", action="store_true", help="load both from the local Docker into the cluster")
    group.addoption("--e2e-keep", action="store_true", help="leave namespaces and operator, to look at them")
    group.addoption(
        "--e2e-namespaced", default="", metavar="PREFIX", help="operator for namespaces PREFIX-* only, beside others"
    )


@pytest.fixture(scope="session")
def provider(
    request: pytest.FixtureRequest, k8s_manager: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """pytest-kubernetes' manager of a cluster that runs."""
    name = request.config.getoption("k8s_provider") or ("external" if os.environ.get("KUBECONFIG") else "kind")
    kubeconfig = None
    if name == "external":
        given = request.config.getoption("k8s_kubeconfig") or os.environ.get("KUBECONFIG")
        assert given, "an external cluster needs KUBECONFIG or --k8s-kubeconfig"
        # a copy, because pytest-kubernetes deletes its own
        kubeconfig = shutil.copy(given, tmp_path_factory.mktemp("kubernetes") / "config")
    manager = k8s_manager(name)("orisun", None, kubeconfig)
    try:
        manager.create(timeout=300)
    except subprocess.CalledProcessError as error:  # such as a cluster that an interrupted run has left
        pytest.exit(f"no cluster by {name}: {error.stderr.decode().strip()}", 1)
    yield manager
    manager.delete()


@pytest.fixture(scope="session")
async def kubernetes(request: pytest.FixtureRequest, provider: Any) -> AsyncIterator[Kubernetes]:
    found = await Kubernetes.connect(Path(provider.kubeconfig))
    if request.config.getoption("e2e_load"):
        load(images_of(request.config), provider, found.scripts)
    async with fenced(found):
        yield found
    await found.api.close()


def images_of(config: pytest.Config) -> tuple[str, str]:
    return config.getoption("e2e_image"), config.getoption("e2e_nats_image")


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Of the server, and of NATS."""
    return images_of(request.config)


@pytest.fixture(scope="session")
async def next_image(
    request: pytest.FixtureRequest, images: tuple[str, str], kubernetes: Kubernetes, provider: Any
) -> str:
    """Another image of the server, whose GetServerInfo says git_commit "next"."""
    given = str(request.config.getoption("e2e_next_image"))
    if given:
        return given
    if not request.config.getoption("e2e_load"):
        pytest.skip("needs --e2e-next-image: a second image of the server that the cluster can pull")
    name = f"{images[0]}-next"
    await run("docker", "build", "-q", "-t", name, "-", stdin=f"FROM {images[0]}\nENV GIT_COMMIT=next\n")
    load([name], provider, kubernetes.scripts)
    return name


@pytest.fixture(scope="session")
async def release(
    request: pytest.FixtureRequest, kubernetes: Kubernetes, images: tuple[str, str]
) -> AsyncIterator[Release]:
    prefix = request.config.getoption("e2e_namespaced")
    pool = [f"{prefix}-{_RUN}-{number}" for number in range(_POOL)] if prefix else []
    namespaces = "\n---\n".join(
        f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {Namespace.LABELS}}}}}" for name in pool
    )
    if pool:
        await kubernetes.kubectl("apply", "-f", "-", stdin=namespaces)
    space, values = f"{prefix}-system" if prefix else "orisun-system", ["timerSeconds=10"]
    crd = await kubernetes.get("crd", "boundaries.orisun.io")
    if crd and crd["metadata"].get("annotations", {}).get("meta.helm.sh/release-namespace") not in (None, space):
        values.append("crds.create=false")  # they are another release's
    release = Release(kubernetes, images, namespace=space, watch=pool, values=values)
    if pool and await release.status():  # it knows other namespaces
        await release.helm("uninstall", release.name, "--no-hooks", "--wait", "--timeout", "60s")
    yield release
    if not request.config.getoption("e2e_keep"):
        if await release.status():
            await release.uninstall()
        await kubernetes.kubectl("delete", "namespace", *pool, release.namespace, "--ignore-not-found", "--wait=false")


@pytest.fixture
async def operator(release: Release) -> Release:
    """The operator runs; a test may do to it what it likes."""
    await release.ensure()
    return release


@contextlib.asynccontextmanager
async def _namespace(
    request: pytest.FixtureRequest, kubernetes: Kubernetes, release: Release
) -> AsyncIterator[Namespace]:
    prefix = request.config.getoption("e2e_namespaced")
    number = next(_numbers)
    made = Namespace(kubernetes, f"{prefix}-{_RUN}-{number}" if prefix else f"e2e-{_RUN}-{number}")
    await made.create()
    yield made
    if not request.config.getoption("e2e_keep"):
        await made.delete()


@pytest.fixture
async def namespace(
    request: pytest.FixtureRequest, kubernetes: Kubernetes, release: Release
) -> AsyncIterator[Namespace]:
    """An empty namespace under restricted pod security; a failure shows what is in it."""
    async with _namespace(request, kubernetes, release) as made:
        yield made
        await tell(request, made, release)


@pytest.fixture(scope="module")
async def shared_namespace(
    request: pytest.FixtureRequest, kubernetes: Kubernetes, release: Release
) -> AsyncIterator[Namespace]:
    """One for all tests of a module."""
    await release.ensure()
    async with _namespace(request, kubernetes, release) as made:
        yield made


async def tell(request: pytest.FixtureRequest, namespace: Namespace, release: Release) -> None:
    """After a failure, what is in the namespace and what the operator says; after each test, no network is cut."""
    await heal(namespace.kubernetes)
    if failure := request.node.stash.get(_FAILED, ""):
        print(failure)
        print(await namespace.describe())
        print(await release.logs())


_FAILED = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report: pytest.TestReport = yield
    if report.failed:
        item.stash[_FAILED] = report.longreprtext
    return report


@pytest.fixture(scope="session")
def access(kubernetes: Kubernetes) -> Access:
    return Access(kubernetes)


@pytest.fixture
async def database(namespace: Namespace, images: tuple[str, str]) -> Database:
    """A PostgreSQL beside the operator's clusters, with a Secret of its credentials."""
    database = Database(namespace, images[0])
    await database.start()
    return database


@pytest.fixture(scope="module")
async def shared_database(shared_namespace: Namespace, images: tuple[str, str]) -> Database:
    """The same, for all tests of a module."""
    database = Database(shared_namespace, images[0])
    await database.start()
    return database
