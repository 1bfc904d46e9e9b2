"""Results as ``benchmarks/README.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .results import SECTIONS, Results, Row

_HEAD = """\
# Benchmarks

`make bench` measures the store on this machine and writes this file: about 25 minutes, on a machine that does nothing
else. `make bench ARGS=--quick` shows in three minutes that everything runs; its figures mean nothing and are printed
only. `make bench ARGS="--only batches --transport native"` measures a part; `ARGS=--help` shows the rest.

It starts its own store (`orisun serve` with embedded PostgreSQL, fsync on, and embedded NATS, on free ports and in a
directory of its own), for each transport in turn. A load generator in Go drives most of it; it lies beside the project
in `../shared/bench`, or in the directory that `ORISUN_BENCH_GENERATOR` names. Without it, what needs it is left
out, and the report says so.

How to read the tables: the machine has few cores, and the load runs on the same ones, so the figures say little by
themselves. Each stands next to its floor, which is what the parts below the store do alone, measured in the same run
and in turns with it (A B, B A ...); medians of the rounds count. A *ratio* is measured to floor. For rates more is
better and 1 is as fast as the floor, for times (ms) less is better. *Memory after* is what the server's Python process
has resident then, without PostgreSQL and NATS.
"""
_COLUMNS = ("", "transport", "measured", "floor", "ratio", "bar", "met", "memory after", "")


def render(results: Results, machine: Mapping[str, str]) -> str:
    """The whole file."""
    parts = [_HEAD]
    if not (results.rows or results.failures or results.skipped):
        parts.append("Not measured yet: run `make bench`.\n")
        return "\n".join(parts)
    parts.append(_machine(machine))
    parts.append(_bars(results))
    for section, (title, about) in SECTIONS.items():
        rows = results.of(section)
        if rows:
            parts.append(f"## {title}\n\n{about}\n\n{_table(_COLUMNS, [_cells(row) for row in rows])}")
    return "\n".join(parts)


def _machine(machine: Mapping[str, str]) -> str:
    return "## Machine\n\n" + _table(("", ""), list(machine.items()))


def _bars(results: Results) -> str:
    """Every bar at a glance, and what is missing."""
    judged = [row for row in results.rows if row.met is not None]
    met = sum(1 for row in judged if row.met)
    lines = ["## Bars\n", f"{met} of {len(judged)} met.\n"]
    titles = {section: title for section, (title, _) in SECTIONS.items()}
    missed = [row for row in judged if not row.met]
    lines += [f"- missed: {titles[row.section]}, {row.what} ({row.transport}): {_judged(row)}" for row in missed]
    lines += [f"- failed: {scenario}: {reason}" for scenario, reason in results.failures]
    lines += [f"- left out: {scenario}: {reason}" for scenario, reason in results.skipped]
    return "\n".join(lines).rstrip() + "\n"


def _judged(row: Row) -> str:
    value = row.measured if row.shown_ratio is None else row.shown_ratio
    errors = f", {row.errors} errors" if row.errors else ""
    return f"{value:.2f}, bar {row.bar}{errors}"


def _cells(row: Row) -> tuple[str, ...]:
    notes = [row.note] if row.note else []
    if row.errors:
        notes.append(f"{row.errors} errors")
    return (
        row.what,
        row.transport,
        f"{_number(row.measured)} {row.unit}",
        "" if row.floor is None else f"{_number(row.floor)} {row.unit}",
        "" if row.shown_ratio is None else f"{row.shown_ratio:.2f}",
        "" if row.bar is None else str(row.bar),
        {None: "", True: "yes", False: "**no**"}[row.met],
        "" if row.memory is None else f"{row.memory:.0f} MiB",
        "; ".join(notes),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
