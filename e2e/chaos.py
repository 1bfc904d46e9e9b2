"""What goes wrong on purpose: processes are killed, pods removed, networks cut."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Sequence

from e2e.kubernetes import CommandError, Kubernetes, Object, restarts, run, statuses, until

#: That of cluster.sh.
_CONTAINERD = "/run/orisun-e2e/containerd.sock"
#: Marks the rules of ``cut``.
_MARK = "orisun-e2e-cut"


async def kill(kubernetes: Kubernetes, namespace: str, *pods: str, container: str | None = None) -> None:
    """End processes by SIGKILL, as when a machine dies: of a container, or of all that the pods have, at once.

    Returns when Kubernetes has started them again. Where no container runtime is at hand (neither cluster.sh nor kind):
    a container gets SIGQUIT from inside, since the kernel keeps SIGKILL from a namespace's first process, and pods are
    removed.
    """
    before = [await kubernetes.must("pod", name, namespace) for name in pods]
    if not await reaches_nodes(kubernetes):
        await (_quit(kubernetes, namespace, pods, container) if container else remove(kubernetes, namespace, *pods))
        return
    await _signal(kubernetes, "SIGKILL", *before, container=container)
    await asyncio.gather(*(_killed(kubernetes, pod, container) for pod in before))


async def stop(kubernetes: Kubernetes, namespace: str, pod: str) -> None:
    """SIGSTOP: the pod's processes are there and do nothing any more, whatever they hold. Needs ``reaches_nodes``."""
    await _signal(kubernetes, "SIGSTOP", await kubernetes.must("pod", pod, namespace))


async def limit_files(kubernetes: Kubernetes, namespace: str, pod: str, container: str, size: int | None) -> None:
    """From now on no process of a container makes a file longer than so many bytes: its writes fail, as on a bad disk.

    None lifts that. The image needs a shell and prlimit (util-linux).
    """
    limit = "unlimited" if size is None else str(size)
    each = f'for one in /proc/[0-9]*; do prlimit --fsize={limit}: --pid "${{one#/proc/}}" || true; done'
    await kubernetes.kubectl("exec", "-n", namespace, pod, "-c", container, "--", "sh", "-c", each)


async def _signal(kubernetes: Kubernetes, signal: str, *pods: Object, container: str | None = None) -> None:
    """Sent to the first process of each container that runs, from outside, where nothing keeps it from them."""
    address = () if kubernetes.scripts is None else ("--address", _CONTAINERD)
    ctr = (*await _on_node(kubernetes, pods[0]), "ctr", *address, "-n", "k8s.io", "tasks", "kill", "-s", signal)
    ids = [
        str(status["containerID"]).removeprefix("containerd://")
        for pod in pods
        for status in statuses(pod)
        if container in (None, status["name"]) and "running" in status["state"]
    ]
    assert ids, f"nothing of {container or [pod['metadata']['name'] for pod in pods]} runs"
    await asyncio.gather(*(run(*ctr, one) for one in ids))


async def reaches_nodes(kubernetes: Kubernetes) -> bool:
    """Whether commands can be run on the cluster's one node: one of cluster.sh or of kind."""
    if kubernetes.scripts is not None:
        return True
    nodes = await kubernetes.list("node", None)
    return len(nodes) == 1 and str(nodes[0]["spec"].get("providerID", "")).startswith("kind://docker/")


async def _on_node(kubernetes: Kubernetes, pod: Object) -> tuple[str, ...]:
    """What comes before a command that is to run on the pod's node. Needs ``reaches_nodes``."""
    return () if kubernetes.scripts is not None else ("docker", "exec", str(pod["spec"]["nodeName"]))


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
    """No packet between two pods any more. Needs ``reaches_nodes``; every test ends with ``heal``."""
    addresses = one["status"]["podIP"], other["status"]["podIP"]
    if kubernetes.scripts is not None:
        await run(str(kubernetes.scripts / "cluster.sh"), "cut", *addresses)
        return
    for source, target in (addresses, addresses[::-1]):
        # in mangle, which packets pass after a Service's address is resolved
        rule = ("FORWARD", "-s", source, "-d", target, "-m", "comment", "--comment", _MARK, "-j", "DROP")
        await run(*await _on_node(kubernetes, one), "iptables", "-w", "-t", "mangle", "-A", *rule)


async def heal(kubernetes: Kubernetes) -> None:
    """Ends every ``cut``; where none can have been made it does nothing."""
    if kubernetes.scripts is not None:
        await run(str(kubernetes.scripts / "cluster.sh"), "heal")
    elif await reaches_nodes(kubernetes):
        node = (await kubernetes.list("node", None))[0]["metadata"]["name"]
        iptables = ("docker", "exec", node, "iptables", "-w", "-t", "mangle")
        for rule in (await run(*iptables, "-S", "FORWARD")).splitlines():
            if _MARK in rule:
                await run(*iptables, *shlex.split(rule.replace("-A", "-D", 1)))
