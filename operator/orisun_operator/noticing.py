"""What Kopf tells of the resources, held against what the API server has.

Kopf's watches may hang without a word: a connection that is dead on one side only, a task that waits for ever. So the
resources are listed now and then. What Kopf has not told of is reconciled all the same, and when it goes on like that,
``problem`` says so, for /healthz: the kubelet then starts the process anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .api import API_VERSION
from .kube import Kube, KubeError
from .work import Key, WorkQueue

#: Plural to kind.
KINDS: Mapping[str, str] = {"orisunclusters": "OrisunCluster", "boundaries": "Boundary", "eventindexes": "EventIndex"}
#: What of an object's metadata asks for a reconcile when it changes; its status is our own doing.
_MARKS = ("generation", "deletionTimestamp", "finalizers", "annotations", "labels")


class _Told(NamedTuple):
    key: Key
    marks: list[Any]


class Noticed:
    """Hands on to the queue what comes, changes and goes. ``patience`` is the seconds that Kopf may be behind."""

    def __init__(self, queue: WorkQueue, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._patience, self._clock = queue, patience, clock
        self._told: dict[str, _Told] = {}
        #: By uid: since when Kopf owes us news of an object, and which.
        self._owed: dict[str, tuple[float, Key]] = {}
        #: By namespace that was compared.
        self._problems: dict[str | None, str] = {}

    def tell(self, plural: str, event: Mapping[str, Any]) -> None:
        """Kopf's news of one object: it came, changed, or went."""
        metadata = event["object"]["metadata"]
        key, uid = _key(plural, metadata), metadata["uid"]
        self._owed.pop(uid, None)
        if event["type"] == "DELETED":
            self._told.pop(uid, None)
            self._queue.gone(key)
        else:
            self._take(key, metadata)

    def begin(self, namespace: str | None) -> None:
        """Kopf begins anew in a namespace, or (None) in all: everything that it finds is looked at."""
        for uid, told in list(self._told.items()):
            if namespace in (None, told.key.namespace):
                del self._told[uid]

    async def compare(self, kube: Kube, namespace: str | None) -> None:
        """List the resources of a namespace, or (None) of all. Raises KubeError: then nothing is known about Kopf.

        Where they may not be read, what is being deleted is still looked at as far as it can be.
        """
        self._problems.pop(namespace, None)
        before = {uid for uid, told in self._told.items() if namespace in (None, told.key.namespace)}
        there: dict[str, tuple[Key, Mapping[str, Any]]] = {}
        try:
            for plural, kind in KINDS.items():
                for obj in await kube.list(API_VERSION, kind, namespace):
                    there[obj["metadata"]["uid"]] = (_key(plural, obj["metadata"]), obj["metadata"])
        except KubeError as error:
            if error.status == 403:
                await self._look_at_ending(kube, namespace)
            raise
        now = self._clock()
        for uid, (key, metadata) in there.items():
            told = self._told.get(uid)
            if told is None or told.marks != _marks(metadata):
                self._owed.setdefault(uid, (now, key))
                self._queue.there(key)
            else:
                # it may have told of a change that came while the list was on its way
                self._owed.pop(uid, None)
        for uid in before - there.keys():
            # its end is not told when it falls between two watches
            if (told := self._told.pop(uid, None)) is not None:
                self._queue.gone(told.key)
        owed = {uid: one for uid, one in self._owed.items() if namespace in (None, one[1].namespace)}
        for uid in owed.keys() - there.keys():
            del self._owed[uid], owed[uid]
        since, late = min(owed.values(), default=(now, None))
        if late is not None and now - since > self._patience:
            what = f"{late.kind} {late.namespace}/{late.name}"
            self._problems[namespace] = f"Kopf has not told of {what} for {now - since:.0f} s"

    async def _look_at_ending(self, kube: Kube, namespace: str | None) -> None:
        """A namespace that ends may lose our Role before its Boundaries, which wait for us to take a finalizer off."""
        for obj in await kube.list(API_VERSION, "Boundary", namespace):
            if obj["metadata"].get("deletionTimestamp"):
                self._queue.there(_key("boundaries", obj["metadata"]))

    def problem(self) -> str:
        """What the last comparisons found; "" when Kopf keeps up."""
        return next(iter(list(self._problems.values())), "")

    def _take(self, key: Key, metadata: Mapping[str, Any]) -> None:
        told = self._told.get(metadata["uid"])
        marks = _marks(metadata)
        if told is None or told.marks != marks:
            self._told[metadata["uid"]] = _Told(key, marks)
            self._queue.there(key)


def _key(plural: str, metadata: Mapping[str, Any]) -> Key:
    return Key(plural, metadata["namespace"], metadata["name"])


def _marks(metadata: Mapping[str, Any]) -> list[Any]:
    return [metadata.get(field) for field in _MARKS]
