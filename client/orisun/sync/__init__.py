"""The client without asyncio: the same names, arguments and errors, and methods that wait for their result.

    import orisun
    from orisun import sync

    with sync.connect("localhost:5005", username="admin", password="changeit") as client:
        accounts = client.boundary("accounts")
        accounts.append([orisun.NewEvent("UserRegistered", {"username": "alice"})])
        for event in accounts.read(orisun.where(username="alice")):
            print(event.position, event.event_type, event.data)

All clients of a process share one event loop, in a thread of its own; each object's ``aio`` is the asynchronous one it
stands for. Call a store after a fork, not before: gRPC does not survive it.
"""

from .client import (
    Admin,
    AggregateStream,
    Boundary,
    Client,
    CommandExecutor,
    connect,
    decide,
    event_snapshots,
)
from .live import Messages, Subscription

__all__ = [
    "Admin",
    "AggregateStream",
    "Boundary",
    "Client",
    "CommandExecutor",
    "Messages",
    "Subscription",
    "connect",
    "decide",
    "event_snapshots",
]
