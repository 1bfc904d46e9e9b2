"""One of several replicas works: the holder of a Lease of coordination.k8s.io, as Kubernetes' own controllers elect.

Whether another's hold has ended is judged by this process's own clock, from when it saw the Lease change last: clocks
of nodes may differ. A holder that cannot renew in time must not work on, so losing the Lease ends the process.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import os
import platform
import time
import uuid

import structlog

from .kube import Kube, KubeError, Object, Ref

log = structlog.get_logger(__name__)

_API = "coordination.k8s.io/v1"
#: Parts of the Lease's duration: between two tries, and until a holder that could not renew gives up.
_PAUSE, _GIVE_UP = 1 / 6, 2 / 3


class LeaseLost(Exception):
    """This process does not hold the Lease any more, or cannot know whether it does."""


class Leader:
    """``acquire`` returns when this process leads; ``hold`` then keeps it so, and raises LeaseLost at its end."""

    def __init__(self, kube: Kube, namespace: str, name: str, duration: float, identity: str = "") -> None:
        self._kube, self._ref = kube, Ref(_API, "Lease", namespace, name)
        self._duration = duration
        self.identity = identity or f"{os.environ.get('POD_NAME') or platform.node()}_{uuid.uuid4().hex[:8]}"
        self._seen = ""
        self._seen_at = 0.0
        self._renewed = -math.inf

    def holds(self) -> bool:
        """Whether nobody else can hold it now: also true to a process that was stopped for a while and goes on."""
        return _clock() - self._renewed < self._duration * _GIVE_UP

    async def acquire(self) -> None:
        """Wait for the Lease."""
        told = ""
        while True:
            started = _clock()
            try:
                holder = await self._try()
            except KubeError as error:
                holder = f"nobody knows ({error})"
            if holder == self.identity:
                self._renewed = started
                log.info("this replica leads", lease=str(self._ref), identity=self.identity)
                return
            if holder != told:
                told = holder
                log.info("standing by", lease=str(self._ref), holder=holder)
            await asyncio.sleep(self._duration * _PAUSE)

    async def hold(self) -> None:
        """Renew for as long as that goes well. Raises LeaseLost."""
        while True:
            await asyncio.sleep(self._duration * _PAUSE)
            try:
                started = _clock()
                # a try that hangs must not outlast the Lease, however late it began
                async with asyncio.timeout(self._renewed + self._duration * _GIVE_UP - started):
                    holder = await self._try()
            except (KubeError, TimeoutError) as error:
                log.warning("the Lease could not be renewed", error=str(error) or type(error).__name__)
            else:
                if holder != self.identity:
                    raise LeaseLost(f"{holder} holds {self._ref} now")
                self._renewed = started
            if not self.holds():
                raise LeaseLost(f"{self._ref} could not be renewed for {self._duration * _GIVE_UP:.0f} s")

    async def release(self) -> None:
        """Give it back at once, at a clean end."""
        try:
            lease = await self._kube.get(self._ref)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                await self._write(lease, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except KubeError as error:
            log.warning("the Lease ends by itself", seconds=self._duration, error=str(error))

    async def _try(self) -> str:
        """Take or renew it where possible; who holds it then."""
        lease = await self._kube.get(self._ref)
        if lease is None:
            made = await self._kube.create(self._new())
            return self.identity if made is not None else "another replica"
        spec = lease["spec"]
        holder = str(spec.get("holderIdentity") or "")
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen:
            self._seen, self._seen_at = version, _clock()
        over = _clock() - self._seen_at > float(spec.get("leaseDurationSeconds") or self._duration)
        if holder not in ("", self.identity) and not over:
            return holder
        changes: Object = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._duration),
            "renewTime": _now(),
        }
        if holder != self.identity:
            changes |= {"acquireTime": _now(), "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        try:
            written = await self._write(lease, changes)
        except KubeError as error:
            if error.status == 409:
                return "another replica"
            raise
        self._seen, self._seen_at = written["metadata"]["resourceVersion"], _clock()
        return self.identity

    async def _write(self, lease: Object, changes: Object) -> Object:
        # with the version that was read: of two who try at once, one is refused
        metadata = {"resourceVersion": lease["metadata"]["resourceVersion"]}
        return await self._kube.patch(self._ref, {"metadata": metadata, "spec": changes})

    def _new(self) -> Object:
        return {
            "apiVersion": _API,
            "kind": "Lease",
            "metadata": {"name": self._ref.name, "namespace": self._ref.namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": math.ceil(self._duration),
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }


def _clock() -> float:
    """Seconds of a clock that also counts while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
