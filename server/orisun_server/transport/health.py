"""grpc.health.v1: whether the server can serve, for load balancers and probes; needs no authentication."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2 as pb

from ..core.users import Caller
from ..errors import NotFound

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Health"]
_SERVICES = frozenset({"", "orisun.EventStore", "orisun.Admin"})
_Status = pb.HealthCheckResponse


class HealthState:
    """What the server's parts say about themselves; the application sets it.

    Storage rules: without PostgreSQL or a fitting schema nothing is served. Without delivery the server is degraded
    and still serves (design.md, 5).
    """

    def __init__(self) -> None:
        self.storage_ok = False
        self.storage_reason = "starting"
        self.delivery_ok = False
        self.delivery_reason = "starting"
        self._stopping = False
        self._changed = asyncio.Event()

    def set_storage(self, ok: bool, reason: str = "") -> None:
        """``reason`` tells people why not."""
        self.storage_ok, self.storage_reason = ok, reason
        self._notify()

    def set_delivery(self, ok: bool, reason: str = "") -> None:
        """``reason`` tells people why not."""
        self.delivery_ok, self.delivery_reason = ok, reason
        self._notify()

    def set_stopping(self) -> None:
        """From now on not serving, whatever the parts say."""
        self._stopping = True
        self._notify()

    @property
    def serving(self) -> bool:
        return self.storage_ok and not self._stopping

    @property
    def degraded(self) -> bool:
        """Whether the server serves without live delivery."""
        return self.serving and not self.delivery_ok

    async def changed(self) -> None:
        """Waits for the next change."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Health:
    """The service grpc.health.v1.Health."""

    def __init__(self, state: HealthState) -> None:
        self._state = state

    async def check(self, request: pb.HealthCheckRequest, _: Caller) -> pb.HealthCheckResponse:
        if request.service not in _SERVICES:
            raise NotFound("unknown service")
        return _Status(status=self._status())

    async def list(self, _request: pb.HealthListRequest, _: Caller) -> pb.HealthListResponse:
        return pb.HealthListResponse(statuses={name: _Status(status=self._status()) for name in _SERVICES})

    async def watch(self, request: pb.HealthCheckRequest, _: Caller) -> AsyncIterator[pb.HealthCheckResponse]:
        """The status now and after every change; an unknown service is SERVICE_UNKNOWN, as the protocol asks."""
        told = None
        while True:
            # The state may change while a response is being sent: wait on what was there before it was read.
            changed = asyncio.ensure_future(self._state.changed())
            try:
                status = self._status() if request.service in _SERVICES else _Status.SERVICE_UNKNOWN
                if status != told:
                    told = status
                    yield _Status(status=status)
                await changed
            finally:
                changed.cancel()

    def _status(self) -> pb.HealthCheckResponse.ServingStatus.ValueType:
        return _Status.SERVING if self._state.serving else _Status.NOT_SERVING
