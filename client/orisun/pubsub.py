"""Messages between whoever is connected: nothing is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orisun_api import eventstore_pb2 as pb

from .calls import Calls, Opened
from .streaming import LiveStream


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a subject."""

    message_id: str
    subject: str
    data: str
    metadata: str

    def json(self) -> Any:
        """The data as JSON; raises ValueError when it is none."""
        return json.loads(self.data)


class Messages(LiveStream[Message]):
    """The messages of a subject; see ``Client.messages``."""

    def __init__(self, calls: Calls, subject: str, consumer: str) -> None:
        super().__init__(calls)
        self.subject, self.consumer = subject, consumer

    def _what(self) -> str:
        return f'messages of "{self.subject}"'

    async def _open(self) -> Opened:
        request = pb.SubscribeRequest(subject=self.subject, consumer_name=self.consumer)
        return await self._calls.stream("SubscribeToPubSub", request)

    def _accept(self, message: pb.PubSubMessage) -> Message:
        return Message(message.id, message.subject, message.data, message.metadata)
