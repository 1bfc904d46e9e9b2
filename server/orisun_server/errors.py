"""One exception per thing that can go wrong, each with the gRPC status that it travels as.

An exception's default message is its docstring. Messages name the value and the field that was wrong and never carry
payloads or secrets. Nothing here imports grpc: the transport maps ``Status`` to wire codes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Status(enum.Enum):
    """The gRPC status codes that the server answers with (names as in the gRPC specification)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class OrisunError(Exception):
    """The server could not do what was asked."""

    status = Status.INTERNAL
    #: Machine-readable reason of a ``google.rpc.ErrorInfo`` detail; "" sends no detail.
    reason = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def info(self) -> Mapping[str, str]:
        """Metadata of the ``google.rpc.ErrorInfo`` detail."""
        return {}

    @property
    def public(self) -> str:
        """What clients are told; logs get ``str(error)``."""
        return str(self)


class InvalidArgument(OrisunError):
    """The request is not valid."""

    status = Status.INVALID_ARGUMENT


class NotFound(OrisunError):
    """There is no such thing."""

    status = Status.NOT_FOUND


class AlreadyExists(OrisunError):
    """There is one of that name already."""

    status = Status.ALREADY_EXISTS


class FailedPrecondition(OrisunError):
    """The state of the server does not allow this."""

    status = Status.FAILED_PRECONDITION


class PermissionDenied(OrisunError):
    """user does not have a role required for this operation"""

    status = Status.PERMISSION_DENIED


class Unauthenticated(OrisunError):
    """invalid credentials"""

    status = Status.UNAUTHENTICATED


class ResourceExhausted(OrisunError):
    """A limit of the server is reached; try again later."""

    status = Status.RESOURCE_EXHAUSTED


class OutOfRange(OrisunError):
    """The position lies beyond the head of the boundary."""

    status = Status.OUT_OF_RANGE


class Unimplemented(OrisunError):
    """This server does not support that yet."""

    status = Status.UNIMPLEMENTED


class Unavailable(OrisunError):
    """The server cannot answer now; try again."""

    status = Status.UNAVAILABLE


class StorageUnavailable(Unavailable):
    """PostgreSQL cannot be reached now. The message names its address and is for logs; clients are not told it."""

    @property
    def public(self) -> str:
        return "PostgreSQL is not available now; try again"


class StorageSilent(StorageUnavailable):
    """PostgreSQL answers nothing, not even to a new connection: a partition, or a machine that was frozen."""

    @property
    def public(self) -> str:
        return "PostgreSQL does not answer now; try again"


class BoundaryNotActive(FailedPrecondition):
    """The boundary is unknown to the catalog or not active yet."""

    def __init__(self, boundary: str) -> None:
        super().__init__(f'boundary "{boundary}" is not active')


class ContextChanged(AlreadyExists):
    """The latest event of the command's context is not the one that the command decided on.

    The text is part of the contract: clients parse both positions out of it.
    """

    reason = "CONTEXT_CHANGED"

    def __init__(self, expected: tuple[int, int], actual: tuple[int, int]) -> None:
        self.expected, self.actual = expected, actual
        super().__init__(
            "OptimisticConcurrencyException:StreamVersionConflict: "
            f"Expected ({expected[0]}, {expected[1]}), Actual ({actual[0]}, {actual[1]})"
        )

    @property
    def info(self) -> Mapping[str, str]:
        return {
            "expected_transaction_id": str(self.expected[0]),
            "expected_global_id": str(self.expected[1]),
            "actual_transaction_id": str(self.actual[0]),
            "actual_global_id": str(self.actual[1]),
        }


class DuplicateEventId(AlreadyExists):
    """An event id is stored already, with other content or by another call."""

    reason = "DUPLICATE_EVENT_ID"

    def __init__(self, index: int, event_id: str) -> None:
        self.index, self.event_id = index, event_id
        super().__init__(
            f'DuplicateEventId: event {index} event_id: "{event_id}" is stored already with other content or by '
            "another call; repeat a call unchanged, or give new events new ids"
        )

    @property
    def info(self) -> Mapping[str, str]:
        return {"event_index": str(self.index), "event_id": self.event_id}


class Deadlock(OrisunError):
    """Transactions waited for each other in a circle, and this one was ended: roll back and run it again."""

    status = Status.ABORTED


class SchemaMismatch(FailedPrecondition):
    """The schema in PostgreSQL does not fit this server."""
