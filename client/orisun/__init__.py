"""The Python client of Orisun, an event store.

    import orisun

    async with orisun.connect("localhost:5005", username="admin", password="changeit") as client:
        accounts = client.boundary("accounts")

        about_alice = orisun.where(username="alice")
        seen = [event async for event in accounts.read(about_alice)]
        await accounts.append(
            [orisun.NewEvent("UserRegistered", {"username": "alice"})],
            condition=orisun.AppendCondition(about_alice, seen[-1].position if seen else orisun.NOTHING),
        )

        async with accounts.subscribe("mailer", orisun.where("UserRegistered")) as subscription:
            async for event in subscription:
                print(event.position, event.event_type, event.data)

What there is:

- ``connect`` -> ``Client``: ``boundary(name)``, ``admin``, ``publish``, ``messages``, ``ping``, ...
- ``Boundary``: ``append``, ``read``, ``latest``, ``subscribe``, ``decide``, ``stream``, ``commands``
- ``NewEvent``, ``Event``, ``Position``; ``where`` makes a ``Query``, ``AppendCondition`` says what an append expects
- ``Projector``, ``decide`` -> ``Decision``; ``CommandExecutor`` runs handlers of commands on them
- ``AggregateStream``: the events of one aggregate with versions; ``EventSnapshots``
- ``EventTypes``: classes, codecs and upcasters of payloads
- ``OrisunError`` is the root of all errors: ``Conflict``, ``Unavailable``, ...
- ``orisun.sync``: the same without asyncio
"""

from .admin import Admin
from .administered import ApiToken, BoundaryInfo, Index, IndexBuild, IndexCondition, IndexField, NewApiToken, User
from .boundary import Boundary
from .channels import TLS
from .client import Client, ServerInfo, connect
from .codecs import Codec, EventTypes
from .decisions import Decision, Projector, decide, project
from .errors import (
    AlreadyExists,
    ClientClosed,
    CodecError,
    Conflict,
    DeadlineExceeded,
    DuplicateEventId,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    OrisunError,
    OtherError,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    SubscriberInUse,
    TooManyCalls,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from .events import Binary, Event, NewEvent, origin
from .executor import CommandExecutor, Executed
from .ids import derived_id, new_id
from .logs import Logger, StandardLogger
from .position import NOTHING, Position
from .pubsub import Message, Messages
from .queries import EVERYTHING, AppendCondition, Criterion, Query, where
from .retries import NEVER, RetryPolicy
from .snapshots import EventSnapshots, MemorySnapshots, Snapshot, Snapshots
from .store import Command, Latest, Store, StoredCommand
from .streams import ANY, NO_STREAM, AggregateStream, Appended, Expected, Folded, VersionConflict, version_of
from .subscription import Subscription

__all__ = [
    "ANY",
    "EVERYTHING",
    "NEVER",
    "NOTHING",
    "NO_STREAM",
    "TLS",
    "Admin",
    "AggregateStream",
    "AlreadyExists",
    "ApiToken",
    "AppendCondition",
    "Appended",
    "Binary",
    "Boundary",
    "BoundaryInfo",
    "Client",
    "ClientClosed",
    "Codec",
    "CodecError",
    "Command",
    "CommandExecutor",
    "Conflict",
    "Criterion",
    "DeadlineExceeded",
    "Decision",
    "DuplicateEventId",
    "Event",
    "EventSnapshots",
    "EventTypes",
    "Executed",
    "Expected",
    "FailedPrecondition",
    "Folded",
    "Index",
    "IndexBuild",
    "IndexCondition",
    "IndexField",
    "InternalError",
    "InvalidArgument",
    "Latest",
    "Logger",
    "MemorySnapshots",
    "Message",
    "Messages",
    "NewApiToken",
    "NewEvent",
    "NotFound",
    "OrisunError",
    "OtherError",
    "OutOfRange",
    "PermissionDenied",
    "Position",
    "Projector",
    "Query",
    "ResourceExhausted",
    "RetryPolicy",
    "ServerInfo",
    "Snapshot",
    "Snapshots",
    "StandardLogger",
    "Store",
    "StoredCommand",
    "SubscriberInUse",
    "Subscription",
    "TooManyCalls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "User",
    "VersionConflict",
    "connect",
    "decide",
    "derived_id",
    "new_id",
    "origin",
    "project",
    "version_of",
    "where",
]
