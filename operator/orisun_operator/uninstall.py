"""What has to be done before the operator is uninstalled, and nobody can do afterwards.

The operator is stopped first, or else it would put its finalizers on again. Then they come off, so that resources and
their namespaces can be deleted without it. No data is touched: a Boundary that is deleted later just goes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from .api import API_VERSION, PREFIX
from .kube import KindMissing, Kube, KubeError, Object, Ref

KINDS = ("OrisunCluster", "Boundary", "EventIndex")
_POLL = 0.5


class StillRunning(Exception):
    """Pods of the operator did not end in time."""


async def uninstall(
    kube: Kube,
    namespaces: Sequence[str],
    namespace: str,
    deployment: str,
    *,
    timeout: float = 120.0,
    say: Callable[[str], None] = print,
) -> int:
    """Stop the Deployment, then remove the operator's finalizers in ``namespaces`` (none: everywhere); how many.

    Raises:
        StillRunning: The Deployment's pods are still there after ``timeout`` seconds.
        KubeError: The API server refused.
    """
    try:
        await _stop(kube, Ref("apps/v1", "Deployment", namespace, deployment), timeout)
    except KubeError as error:
        # an installation that failed half-way gave neither the operator nor us our Roles
        if error.status != 403:
            raise
        say(f"the operator is not stopped: {error}")
    removed = 0
    for kind in KINDS:
        for obj in await _everything(kube, kind, namespaces, say):
            ours = [name for name in obj["metadata"].get("finalizers") or () if name.startswith(PREFIX)]
            for name in ours:
                await kube.remove_finalizer(obj, name)
            if ours:
                removed += 1
                say(f"{Ref.of(obj)}: its finalizer is removed, its data stays")
    return removed


async def _stop(kube: Kube, ref: Ref, timeout: float) -> None:
    found = await kube.get(ref)
    if found is None:
        return
    await kube.patch(ref, {"spec": {"replicas": 0}})
    labels: dict[str, str] = found["spec"]["selector"]["matchLabels"]
    deadline = time.monotonic() + timeout
    while pods := [pod["metadata"]["name"] for pod in await kube.list("v1", "Pod", ref.namespace, labels)]:
        if time.monotonic() > deadline:
            raise StillRunning(f"{', '.join(pods)} did not end within {timeout:.0f} s; delete them and try again")
        await asyncio.sleep(_POLL)


async def _everything(kube: Kube, kind: str, namespaces: Sequence[str], say: Callable[[str], None]) -> list[Object]:
    found: list[Object] = []
    for namespace in namespaces or (None,):
        try:
            found += await kube.list(API_VERSION, kind, namespace)
        except KindMissing:
            return []
        except KubeError as error:
            # a namespace that was deleted took our Role with it
            if namespace is None or error.status != 403:
                raise
            say(f"namespace {namespace} is left out: {error}")
    return found
