"""The Kubernetes API, as the operator uses it: read, apply, delete, status, events. One writer, no needless writes.

Objects are plain dicts, as in YAML. Failures are ``KubeError`` with the API server's own words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import drift
from .api import FIELD_MANAGER
from .api_server import ApiServer, KindMissing, KubeError, Object, Ref
from .events import Events

__all__ = ["Applied", "KindMissing", "Kube", "KubeError", "NotOurs", "Object", "Ref"]

_Names = list[str]
_PAGE = 500
_TRIES = 5


@dataclass(frozen=True)
class Applied:
    """What ``apply`` did: the object as it is now, and whether anything was written."""

    obj: Object
    changed: bool
    created: bool = False
    #: Fields that somebody else had changed since the last apply of the same state, or ("deleted",); paths only.
    repaired: tuple[str, ...] = ()


class NotOurs(KubeError):
    """An object of that name exists and belongs to somebody else."""


class Kube:
    """Make it with ``connect``."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._events = Events(self)
        self._identity = ""

    @classmethod
    async def connect(cls, kubeconfig: Path | str | None = None) -> Kube:
        """In a pod its service account; else ``kubeconfig``, KUBECONFIG or ~/.kube/config."""
        return cls(await ApiServer.connect(kubeconfig))

    async def close(self) -> None:
        await self._server.close()

    def fence(self, may_write: Callable[[], bool]) -> None:
        """From now on nothing is written while ``may_write`` says no: KubeError."""
        self._server.may_write = may_write

    @property
    def requests(self) -> Counter[str]:
        """Requests so far, by HTTP method: for metrics, and for tests that nothing was written."""
        return self._server.requests

    @property
    def writes(self) -> int:
        """Requests so far that could have written something."""
        return sum(count for verb, count in self.requests.items() if verb not in ("GET", "WATCH"))

    # -- reading ---------------------------------------------------------------------------------------------------

    async def get(self, ref: Ref) -> Object | None:
        """The object, None when it (or its kind) does not exist."""
        try:
            return await self._server.request("GET", await self._server.path(ref))
        except KindMissing:
            return None
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def identity(self) -> str:
        """What tells this Kubernetes cluster from all others: of the uid of its namespace kube-system, 8 hex digits.

        "" where that may not be read.
        """
        if not self._identity:
            try:
                found = await self.get(Ref("v1", "Namespace", "", "kube-system"))
            except KubeError as error:
                if error.status != 403:
                    raise
                found = None
            self._identity = found["metadata"]["uid"][:8] if found is not None else ""
        return self._identity

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        labels: Mapping[str, str] | str | None = None,
    ) -> list[Object]:
        """Every object of a kind, in one namespace or (None) in all; ``labels`` selects. Raises KindMissing."""
        selector = labels if isinstance(labels, str) else ",".join(f"{k}={v}" for k, v in (labels or {}).items())
        path = await self._server.path(Ref(api_version, kind, namespace or "", ""))
        found: list[Object] = []
        more = ""
        while True:
            query = {"limit": str(_PAGE), "labelSelector": selector, "continue": more}
            page = await self._server.request("GET", path, query={key: value for key, value in query.items() if value})
            # items of a list carry neither
            found += [{"apiVersion": api_version, "kind": kind, **item} for item in page["items"]]
            more = page["metadata"].get("continue") or ""
            if not more:
                return found

    async def watch(
        self, api_version: str, kind: str, namespace: str | None, labels: str, *, seconds: int = 300
    ) -> AsyncIterator[Object]:
        """Every object with those labels, first as it is, then whenever it changes or goes, without end.

        Raises KubeError or KindMissing; watch anew then.
        """
        path = await self._server.path(Ref(api_version, kind, namespace or "", ""))
        while True:
            page = await self._server.request("GET", path, query={"labelSelector": labels})
            for item in page["items"]:
                yield {"apiVersion": api_version, "kind": kind, **item}
            version = page["metadata"]["resourceVersion"]
            try:
                while True:
                    query = {"labelSelector": labels, "resourceVersion": version, "allowWatchBookmarks": "true"}
                    async for event in self._server.stream(path, query, seconds):
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event["object"]
            except KubeError as error:
                if error.status != 410:
                    raise

    # -- writing ---------------------------------------------------------------------------------------------------

    async def apply(self, obj: Mapping[str, Any]) -> Applied:
        """Bring the object to this state by server-side apply; nothing is sent when it is there already.

        What others set in its spec or data is taken away; their labels and annotations stay.

        Raises:
            NotOurs: It exists and is not owned by the owner that ``obj`` names.
            KubeError: The API server refused.
        """
        desired = drift.stamped(obj)
        ref = Ref.of(desired)
        live = await self.get(ref)
        if live is None:
            return Applied(await self._apply(ref, desired), changed=True, created=True)
        _check_owner(ref, desired, live)
        foreign = drift.foreign_fields(live)
        known = drift.was_applied(desired, live)
        if known and not foreign and drift.contains(desired, live):
            return Applied(live, changed=False)
        repaired = drift.repaired(desired, live, foreign) if known else ()
        if foreign:
            await self._adopt(ref, live)
        after = await self._apply(ref, desired)
        changed = after["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]
        return Applied(after, changed=changed, repaired=repaired if changed else ())

    async def create(self, obj: Mapping[str, Any]) -> Object | None:
        """Create the object as it is; None when there is one of that name. For what must never be overwritten."""
        ref = Ref.of(obj)
        collection = ref._replace(name="")
        try:
            return await self._server.request(
                "POST", await self._server.path(collection), body=obj, query={"fieldManager": FIELD_MANAGER}
            )
        except KubeError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def patch(self, ref: Ref, patch: Mapping[str, Any], *, subresource: str = "") -> Object:
        """JSON merge patch (RFC 7396)."""
        return await self._server.request(
            "PATCH",
            await self._server.path(ref, subresource),
            body=patch,
            content="application/merge-patch+json",
            query={"fieldManager": FIELD_MANAGER},
        )

    async def delete(
        self,
        ref: Ref,
        *,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        precondition_uid: str | None = None,
    ) -> bool:
        """Delete the object; False when there was none, or not the one with that uid."""
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if precondition_uid is not None:
            body["preconditions"] = {"uid": precondition_uid}
        try:
            await self._server.request("DELETE", await self._server.path(ref), body=body)
        except KubeError as error:
            if error.status == 404 or (error.status == 409 and precondition_uid is not None):
                return False
            raise
        return True

    async def patch_status(self, obj: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Make ``status`` the whole status of the object, as it was read, where it differs.

        One that is gone is let go, also when another of its name has come: that must not get this status.
        """
        before = obj.get("status") or {}
        changes = _merge_patch(before, status)
        if changes:
            await self._patch_current(obj, lambda _: {"status": changes}, subresource="status")

    async def event(
        self, obj: Mapping[str, Any], type: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Record an Event about the object; one that repeats counts up and is sent at most every few minutes."""
        await self._events.record(obj, type, reason, message)

    async def set_finalizer(self, obj: Mapping[str, Any], name: str) -> None:
        """Add the finalizer unless it is there."""
        await self._change_finalizers(obj, lambda names: names if name in names else [*names, name])

    async def remove_finalizer(self, obj: Mapping[str, Any], name: str) -> None:
        """Take the finalizer away; nothing happens when the object is gone."""
        await self._change_finalizers(obj, lambda names: [other for other in names if other != name])

    async def _change_finalizers(self, obj: Mapping[str, Any], change: Callable[[_Names], _Names]) -> None:
        def patch(metadata: Mapping[str, Any]) -> Object | None:
            names: _Names = [*(metadata.get("finalizers") or ())]
            wanted = change(names)
            return None if wanted == names else {"metadata": {"finalizers": wanted}}

        await self._patch_current(obj, patch)

    async def _patch_current(
        self, obj: Mapping[str, Any], patch: Callable[[Mapping[str, Any]], Object | None], *, subresource: str = ""
    ) -> None:
        """Patch the object if it is still the one that was read; ``patch`` makes the patch from its metadata.

        With its version, so that nothing of somebody else is lost; a newer version is read and patched instead.
        """
        ref, metadata = Ref.of(obj), obj["metadata"]
        for attempt in range(_TRIES):
            wanted = patch(metadata)
            if wanted is None:
                return
            version = {**wanted.get("metadata", {}), "resourceVersion": metadata["resourceVersion"]}
            try:
                await self.patch(ref, {**wanted, "metadata": version}, subresource=subresource)
                return
            except KubeError as error:
                if error.status == 404:
                    return
                if error.status != 409 or attempt == _TRIES - 1:
                    raise
            fresh = await self.get(ref)
            if fresh is None or fresh["metadata"]["uid"] != metadata["uid"]:
                return
            metadata = fresh["metadata"]

    async def _apply(self, ref: Ref, desired: Object) -> Object:
        return await self._server.request(
            "PATCH",
            await self._server.path(ref),
            body=desired,
            content="application/apply-patch+yaml",
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
        )

    async def _adopt(self, ref: Ref, live: Object) -> None:
        patch = [
            {"op": "replace", "path": "/metadata/managedFields", "value": drift.adopted(live)},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]},
        ]
        await self._server.request(
            "PATCH", await self._server.path(ref), body=patch, content="application/json-patch+json"
        )


def _merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    """What makes one of the other by JSON merge patch, which leaves alone what is not named."""
    patch: Object = {key: None for key in before if key not in after}
    for key, value in after.items():
        there = before.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            if below := _merge_patch(there, value):
                patch[key] = below
        elif there != value:
            patch[key] = value
    return patch


def _check_owner(ref: Ref, desired: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    owners = {owner["uid"] for owner in desired["metadata"].get("ownerReferences") or ()}
    there = {owner["uid"] for owner in live["metadata"].get("ownerReferences") or ()}
    if owners and not owners & there:
        raise NotOurs(
            409,
            "NameTaken",
            f"{ref} exists already and is not this resource's: delete or rename it, or use another name",
        )
