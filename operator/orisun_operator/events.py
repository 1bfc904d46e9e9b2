"""Kubernetes Events (events.k8s.io/v1), deduplicated: one that repeats counts up in a series."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from .api import FIELD_MANAGER

if TYPE_CHECKING:
    from .kube import Kube

log = structlog.get_logger(__name__)

API_VERSION = "events.k8s.io/v1"
#: Seconds in which the same event is said once; further ones are counted with the next that is said.
_QUIET = 300.0
_REMEMBERED = 4096
#: The API's limit of a note, in bytes.
_NOTE = 1024


class Events:
    """Writes Events; never fails, because no work depends on them."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        #: Name of an event to when it was said, and how often it has happened since.
        self._said: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def record(self, obj: Mapping[str, Any], type: str, reason: str, message: str) -> None:
        metadata = obj["metadata"]
        identity = "\0".join((metadata["uid"], type, reason, message))
        name = f"{metadata['name'][:200]}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        now = time.monotonic()
        before, unsaid = self._said.get(name, (-_QUIET, 0))
        if now - before < _QUIET:
            self._said[name] = (before, unsaid + 1)
            return
        self._said[name] = (now, 0)
        self._said.move_to_end(name)
        while len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)
        event = _event(obj, name, type, reason, message)
        try:
            if await self._kube.create(event) is None:
                await self._repeat(event, 1 + unsaid)
        except Exception as error:
            log.warning("an event could not be recorded", reason=reason, error=str(error))

    async def _repeat(self, event: dict[str, Any], times: int) -> None:
        from .api_server import Ref

        ref = Ref.of(event)
        before = await self._kube.get(ref)
        count = ((before or {}).get("series") or {}).get("count", 1)
        await self._kube.patch(ref, {"series": {"count": count + times, "lastObservedTime": event["eventTime"]}})


def _event(obj: Mapping[str, Any], name: str, type: str, reason: str, message: str) -> dict[str, Any]:
    metadata = obj["metadata"]
    # an object of the whole cluster has its events in "default"
    namespace = metadata.get("namespace") or "default"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": API_VERSION,
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": now,
        "type": type,
        "reason": reason,
        "note": message.encode()[:_NOTE].decode(errors="ignore"),
        "action": "Reconcile",
        "reportingController": f"orisun.io/{FIELD_MANAGER}",
        "reportingInstance": (os.environ.get("POD_NAME") or platform.node() or FIELD_MANAGER)[:128],
        "regarding": {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "namespace": metadata.get("namespace", ""),
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }
