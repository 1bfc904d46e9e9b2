"""Measured values, their floors and bars, in the sections of the report."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Key: title, and what the floor of the section is and how it was measured.
SECTIONS: dict[str, tuple[str, str]] = {
    "lone": (
        "A lone append",
        "p50 of one caller without a context. Floor: the p50 of a lone prepared insert's commit plus the p50 of a unary"
        " call that does nothing, on the same transport. The second row is what a handler takes that does this insert"
        " and nothing else: no authentication, no context, no lock, no position, nothing published.",
    ),
    "callers": (
        "Single appends on distinct contexts",
        "Every append checks that its own key has no event yet. Floor: the same rows by one connection, as prepared"
        " inserts of as many rows as there are callers.",
    ),
    "burst": (
        "Appends that arrive all at once",
        "None may be refused. The client is Python's, and part of the figure. Floors: the same rows as one prepared"
        " insert; and the same client and calls against the transport alone.",
    ),
    "boundaries": (
        "Boundaries at the same time",
        "One caller on each. Floors: lone prepared inserts from as many connections; a single boundary with a single"
        " caller, in the same rounds (its bar is a quarter of linear, whatever the processors); and what all processors"
        " have room for if an append costs the CPU time that one of this single caller does (load, PostgreSQL and NATS"
        " included).",
    ),
    "batches": (
        "Batches",
        "Floor: the same rows by prepared multi-row inserts of the same size, from as many connections as callers.",
    ),
    "contended": (
        "Callers that fight for one context",
        "Each reads the latest event of the context, appends, and does so again at a conflict; successes count. Floor:"
        " the appends of a lone caller.",
    ),
    "reads": (
        "Reads",
        "GetEvents by one indexed tag that 100 events carry, and paging through the log. Floor: the transport alone,"
        " which answers with as many events at once.",
    ),
    "catch-up": (
        "Catch-up of one subscription",
        "From the beginning of the log. Floor: the transport alone, streaming the same number of serialized events.",
    ),
    "live": (
        "Live delivery",
        "From before the append to the receipt, at a steady rate. No delivery may be missing. Floor: the transport"
        " alone, which hands what is saved to its subscribers at once and stores nothing.",
    ),
    "growth": (
        "The same at a large log as at a small one",
        "p50 of single operations on both logs in turns; the floor is the small log. In process: storage alone, without"
        " gRPC.",
    ),
    "matches": (
        "A key with many matches as one with a single match",
        "p50 of single operations on both keys of the large log in turns; the floor is the key with one match.",
    ),
    "publisher": (
        "The publisher draining a backlog",
        "In process, against the run's PostgreSQL and NATS. Floor: nats-py's publish_async alone, the same messages to"
        " a stream of the same configuration.",
    ),
    "memory": (
        "Memory over a long run",
        "Resident memory of a freshly started server's Python process while events are appended and delivered, once;"
        " growth from the first tenth on.",
    ),
}


@dataclass(frozen=True)
class Bar:
    """What a row is judged by: its ratio where it has one, else the measured value."""

    limit: float
    is_minimum: bool

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.is_minimum else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.is_minimum else '≤'} {self.limit:g}"


def at_least(limit: float) -> Bar:
    return Bar(limit, is_minimum=True)


def at_most(limit: float) -> Bar:
    return Bar(limit, is_minimum=False)


@dataclass(frozen=True)
class Row:
    """One line of a section's table."""

    section: str
    what: str
    transport: str
    measured: float
    unit: str
    floor: float | None = None
    #: Measured to floor, unless ``ratio`` says what else.
    ratio: float | None = None
    bar: Bar | None = None
    #: MiB of the server's Python process afterwards.
    memory: float | None = None
    note: str = ""
    #: Errors in the measurement; then no bar is met.
    errors: int = 0

    @property
    def shown_ratio(self) -> float | None:
        if self.ratio is None and self.floor:
            return self.measured / self.floor
        return self.ratio

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        judged = self.shown_ratio
        return not self.errors and self.bar.is_met(self.measured if judged is None else judged)


@dataclass
class Results:
    """Everything that a run found out."""

    rows: list[Row] = field(default_factory=list)
    #: Scenario and reason.
    failures: list[tuple[str, str]] = field(default_factory=list)
    #: Scenarios that were left out, and why.
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def of(self, section: str) -> list[Row]:
        return [row for row in self.rows if row.section == section]
