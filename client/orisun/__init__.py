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

- ``connect`` -> ``Client``: ``boundary(name)``, ``ping``, ``server_info``, ``close``
- ``Boundary``: ``append``, ``read``, ``latest``, ``subscribe``
- ``NewEvent``, ``Event``, ``Position``; ``where`` makes a ``Query``, ``AppendCondition`` says what an append expects
- ``EventTypes``: classes, codecs and upcasters of payloads
- ``OrisunError`` is the root of all errors: ``Conflict``, ``Unavailable``, ...
"""

from .boundary import Boundary
from .channels import TLS
from .client import Client, ServerInfo, connect
from .codecs import Codec, EventTypes
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
from .ids import derived_id, new_id
from .position import NOTHING, Position
from .queries import EVERYTHING, AppendCondition, Criterion, Query, where
from .retries import NEVER, RetryPolicy
from .store import Command, Latest, Store
from .subscription import Subscription

__all__ = [
    "EVERYTHING",
    "NEVER",
    "NOTHING",
    "TLS",
    "AlreadyExists",
    "AppendCondition",
    "Binary",
    "Boundary",
    "Client",
    "ClientClosed",
    "Codec",
    "CodecError",
    "Command",
    "Conflict",
    "Criterion",
    "DeadlineExceeded",
    "DuplicateEventId",
    "Event",
    "EventTypes",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "Latest",
    "NewEvent",
    "NotFound",
    "OrisunError",
    "OtherError",
    "OutOfRange",
    "PermissionDenied",
    "Position",
    "Query",
    "ResourceExhausted",
    "RetryPolicy",
    "ServerInfo",
    "Store",
    "SubscriberInUse",
    "Subscription",
    "TooManyCalls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "connect",
    "derived_id",
    "new_id",
    "origin",
    "where",
]
