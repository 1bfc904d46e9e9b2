"""The one object that the parts of a server tell what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ..core.append import CheckedEvent, Context
from ..core.criteria import Criterion
from ..core.event import Event
from ..core.position import Position
from ..errors import ContextChanged, OrisunError
from .metrics import Metrics, RpcMetrics
from .queries import QueryLog
from .tracing import Tracing, enter

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: Calls of a flush whose criteria are looked at for a missing index; a sample is enough.
_SAMPLE = 2


class FlushedCall(Protocol):
    """What of a waiting SaveEvents is looked at."""

    @property
    def events(self) -> Sequence[CheckedEvent]: ...
    @property
    def context(self) -> Context | None: ...
    @property
    def answer(self) -> asyncio.Future[Position]: ...
    @property
    def problem(self) -> Exception | None: ...
    @property
    def span(self) -> Span | None: ...


class Watch:
    """Counts, remembers slow queries, makes spans."""

    def __init__(
        self, metrics: Metrics | None = None, queries: QueryLog | None = None, tracing: Tracing | None = None
    ) -> None:
        self.metrics, self.queries, self.tracing = metrics or Metrics(), queries or QueryLog(), tracing or Tracing()

    def call(self, rpc: RpcMetrics, context: Any) -> WatchedCall:
        """``with`` around a call of an rpc (``metrics.rpc``); ``context`` is gRPC's, asked for its metadata only while
        something is traced."""
        return WatchedCall(self.tracing, rpc, context)

    def flush(
        self, boundary: str, calls: Sequence[FlushedCall], is_indexed: Callable[[Criterion], bool]
    ) -> WatchedFlush:
        """``with`` around a flush of these calls, which are answered within it."""
        return WatchedFlush(self, boundary, calls, is_indexed)

    def publish(self, boundary: str, events: Sequence[Event]) -> WatchedPublish:
        """``with`` around the publishing of these events."""
        return WatchedPublish(self, boundary, events)

    def read(self, boundary: str, kind: str, criteria: Iterable[tuple[Criterion, bool]], started: float) -> None:
        """A read of these criteria, each with whether an index served it, began at that ``perf_counter``."""
        seconds = perf_counter() - started
        self.metrics.boundaries[boundary].reads[kind].observe(seconds)
        self.queries.note(boundary, kind, criteria, seconds)


class WatchedCall:
    """One rpc; ``failed`` tells its status where that is not OK."""

    __slots__ = ("_context", "_rpc", "_span", "_started", "_status", "_tracing")

    def __init__(self, tracing: Tracing, rpc: RpcMetrics, context: Any) -> None:
        self._tracing, self._rpc, self._context = tracing, rpc, context
        self._status = ""
        self._span: Span | None = None

    def failed(self, status: str) -> None:
        self._status = status

    def __enter__(self) -> WatchedCall:
        rpc = self._rpc
        rpc.running += 1
        if self._tracing.tracer is not None:
            self._span = self._tracing.begin_call(rpc.name, self._context.invocation_metadata())
            enter(self._span)
        self._started = perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        rpc = self._rpc
        rpc.running -= 1
        rpc.seconds.observe(perf_counter() - self._started)
        status = self._status
        if not status and kind is None:
            rpc.ok += 1
        else:
            rpc.other[status or "CANCELLED"] += 1
        if self._span is not None:
            self._tracing.end_call(self._span, status or ("OK" if kind is None else "CANCELLED"))


class WatchedFlush:
    """One flush of group commit."""

    __slots__ = ("_boundary", "_calls", "_is_indexed", "_span", "_started", "_watch")

    def __init__(
        self, watch: Watch, boundary: str, calls: Sequence[FlushedCall], is_indexed: Callable[[Criterion], bool]
    ) -> None:
        self._watch, self._boundary, self._calls, self._is_indexed = watch, boundary, calls, is_indexed
        self._span: Span | None = None

    def __enter__(self) -> None:
        tracing = self._watch.tracing
        if tracing.tracer is not None:
            parents: list[Span] = []
            for call in self._calls:
                if call.span is not None:
                    parents.append(call.span)
                    # before they are stored: whoever publishes them knows it when they are
                    tracing.remember(self._boundary, (checked.event.event_id for checked in call.events), call.span)
            self._span = tracing.begin(
                "orisun flush",
                parents,
                {"db.system.name": "postgresql", "orisun.boundary": self._boundary, "orisun.calls": len(self._calls)},
            )
        self._started = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        seconds = perf_counter() - self._started
        counts = self._watch.metrics.boundaries[self._boundary]
        counts.commit_seconds.observe(seconds)
        counts.flush_calls.observe(len(self._calls))
        events = 0
        for call in self._calls:
            answer = call.answer
            if isinstance(call.problem, ContextChanged):
                counts.conflicts += 1
            elif call.problem is not None:
                counts.failures += 1
            elif answer.done() and not answer.cancelled():
                counts.appends += 1
                events += len(call.events)
        # of a group that PostgreSQL refuses for one event's content, the others are flushed again
        if kind is not None and (len(self._calls) == 1 or isinstance(error, OrisunError)):
            counts.failures += sum(call.problem is None and not call.answer.done() for call in self._calls)
        counts.events += events
        counts.flush_events.observe(events)
        if kind is None:
            self._note(seconds)
        if self._span is not None:
            self._span.set_attribute("orisun.events", events)
            self._span.end()

    def _note(self, seconds: float) -> None:
        for call in self._calls[:_SAMPLE]:
            if call.context is not None and call.context.query:
                found = [(criterion, self._is_indexed(criterion)) for criterion in call.context.query[:_SAMPLE]]
                self._watch.queries.note(self._boundary, "append", found, seconds)


class WatchedPublish:
    """One batch of a publisher; ``origins`` are the ``traceparent`` headers of its events, by event id."""

    __slots__ = ("_boundary", "_events", "_span", "_started", "_watch", "origins")

    def __init__(self, watch: Watch, boundary: str, events: Sequence[Event]) -> None:
        self._watch, self._boundary, self._events = watch, boundary, len(events)
        self._span: Span | None = None
        self.origins = watch.tracing.origins(boundary, (event.event_id for event in events))

    def __enter__(self) -> WatchedPublish:
        if self.origins:
            self._span = self._watch.tracing.begin_publish(self._boundary, self._events, self.origins.values())
        self._started = perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        counts = self._watch.metrics.boundaries[self._boundary]
        if kind is None:
            counts.publish_seconds.observe(perf_counter() - self._started)
            counts.publish_events.observe(self._events)
            counts.published += self._events
        if self._span is not None:
            if kind is not None:
                self._span.set_attribute("error.type", kind.__qualname__)
            self._span.end()
