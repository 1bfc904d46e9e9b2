"""Everything that can go wrong, each as a class of its own under one root, ``OrisunError``.

Errors of the server carry its message; errors of this library say what was wrong and what to do. Messages never hold
payloads, passwords or tokens.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, ClassVar, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from .position import Position

_DETAILS = "grpc-status-details-bin"
_CONFLICT = re.compile(r"StreamVersionConflict: Expected \((-?\d+), ?(-?\d+)\), Actual \((-?\d+), ?(-?\d+)\)")


class OrisunError(Exception):
    """Root of all errors of this library; ``code`` is the name of the gRPC status, "" where no call was involved."""

    code: str = ""


class InvalidArgument(OrisunError, ValueError):
    """What was asked for makes no sense; the message names the value."""

    code = "INVALID_ARGUMENT"


class NotFound(OrisunError):
    """There is no such thing."""

    code = "NOT_FOUND"


class AlreadyExists(OrisunError):
    """There is one of that name already."""

    code = "ALREADY_EXISTS"


class Conflict(AlreadyExists):
    """The events that a decision rests on have changed: read again, decide again, append again.

    ``expected`` is the position of the append condition, ``actual`` that of the latest event that matches it now.
    """

    def __init__(self, message: str, expected: Position, actual: Position) -> None:
        super().__init__(message)
        self.expected, self.actual = expected, actual

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.expected, self.actual)


class DuplicateEventId(AlreadyExists):
    """An event id is stored already with other content, or in another call: no retry will change that."""


class SubscriberInUse(AlreadyExists):
    """The subscriber's name is taken: one subscription of a name at a time, in a boundary, over all servers."""


class FailedPrecondition(OrisunError):
    """The state of the server does not allow this, for example a boundary that is not active."""

    code = "FAILED_PRECONDITION"


class PermissionDenied(OrisunError):
    """The user has no role that may do this.

    ``roles`` are those of which one would suffice, and ``boundary`` the one that it has to hold for, "" for all of
    them or none; both empty where the server does not tell.
    """

    code = "PERMISSION_DENIED"
    roles: tuple[str, ...] = ()
    boundary: str = ""


class Unauthenticated(OrisunError):
    """User name, password or token is missing or wrong."""

    code = "UNAUTHENTICATED"


class ResourceExhausted(OrisunError):
    """A limit of the server is reached: its queue is full, or a message or page is too large."""

    code = "RESOURCE_EXHAUSTED"


class TooManyCalls(OrisunError):
    """This process has as many calls under way as it allows itself, and refuses more at once instead of queueing."""


class OutOfRange(OrisunError):
    """The position lies beyond the head of the boundary: it comes from another history, such as before a restore."""

    code = "OUT_OF_RANGE"


class Unimplemented(OrisunError):
    """The server does not know this call; it is older than this library, or another product."""

    code = "UNIMPLEMENTED"


class Unavailable(OrisunError):
    """No server could be reached, also after retries."""

    code = "UNAVAILABLE"


class DeadlineExceeded(OrisunError):
    """No answer in time. An append may have been stored: repeat it with the same events, it is never stored twice."""

    code = "DEADLINE_EXCEEDED"


class InternalError(OrisunError):
    """The server failed; its message has the number of the incident that its log tells more about."""

    code = "INTERNAL"


class ClientClosed(OrisunError):
    """The client was closed."""


class CodecError(OrisunError):
    """A payload could not be turned into JSON, or a stored event not into its payload.

    ``position`` is then that of the stored event: a read or subscription after it leaves the event out.
    """

    position: Position | None = None


_BY_CODE: dict[str, type[OrisunError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, PermissionDenied, Unauthenticated,
        ResourceExhausted, OutOfRange, Unimplemented, Unavailable, DeadlineExceeded, InternalError,
    )
}  # fmt: skip


class OtherError(OrisunError):
    """A gRPC status that this library has no class for; ``code`` names it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.code)


class Reasons:
    """``google.rpc.ErrorInfo`` reasons of the server."""

    CONTEXT_CHANGED: ClassVar[str] = "CONTEXT_CHANGED"
    DUPLICATE_EVENT_ID: ClassVar[str] = "DUPLICATE_EVENT_ID"


def of_status(code: str, message: str, reason: str = "") -> OrisunError:
    """The error that a status means; ``reason`` is that of its ``google.rpc.ErrorInfo``."""
    if code == "ALREADY_EXISTS":
        conflict = _CONFLICT.search(message)
        if conflict and reason in ("", Reasons.CONTEXT_CHANGED):
            numbers = [int(number) for number in conflict.groups()]
            return Conflict(message, Position(*numbers[:2]), Position(*numbers[2:]))
        if reason == Reasons.DUPLICATE_EVENT_ID or message.startswith("DuplicateEventId"):
            return DuplicateEventId(message)
    kind = _BY_CODE.get(code)
    return kind(message) if kind else OtherError(message, code)


def of_rpc(error: grpc.aio.AioRpcError) -> OrisunError:
    """The error that a failed call means."""
    code = error.code().name
    reason = str(_info(error).reason) if code == "ALREADY_EXISTS" else ""
    made = of_status(code, error.details() or code, reason)
    if isinstance(made, PermissionDenied):
        about = _info(error).metadata
        made.roles = tuple(about["roles"].split(", ")) if "roles" in about else ()
        made.boundary = about.get("boundary", "")
    return made


def _info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The status' ErrorInfo, an empty one when it has none."""
    info = error_details_pb2.ErrorInfo()
    trailing: Any = error.trailing_metadata() or ()  # the stubs call one pair what is a sequence of them
    for key, value in trailing:
        if key == _DETAILS:
            with contextlib.suppress(DecodeError):
                for detail in status_pb2.Status.FromString(value).details:
                    if detail.Unpack(info):
                        return info
    return error_details_pb2.ErrorInfo()


def refuse(message: str) -> NoReturn:
    """Raises InvalidArgument."""
    raise InvalidArgument(message)
