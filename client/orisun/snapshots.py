"""Snapshots: states kept so that not every event has to be read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from .codecs import Codec, codec_of
from .errors import CodecError, refuse
from .events import NewEvent
from .jsontext import dumps, loads_object
from .position import Position
from .queries import where
from .store import Store

S = TypeVar("S")

#: The type of the events that hold snapshots.
SNAPSHOT_TAKEN = "SnapshotTaken"


@dataclass(frozen=True)
class Snapshot(Generic[S]):
    """A state, and the event that it is as of."""

    #: What it is the state of, such as ``User/42``.
    key: str
    state: S
    #: The version of that event in its stream.
    version: int
    position: Position


class Snapshots(Protocol[S]):
    """Where snapshots are kept. They are a shortcut, never the truth: they may be lost, or be thrown away."""

    async def load(self, key: str) -> Snapshot[S] | None:
        """The latest snapshot, None when there is none that can be used."""

    async def save(self, snapshot: Snapshot[S]) -> None:
        """Keep a snapshot."""


class MemorySnapshots(Generic[S]):
    """Snapshots in this process' memory, at most ``most``: the one that was not used for the longest time goes.

    States are kept as they are: ``apply`` must not change them in place.
    """

    def __init__(self, most: int = 10_000) -> None:
        if most < 1:
            refuse(f"{most} snapshots are none; give 1 or more")
        self._most = most
        self._kept: dict[str, Snapshot[S]] = {}

    async def load(self, key: str) -> Snapshot[S] | None:
        """See ``Snapshots.load``."""
        snapshot = self._kept.pop(key, None)
        if snapshot is not None:
            self._kept[key] = snapshot  # a dict is in the order of insertion: last is latest
        return snapshot

    async def save(self, snapshot: Snapshot[S]) -> None:
        """See ``Snapshots.save``."""
        self._kept.pop(snapshot.key, None)
        self._kept[snapshot.key] = snapshot
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]


class EventSnapshots(Generic[S]):
    """Snapshots as events of type ``SnapshotTaken``, best in a boundary of their own, which subscriptions do not see.

    ``kind`` is the class of the states (a dataclass, pydantic model or msgspec struct), None for whatever JSON has a
    form for. Change ``schema`` when the states' form or ``apply`` changes: snapshots of another schema are not used. An
    index over ``snapshot`` makes loading cheap.
    """

    def __init__(
        self, store: Store, kind: type[S] | None = None, *, schema: int = 1, codec: Codec | None = None
    ) -> None:
        self._store, self._schema = store, schema
        self._codec = codec or (codec_of(kind) if kind is not None else None)

    async def load(self, key: str) -> Snapshot[S] | None:
        """See ``Snapshots.load``. Raises CodecError for a state that does not fit ``kind``: raise ``schema`` then."""
        event = (await self._store.latest(where(SNAPSHOT_TAKEN, snapshot=key, snapshot_schema=self._schema))).event
        if event is None:
            return None
        fields = event.fields
        state: Any = fields["state"]
        if self._codec is not None:
            try:
                state = self._codec.decode(dumps(state))
            except Exception as error:
                raise CodecError(
                    f'the snapshot of "{key}" at {event.position} does not fit its class ({type(error).__name__}); '
                    f"give a schema other than {self._schema}, which leaves snapshots of this one out"
                ) from error
        return Snapshot(key, state, fields["version"], Position(*fields["position"]))

    async def save(self, snapshot: Snapshot[S]) -> None:
        """See ``Snapshots.save``."""
        state: Any = snapshot.state
        if self._codec is not None:
            state = loads_object(self._codec.encode(state))
        data = {
            "snapshot": snapshot.key,
            "snapshot_schema": self._schema,
            "state": state,
            "version": snapshot.version,
            "position": list(snapshot.position),
        }
        await self._store.append([NewEvent(SNAPSHOT_TAKEN, data)])
