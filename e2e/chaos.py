"""What goes wrong on purpose: processes are killed, pods removed, networks cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from e2e.kubernetes import CommandError, Kubernetes, Object, restarts, run, statuses, until

#: That of cluster.sh.
_CONTAINERD = "/run/orisun-e2e/containerd.sock"


async def kill(kubernetes: Kubernetes, namespace: str, *pods: str, container: str | None = None) -> None:
    """End processes by SIGKILL, as when a machine dies: of a container, or of all that the pods have, at once.

    Returns when Kubernetes has started them again. Where no container runtime is at hand (neither cluster.sh nor kind):
    a container gets SIGQUIT from inside, since the kernel keeps SIGKILL from a namespace's first process, and pods are
    removed.
    """
    before = [await kubernetes.must("pod", name, namespace) for name in pods]
    runtime = await _runtime(kubernetes, before[0]["spec"]["nodeName"])
    if runtime is None:
        await (_quit(kubernetes, namespace, pods, container) if container else remove(kubernetes, namespace, *pods))
        return
    ids = [
        str(status["containerID"]).removeprefix("containerd://")
        for pod in before
        for status in statuses(pod)
        if container in (None, status["name"]) and "running" in status["state"]
    ]
    assert ids, f"nothing of {container or pods} runs"
    await asyncio.gather(*(run(*runtime, "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", one) for one in ids))
    await asyncio.gather(*(_killed(kubernetes, pod, container) for pod in before))


async def _runtime(kubernetes: Kubernetes, node: str) -> tuple[str, ...] | None:
    """The command that reaches containerd on a node."""
    if kubernetes.scripts is not None:
        return "ctr", "--address", _CONTAINERD
    provider = str((await kubernetes.must("node", node))["spec"].get("providerID", ""))
    return ("docker", "exec", node, "ctr") if provider.startswith("kind://docker/") else None


async def _killed(kubernetes: Kubernetes, before: Object, container: str | None) -> None:
    """What ran in the pod ended with 128 + SIGKILL and was started again, unless the pod was replaced meanwhile."""
    metadata = before["metadata"]

    async def again() -> bool:
        pod = await kubernetes.must("pod", metadata["name"], metadata["namespace"])
        if pod["metadata"]["uid"] != metadata["uid"]:
            return True
        for status in statuses(pod):
            if container in (None, status["name"]):
                assert status["restartCount"] > restarts(before, status["name"]), status
                assert status["lastState"]["terminated"]["exitCode"] == 137, status
        return True

    await until(again, 60, f"{metadata['name']}: {container or 'all'} killed and started again", interval=0.1)


async def _quit(kubernetes: Kubernetes, namespace: str, pods: Sequence[str], container: str) -> None:
    for pod in pods:
        before = restarts(await kubernetes.must("pod", pod, namespace), container)
        with contextlib.suppress(CommandError):  # the shell dies with the rest
            await kubernetes.kubectl("exec", "-n", namespace, pod, "-c", container, "--", "sh", "-c", "kill -QUIT 1")

        async def restarted(pod: str = pod, before: int = before) -> bool:
            return restarts(await kubernetes.must("pod", pod, namespace), container) > before

        await until(restarted, 60, f"{pod}: {container} restarted")


async def remove(kubernetes: Kubernetes, namespace: str, *pods: str) -> None:
    """Delete pods without a grace period: SIGTERM, SIGKILL a moment later, and nothing waits for either."""
    arguments = ("delete", "pod", "-n", namespace, "--grace-period=0", "--force", "--wait=false", *pods)
    await kubernetes.kubectl(*arguments)


@contextlib.asynccontextmanager
async def fenced(kubernetes: Kubernetes) -> AsyncIterator[None]:
    """On a cluster of cluster.sh: the address of a Service that no pod answers for leads nowhere.

    While kube-proxy changes its rules such packets may leave for the machine's gateway, and there are gateways that
    answer for every address: HTTP 404 is what a gRPC client hears then, in place of a refused connection.
    """
    if kubernetes.scripts is None:
        yield
        return
    first = (await kubernetes.must("svc", "kubernetes", "default"))["spec"]["clusterIP"]
    rules = [(chain, "-d", f"{first}/16", "-j", "REJECT") for chain in ("OUTPUT", "FORWARD")]
    for rule in rules:
        await run("iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        for rule in rules:
            await run("iptables", "-w", "-D", *rule)


async def cut(kubernetes: Kubernetes, one: Object, other: Object) -> None:
    """No packet between two pods any more; needs ``kubernetes.scripts``. Every test ends with ``heal``."""
    await _script(kubernetes, "cut", one["status"]["podIP"], other["status"]["podIP"])


async def heal(kubernetes: Kubernetes) -> None:
    await _script(kubernetes, "heal")


async def _script(kubernetes: Kubernetes, *arguments: str) -> None:
    assert kubernetes.scripts is not None
    await run(str(kubernetes.scripts / "cluster.sh"), *arguments)
