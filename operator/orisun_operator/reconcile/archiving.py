"""The archive of a boundary whose resource is being deleted: a Job writes and checks it, its manifest comes back."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..api.boundary import BoundarySpec
from ..kube import Object, Ref
from ..resources import archive as resources
from ..resources.cluster import Cluster
from . import Blocked, Context
from .cluster_pods import problem_of
from .report import Report
from .target import spec_of

#: Seconds after which a Job that failed is removed, so that another one tries.
_TRY_AGAIN = 60.0


@dataclass(frozen=True)
class Archived:
    """An archive that was read back and compared with PostgreSQL."""

    claim_name: str
    file: str
    count: int
    last: Mapping[str, int]
    sha256: str

    def shown(self) -> dict[str, Any]:
        """As status.archive."""
        return {
            "claimName": self.claim_name,
            "file": self.file,
            "count": self.count,
            "lastPosition": dict(self.last),
            "sha256": self.sha256,
        }


async def archive(obj: Object, spec: BoundarySpec, cluster: Object, report: Report) -> Archived | None:
    """The archive when it is there, None while it is being written. Raises Blocked when it cannot be."""
    context = report.context
    namespace = obj["metadata"]["namespace"]
    await _ensure_claim(obj, spec, report)
    job = resources.job(obj, spec, await _cluster(context, cluster))
    ref = Ref.of(job)
    live = await context.kube.get(ref)
    if live is None:
        await context.kube.create(job)
        return None
    ended = {c["type"]: c for c in (live.get("status") or {}).get("conditions") or () if c["status"] == "True"}
    if "Complete" in ended:
        message = await _message(context, namespace, ref.name, exit_code=0)
        archived = _parse(message, resources.claim_name(obj, spec))
        if archived is None or archived.file != resources.file_name(obj, spec):
            # its pod was deleted before anybody read the manifest
            await context.kube.delete(ref, precondition_uid=live["metadata"]["uid"])
        return archived
    if "Failed" in ended:
        message = await _message(context, namespace, ref.name)
        since = datetime.datetime.fromisoformat(ended["Failed"]["lastTransitionTime"].replace("Z", "+00:00"))
        if (context.clock() - since).total_seconds() >= _TRY_AGAIN:
            await context.kube.delete(ref, precondition_uid=live["metadata"]["uid"])
        raise Blocked(
            "ArchiveFailed",
            f"Job {ref.name} failed: {message or ended['Failed'].get('message', 'see its pods')}: nothing was dropped;"
            " it is tried again",
            retry=15.0,
        )
    if problem := await _what_keeps(context, namespace, ref.name):
        raise Blocked(
            "ArchiveWaits", f"Job {ref.name} does not run yet: {problem}: nothing is dropped", stalled=False, retry=5.0
        )
    return None


async def _ensure_claim(obj: Object, spec: BoundarySpec, report: Report) -> None:
    context = report.context
    namespace, name = obj["metadata"]["namespace"], resources.claim_name(obj, spec)
    if await context.kube.get(Ref("v1", "PersistentVolumeClaim", namespace, name)) is not None:
        return
    if spec.archive.claim_name:
        raise Blocked(
            "ClaimNotFound",
            f"PersistentVolumeClaim {namespace}/{name}, which spec.archive.claimName names, does not exist: create it",
            retry=15.0,
        )
    await context.kube.create(resources.claim(obj, spec))
    await report.event("ClaimCreated", f"PersistentVolumeClaim {name} takes the archive, and stays when this is gone")


async def _what_keeps(context: Context, namespace: str, job: str) -> str:
    """What the kubelet or the scheduler says of a pod that does not run; "" for nothing."""
    pods = await context.kube.list("v1", "Pod", namespace, {resources.LABEL: job})
    told = [pod["status"] for pod in pods if (pod.get("status") or {}).get("phase") == "Pending"]
    waiting = [one for one in told if not any("terminated" in c["state"] for c in one.get("containerStatuses") or ())]
    return next(filter(None, map(problem_of, waiting)), "")


async def _message(context: Context, namespace: str, job: str, *, exit_code: int | None = None) -> str:
    """What the Job's container said last, of those that ended (with that code)."""
    said = [
        (ended.get("finishedAt") or "", ended.get("message") or "")
        for pod in await context.kube.list("v1", "Pod", namespace, {resources.LABEL: job})
        for container in (pod.get("status") or {}).get("containerStatuses") or ()
        if container["name"] == resources.CONTAINER
        and (ended := (container.get("state") or {}).get("terminated")) is not None
        and exit_code in (None, ended.get("exitCode"))
    ]
    return max(said, default=("", ""))[1].strip()


def _parse(message: str, claim: str) -> Archived | None:
    try:
        manifest = json.loads(message)
        last = {
            "commitPosition": int(manifest["last_commit_position"]),
            "preparePosition": int(manifest["last_prepare_position"]),
        }
        return Archived(claim, str(manifest["file"]), int(manifest["count"]), last, str(manifest["sha256"]))
    except (ValueError, KeyError, TypeError):
        return None


async def _cluster(context: Context, obj: Object) -> Cluster:
    """The cluster with the image that its servers run now."""
    metadata, spec = obj["metadata"], spec_of(obj)
    servers = await context.kube.get(Ref("apps/v1", "StatefulSet", metadata["namespace"], metadata["name"]))
    running = [
        container["image"]
        for container in (servers or {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
        if container["name"] == "server"
    ]
    return Cluster(
        metadata["namespace"],
        metadata["name"],
        metadata["uid"],
        spec,
        image=running[0] if running else spec.image or context.settings.server_image,
        nats_image="",
        pull_policy=spec.image_pull_policy or context.settings.image_pull_policy,
    )
