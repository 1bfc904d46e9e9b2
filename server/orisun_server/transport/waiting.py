"""What the port answers while the server waits for PostgreSQL or its schema: NOT_SERVING, and UNAVAILABLE to calls."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

from orisun_api import admin_pb2, eventstore_pb2

from ..core.users import Caller, Session
from ..errors import Unavailable
from .calls import Service
from .health import HealthState
from .server import GrpcServer

if TYPE_CHECKING:
    from ..settings import Settings

#: Seconds that refused calls get to be told so before the port changes hands.
_GRACE = 1.0


class _NotYet:
    """A servicer whose every rpc says why the server cannot answer yet."""

    def __init__(self, state: HealthState) -> None:
        self._state = state

    def __getattr__(self, _: str) -> Any:
        async def refuse(_request: object, _caller: Caller) -> NoReturn:
            raise Unavailable("the server is starting: PostgreSQL or its schema is not ready; try again")

        return refuse


class _Nobody:
    """Nobody can be authenticated before the users can be read."""

    async def authenticate(self, authorization: str | None, token: str | None, *_: object) -> Session:
        raise Unavailable("the server is starting: PostgreSQL or its schema is not ready; try again")

    def is_valid(self, caller: Caller) -> bool:
        return False


@contextlib.asynccontextmanager
async def waiting_server(settings: Settings, state: HealthState) -> AsyncIterator[None]:
    """Serves health alone, on the server's own port, until the context ends."""
    servicer = _NotYet(state)
    services = [
        Service(eventstore_pb2.DESCRIPTOR.services_by_name["EventStore"], servicer),
        Service(admin_pb2.DESCRIPTOR.services_by_name["Admin"], servicer),
    ]
    server = GrpcServer(settings, services, _Nobody(), state)
    await server.start()
    try:
        yield
    finally:
        await server.close(_GRACE)
