"""Exceptions as gRPC statuses: code, message and a ``google.rpc.ErrorInfo`` for machines."""

from __future__ import annotations

import secrets
import traceback
from typing import NamedTuple

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from ..errors import OrisunError, Status

#: Key of the trailing metadata that carries a serialized google.rpc.Status (gRPC's richer error model).
DETAILS = "grpc-status-details-bin"
_DOMAIN = "orisun"
# A message travels in trailing metadata, percent-encoded and once more inside the details; clients refuse metadata
# of 8 KiB and more, and a message may quote what a client sent.
_MAX_MESSAGE_BYTES = 1024
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_log = structlog.get_logger(__name__)


class Abort(NamedTuple):
    """The arguments of ``context.abort``."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def abort_of(error: Exception, rpc: str) -> Abort:
    """How an exception ends a call. What is not an OrisunError is logged with an incident id, and the client is told
    that id and nothing else."""
    if not isinstance(error, OrisunError):
        return _incident(error, rpc)
    message = _short(error.public)
    return Abort(_CODES[error.status.value], message, _details(error.status, message, error.reason, dict(error.info)))


def _incident(error: Exception, rpc: str) -> Abort:
    incident = secrets.token_hex(6)
    _log.error("unexpected error in a call", rpc=rpc, incident=incident, traceback=_traceback(error))
    message = f"internal error; the server's log tells more under incident {incident}"
    return Abort(
        grpc.StatusCode.INTERNAL, message, _details(Status.INTERNAL, message, "INTERNAL", {"incident": incident})
    )


def _traceback(error: BaseException | None) -> str:
    """Where an error and its causes were raised, without their messages: a driver's message may quote a payload."""
    parts = []
    while error is not None:
        code = getattr(error, "sqlstate", None)
        parts.append("".join(traceback.format_tb(error.__traceback__)))
        parts.append(type(error).__qualname__ + (f" (SQLSTATE {code})" if code else "") + "\n")
        error = error.__cause__ or error.__context__
    return "".join(parts)


def _details(status: Status, message: str, reason: str, info: dict[str, str]) -> tuple[tuple[str, bytes], ...]:
    if not reason:
        return ()
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(domain=_DOMAIN, reason=reason, metadata=info))
    rich = status_pb2.Status(code=status.value, message=message, details=[detail])
    return ((DETAILS, rich.SerializeToString()),)


def _short(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + " ..."
