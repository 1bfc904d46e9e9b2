"""The service orisun.EventStore, without gRPC: requests in, responses out, errors raised."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from orisun_api import eventstore_pb2 as pb

from ..core.audit import PREFIX as RESERVED_TYPES
from ..core.position import NOTHING
from ..core.users import Caller
from ..delivery.codec import encode_event, encode_events
from ..delivery.pubsub import PubSub
from ..delivery.subscription import Subscriptions
from ..errors import InvalidArgument
from ..storage.catalog import Catalog
from ..storage.group_commit import Appender
from ..storage.indexes import Indexes
from ..storage.reads import Reader
from . import convert
from .convert import Limits
from .indexes import AuditLog, IndexRpcs

if TYPE_CHECKING:
    from ..settings import Settings

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["EventStore"]
_MAX_PAGE = 10_000
_CAPABILITIES = (
    pb.SERVER_CAPABILITY_COMMAND_CONTEXT_CONSISTENCY,
    pb.SERVER_CAPABILITY_CATCH_UP_SUBSCRIPTIONS,
    pb.SERVER_CAPABILITY_INDEX_MANAGEMENT,
    pb.SERVER_CAPABILITY_BOUNDARY_CATALOG,
    pb.SERVER_CAPABILITY_GRPC_HEALTH,
)


class EventStore(IndexRpcs):
    """Append, read, follow, index, publish."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        appender: Appender,
        reader: Reader,
        indexes: Indexes,
        subscriptions: Subscriptions,
        pubsub: PubSub,
        audit: AuditLog,
        node_id: str,
    ) -> None:
        super().__init__(catalog, indexes, audit)
        self._appender = appender
        self._reader = reader
        self._subscriptions = subscriptions
        self._pubsub = pubsub
        self._limits = Limits(settings.append_max_criteria, settings.append_max_tags)
        self._admin_boundary = settings.admin_boundary
        self._check_unscoped = settings.unscoped_expected_position == "check"
        self._info = pb.GetServerInfoResponse(
            version=_version(),
            git_commit=os.environ.get("GIT_COMMIT", ""),
            build_time=os.environ.get("BUILD_TIME", ""),
            backend=pb.STORAGE_BACKEND_POSTGRES,
            node_id=node_id,
            capabilities=_CAPABILITIES,
        )

    async def save_events(self, request: pb.SaveEventsRequest, _: Caller) -> pb.WriteResult:
        if not request.events:
            raise InvalidArgument("Invalid request: no events provided")
        boundary = self._boundary(request.boundary)
        if boundary.name == self._admin_boundary:
            for number, event in enumerate(request.events):
                if event.event_type.startswith(RESERVED_TYPES):
                    raise InvalidArgument(
                        f'invalid event: event {number} event_type: "{RESERVED_TYPES}" begins types that are the'
                        " server's own"
                    )
        command = convert.command(request.command) if request.HasField("command") else None
        context = convert.context(request, self._limits, check_unscoped=self._check_unscoped)
        last = await self._appender.append(boundary, convert.new_events(request.events), context, command)
        return convert.write_result(last)

    async def get_events(self, request: pb.GetEventsRequest, _: Caller) -> bytes:
        _check_count(request.count)
        boundary = self._boundary(request.boundary)
        if request.HasField("from_position") and request.HasField("after_position"):
            raise InvalidArgument("Invalid request: give from_position or after_position, not both")
        events = await self._reader.page(
            boundary,
            convert.criteria(request.query.criteria, self._limits),
            request.count,
            descending=request.direction == pb.DESC,
            start=convert.position(request.from_position) if request.HasField("from_position") else None,
            after=convert.position(request.after_position) if request.HasField("after_position") else None,
        )
        return convert.page(list(encode_events(events)))

    async def get_latest_by_criteria(
        self, request: pb.GetLatestByCriteriaRequest, _: Caller
    ) -> pb.GetLatestByCriteriaResponse:
        boundary = self._boundary(request.boundary)
        if not request.criteria:
            raise InvalidArgument("at least one criterion is required")
        for number, criterion in enumerate(request.criteria):
            if not criterion.tags:
                raise InvalidArgument(f"criterion {number} has no tags")
        found, position = await self._reader.latest(boundary, convert.each(request.criteria, self._limits))
        return pb.GetLatestByCriteriaResponse(
            results=[
                pb.LatestCriterionResult(criterion=criterion, event=event and pb.Event.FromString(encode_event(event)))
                for criterion, event in zip(request.criteria, found, strict=True)
            ],
            context_position=convert.position_message(position),
        )

    async def catch_up_subscribe_to_events(
        self, request: pb.CatchUpSubscribeToEventStoreRequest, _: Caller
    ) -> AsyncIterator[list[bytes]]:
        boundary = self._boundary(request.boundary)
        subscription = self._subscriptions.subscribe(
            boundary,
            convert.criteria(request.query.criteria, self._limits),
            convert.position(request.after_position) if request.HasField("after_position") else None,
            convert.subscriber_name(request.subscriber_name),
        )
        async with aclosing(subscription) as events:
            async for few in events:
                yield few

    async def ping(self, _request: pb.PingRequest, _: Caller) -> pb.PingResponse:
        return pb.PingResponse()

    async def get_server_info(self, _request: pb.GetServerInfoRequest, _: Caller) -> pb.GetServerInfoResponse:
        return self._info

    async def publish_to_pub_sub(self, request: pb.PublishRequest, _: Caller) -> pb.PublishResponse:
        await self._pubsub.publish(request.subject, request.data, request.metadata)
        return pb.PublishResponse()

    async def subscribe_to_pub_sub(self, request: pb.SubscribeRequest, _: Caller) -> AsyncIterator[bytes]:
        async with aclosing(self._pubsub.subscribe(request.subject, request.consumer_name)) as messages:
            async for message in messages:
                yield message

    async def get_commands(self, request: pb.GetCommandsRequest, _: Caller) -> pb.GetCommandsResponse:
        _check_count(request.count)
        boundary = self._boundary(request.boundary)
        after = convert.position(request.after_position) if request.HasField("after_position") else NOTHING
        commands = await self._reader.commands(boundary, after, request.count)
        return pb.GetCommandsResponse(commands=map(convert.stored_command, commands))


def _check_count(count: int) -> None:
    if not count:
        raise InvalidArgument("Count cannot be 0")
    if count > _MAX_PAGE:
        raise InvalidArgument(f"Count cannot exceed {_MAX_PAGE}")


def _version() -> str:
    try:
        return version("orisun")
    except PackageNotFoundError:
        return "unknown"
