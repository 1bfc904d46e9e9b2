"""The Kubernetes under test, as a user handles it: kubectl and helm write, the API is read."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from orisun_operator.kube import Kube, KubeError, Ref

T = TypeVar("T")
Object = dict[str, Any]
API = "orisun.io/v1alpha1"
#: Kinds by the words that tests use.
KINDS: Mapping[str, tuple[str, str]] = {
    "orisun": (API, "OrisunCluster"),
    "bnd": (API, "Boundary"),
    "evidx": (API, "EventIndex"),
    "pod": ("v1", "Pod"),
    "svc": ("v1", "Service"),
    "cm": ("v1", "ConfigMap"),
    "secret": ("v1", "Secret"),
    "sa": ("v1", "ServiceAccount"),
    "pvc": ("v1", "PersistentVolumeClaim"),
    "ns": ("v1", "Namespace"),
    "node": ("v1", "Node"),
    "endpoints": ("discovery.k8s.io/v1", "EndpointSlice"),
    "event": ("events.k8s.io/v1", "Event"),
    "sts": ("apps/v1", "StatefulSet"),
    "deploy": ("apps/v1", "Deployment"),
    "rs": ("apps/v1", "ReplicaSet"),
    "hpa": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "job": ("batch/v1", "Job"),
    "pdb": ("policy/v1", "PodDisruptionBudget"),
    "netpol": ("networking.k8s.io/v1", "NetworkPolicy"),
    "lease": ("coordination.k8s.io/v1", "Lease"),
    "crd": ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    "certificate": ("cert-manager.io/v1", "Certificate"),
    "application": ("argoproj.io/v1alpha1", "Application"),
}


class CommandError(AssertionError):
    """A command of the test failed; the text is what it printed."""


async def run(
    *command: str, stdin: str | None = None, timeout: float = 120, environ: Mapping[str, str] | None = None
) -> str:
    """Its standard output. Raises CommandError."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environ or {})},
    )
    try:
        async with asyncio.timeout(timeout):
            out, error = await process.communicate(stdin.encode() if stdin is not None else None)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CommandError(f"{' '.join(command)}: still running after {timeout:.0f} s") from None
    if process.returncode:
        raise CommandError(f"{' '.join(command)}: {error.decode().strip() or out.decode().strip()}")
    return out.decode()


async def until(condition: Callable[[], Awaitable[T]], timeout: float, what: str, interval: float = 0.25) -> T:
    """The first answer of ``condition`` that is true; while it raises AssertionError or KubeError it is asked again."""
    deadline, last = time.monotonic() + timeout, "nothing"
    while True:
        try:
            answer = await condition()
            if answer:
                return answer
            last = repr(answer)
        except (AssertionError, KubeError) as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:.0f} s; last: {last[:3000]}")
        await asyncio.sleep(interval)


class Kubernetes:
    """Make it with ``connect``. ``scripts`` is the directory of cluster.sh where the cluster is one of its making."""

    def __init__(self, kubeconfig: Path, api: Kube, scripts: Path | None) -> None:
        self.kubeconfig, self.api, self.scripts = kubeconfig, api, scripts

    @classmethod
    async def connect(cls, kubeconfig: Path) -> Kubernetes:
        """Raises KubeError where nothing answers."""
        api = await Kube.connect(kubeconfig)
        nodes = await api.list("v1", "Node")
        named = os.environ.get("ORISUN_E2E_K8S", "")
        is_ours = named and [node["metadata"]["name"] for node in nodes] == ["orisun-e2e"]
        return cls(kubeconfig, api, Path(named) if is_ours else None)

    async def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        return await run("kubectl", "--kubeconfig", str(self.kubeconfig), *arguments, stdin=stdin, timeout=timeout)

    async def helm(self, *arguments: str, timeout: float = 300) -> str:
        return await run("helm", "--kubeconfig", str(self.kubeconfig), *arguments, timeout=timeout)

    async def apply(self, *objects: Object | str | Path, namespace: str) -> str:
        """``kubectl apply``, as a user does, of objects, YAML or files. Raises CommandError with the server's words."""
        texts = [json.dumps(o) if isinstance(o, dict) else o.read_text() if isinstance(o, Path) else o for o in objects]
        return await self.kubectl("apply", "-n", namespace, "-f", "-", stdin="\n---\n".join(texts))

    async def patch(self, kind: str, name: str, patch: Object, namespace: str) -> None:
        arguments = ("patch", _word(kind), name, "-n", namespace, "--type", "merge", "-p", json.dumps(patch))
        await self.kubectl(*arguments)

    async def delete(self, kind: str, *names: str, namespace: str, wait: bool = True, timeout: float = 120) -> None:
        arguments = (
            "delete",
            _word(kind),
            *names,
            "-n",
            namespace,
            f"--wait={str(wait).lower()}",
            "--ignore-not-found",
        )
        await self.kubectl(*arguments, timeout=timeout)

    async def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        version, word = KINDS[kind]
        return await self.api.get(Ref(version, word, namespace, name))

    async def must(self, kind: str, name: str, namespace: str = "") -> Object:
        found = await self.get(kind, name, namespace)
        assert found is not None, f"no {kind} {namespace}/{name}"
        return found

    async def list(self, kind: str, namespace: str | None, labels: str = "") -> list[Object]:
        version, word = KINDS[kind]
        return await self.api.list(version, word, namespace, labels)

    async def pods(self, namespace: str, cluster: str, component: str = "server") -> list[Object]:
        """Of an OrisunCluster, by name."""
        labels = f"app.kubernetes.io/instance={cluster},app.kubernetes.io/component={component}"
        found = await self.list("pod", namespace, labels)
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    async def condition(self, kind: str, name: str, namespace: str, type: str = "Ready") -> Object:
        """The condition, or {} ; one that is older than the spec counts as not there."""
        found = await self.must(kind, name, namespace)
        status = found.get("status") or {}
        if status.get("observedGeneration", -1) != found["metadata"]["generation"]:
            return {}
        return next((dict(one) for one in status.get("conditions") or () if one["type"] == type), {})

    async def wait_for(
        self,
        kind: str,
        name: str,
        namespace: str,
        type: str = "Ready",
        status: str = "True",
        *,
        reason: str | None = None,
        timeout: float = 120,
    ) -> Object:
        """The object, once its condition says so about its present spec."""

        async def said() -> bool:
            condition = await self.condition(kind, name, namespace, type)
            is_so = condition.get("status") == status and reason in (None, condition.get("reason"))
            assert is_so, f"{type} is {condition or 'not there'}"
            return True

        await until(said, timeout, f"{kind}/{name} {type}={status}")
        return await self.must(kind, name, namespace)

    async def ready(self, namespace: str, *what: str, timeout: float = 180) -> None:
        """Waits for several ``kind/name``."""
        await asyncio.gather(*(self.wait_for(*one.split("/", 1), namespace, timeout=timeout) for one in what))

    async def gone(self, kind: str, name: str, namespace: str = "", timeout: float = 120) -> None:
        async def is_gone() -> bool:
            found = await self.get(kind, name, namespace)
            assert found is None, f"finalizers {found['metadata'].get('finalizers')}, status {found.get('status')}"
            return True

        await until(is_gone, timeout, f"{kind}/{name} gone")

    async def events(self, namespace: str, reason: str | None = None) -> list[Object]:
        return [e for e in await self.list("event", namespace) if reason in (None, e.get("reason"))]

    async def password(self, namespace: str, cluster: str) -> str:
        """The administrator's, as a user reads it."""
        secret = await self.must("secret", f"{cluster}-admin", namespace)
        return base64.b64decode(secret["data"]["password"]).decode()

    async def post(self, path: str, body: Object) -> int:
        """HTTP status of a request to the API server that kubectl has no command for."""
        arguments = ("create", "--raw", path, "-f", "-")
        try:
            await self.kubectl(*arguments, stdin=json.dumps(body))
        except CommandError as error:
            if "TooManyRequests" in str(error) or "disruption budget" in str(error):
                return 429
            raise
        return 201

    async def evict(self, namespace: str, pod: str) -> int:
        """As a drain does; 201, or 429 where a PodDisruptionBudget forbids it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        return await self.post(f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", body)


def _word(kind: str) -> str:
    version, word = KINDS[kind]
    group = version.rpartition("/")[0]
    return f"{word}.{version.rpartition('/')[2]}.{group}" if group else word


def statuses(pod: Object) -> list[Object]:
    """Of all containers, sidecars included."""
    parts = ("containerStatuses", "initContainerStatuses")
    return [status for part in parts for status in pod["status"].get(part) or ()]


def restarts(pod: Object, container: str) -> int:
    """How often a container of the pod was started again."""
    return sum(int(status["restartCount"]) for status in statuses(pod) if status["name"] == container)


def is_ready(pod: Object) -> bool:
    """Its condition Ready."""
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions") or ())


def load(images: Sequence[str], provider: Any, scripts: Path | None) -> None:
    """Bring images of the local Docker into the cluster."""
    if scripts is None:
        for image in images:
            provider.load_image(image)
        return
    docker = shutil.which("docker") or "docker"
    for image in images:
        archive = Path(os.environ["ORISUN_E2E_CACHE"]) / "images" / (image.replace("/", "_").replace(":", "_") + ".tar")
        subprocess.run([docker, "save", image, "-o", str(archive)], check=True)
        subprocess.run([str(scripts / "cluster.sh"), "load", str(archive)], check=True, stdout=subprocess.DEVNULL)
        archive.unlink()
