"""Spans: one for a traced call, one for the flush that stored its events, one for the batch that published them.

Off (``tracer`` None) it costs the look at one attribute. Calls whose client sent a sampled ``traceparent`` are traced,
and of the others a few: of both so many a second at most, so that the cost has a bound whatever the load and whatever
clients ask for. Spans come from OpenTelemetry's SDK,
which is imported only when a collector answers (telemetry/otlp.py).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

#: Links of one flush or batch.
_MOST_LINKS = 32
#: Events whose origin is remembered until they are published; of one call, and the characters of their ids.
_MOST_REMEMBERED, _MOST_OF_CALL, _MOST_CHARACTERS = 10_000, 100, 10_000

#: The span of the call that runs in this context.
_current: ContextVar[Span | None] = ContextVar("orisun_span", default=None)


class Origin(NamedTuple):
    """Events that a traced call appends, and its span as ``traceparent`` writes it."""

    boundary: str
    event_ids: list[str]
    traceparent: Annotated[str, msgspec.Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")]


def current_span() -> Span | None:
    """The span of the call that runs now, None when it is not traced."""
    return _current.get()


class _Rate:
    """So many a second on average, as many at once at most."""

    def __init__(self, per_second: float) -> None:
        self._per_second, self._most = per_second, max(per_second, 1.0) if per_second > 0 else 0.0
        self._credit, self._at = self._most, time.monotonic()

    def takes(self) -> bool:
        """Whether one more may be now."""
        now = time.monotonic()
        self._credit = min(self._most, self._credit + (now - self._at) * self._per_second)
        self._at = now
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class Tracing:
    """Makes spans while there is a ``tracer``."""

    def __init__(self, traces_per_second: float = 10.0, client_traces_per_second: float = 100.0) -> None:
        """Most traces a second that begin here, and that clients ask for."""
        self.tracer: Tracer | None = None
        self._own, self._clients = _Rate(traces_per_second), _Rate(client_traces_per_second)
        self._origins: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._listeners: list[Callable[[Origin], None]] = []

    @property
    def active(self) -> bool:
        return self.tracer is not None

    def begin_call(self, rpc: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> Span | None:
        """The span of a call, or None when it is not traced. ``end_call`` ends it."""
        if self.tracer is None:
            return None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation import get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {key: str(value) for key, value in metadata or () if key in (TRACEPARENT, TRACESTATE)}
        context = None
        if carrier:
            context = TraceContextTextMapPropagator().extract(carrier)
            parent = get_current_span(context).get_span_context()
            if parent.is_valid and not parent.trace_flags.sampled:
                return None
            if not parent.is_valid:
                context = None
        if not (self._own if context is None else self._clients).takes():
            return None
        service, _, method = rpc.rpartition("/")
        return self.tracer.start_span(
            rpc,
            context=context,
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )

    @staticmethod
    def end_call(span: Span, status: str) -> None:
        """``status`` is the name of the gRPC status."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("rpc.grpc.status", status)
        if status in ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"):
            span.set_status(Status(StatusCode.ERROR, status))
        span.end()

    def begin(self, name: str, parents: list[Span], attributes: Mapping[str, Any]) -> Span | None:
        """A span below the first of the parents that links to the others; None when there are none."""
        if self.tracer is None or not parents:
            return None
        from opentelemetry.trace import Link, set_span_in_context

        links = [Link(parent.get_span_context()) for parent in parents[1 : _MOST_LINKS + 1]]
        return self.tracer.start_span(
            name, context=set_span_in_context(parents[0]), links=links, attributes=dict(attributes)
        )

    def on_origin(self, listener: Callable[[Origin], None]) -> None:
        """Calls ``listener(origin)`` when events of a traced call are about to be stored."""
        self._listeners.append(listener)

    def remember(self, boundary: str, event_ids: Iterable[str], span: Span) -> None:
        """These events come from this call; of a large one, the first are remembered."""
        kept: list[str] = []
        room = _MOST_CHARACTERS
        for event_id in islice(event_ids, _MOST_OF_CALL):
            room -= len(event_id)
            if room < 0:
                break
            kept.append(event_id)
        origin = Origin(boundary, kept, traceparent_of(span))
        self.learn(origin)
        for listener in self._listeners:
            listener(origin)

    def learn(self, origin: Origin) -> None:
        """What this server or another one remembers."""
        for event_id in origin.event_ids:
            self._origins[origin.boundary, event_id] = origin.traceparent
        while len(self._origins) > _MOST_REMEMBERED:
            self._origins.popitem(last=False)

    def origins(self, boundary: str, event_ids: Iterable[str]) -> dict[str, str]:
        """The ``traceparent`` of the calls that events came from, by event id, as far as it is remembered."""
        if not self._origins:
            return {}
        found = ((event_id, self._origins.pop((boundary, event_id), None)) for event_id in event_ids)
        return {event_id: traceparent for event_id, traceparent in found if traceparent is not None}

    def begin_publish(self, boundary: str, events: int, origins: Iterable[str]) -> Span | None:
        """The span of a batch, below the first of the calls whose events it publishes, linked to the others."""
        if self.tracer is None:
            return None
        from opentelemetry.trace import Link, SpanKind
        from opentelemetry.trace.propagation import get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        extract = TraceContextTextMapPropagator().extract
        contexts = [extract({TRACEPARENT: origin}) for origin in dict.fromkeys(origins)][: _MOST_LINKS + 1]
        if not contexts:
            return None
        return self.tracer.start_span(
            "orisun publish",
            context=contexts[0],
            kind=SpanKind.PRODUCER,
            links=[Link(get_current_span(context).get_span_context()) for context in contexts[1:]],
            attributes={
                "messaging.system": "nats",
                "messaging.operation.name": "publish",
                "messaging.batch.message_count": events,
                "orisun.boundary": boundary,
            },
        )


def traceparent_of(span: Span) -> str:
    """The span as W3C Trace Context's header writes it."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def enter(span: Span | None) -> None:
    """From now on, in this task, calls are of this span."""
    _current.set(span)
