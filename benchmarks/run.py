"""``python -m benchmarks.run``: measures, and writes benchmarks/README.md."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

from . import machine
from .bench import InProcess, OverTheWire, transport_alone
from .generator import VARIABLE, Generator
from .parts import BACKLOG, BIG, SMALL, Directory, Parts
from .report import render
from .results import Results
from .scenarios import appends, batches, growth, live, memory, publishing, reads
from .sizes import FULL, QUICK, Sizes
from .store import Store

TRANSPORTS = ("native", "grpcio")
README = Path(__file__).with_name("README.md")

_IN_PROCESS: dict[str, Callable[[InProcess], Awaitable[None]]] = {
    "growth": growth.in_process,
    "publisher": publishing.publisher,
}
_OVER_THE_WIRE: dict[str, Callable[[OverTheWire], Awaitable[None]]] = {
    "lone": appends.lone,
    "callers": appends.callers,
    "burst": appends.burst,
    "boundaries": appends.boundaries,
    "batches": batches.batches,
    "contended": appends.contended,
    "reads": reads.reads,
    "live": live.live,
    "growth": growth.over_the_wire,
}
#: On a server that was just started.
_FRESH: dict[str, Callable[[OverTheWire], Awaitable[None]]] = {"memory": memory.memory}
_NEED_GENERATOR = ("lone", "callers", "boundaries", "batches", "contended", "reads", "live")
SCENARIOS = tuple(dict.fromkeys([*_IN_PROCESS, *_OVER_THE_WIRE, *_FRESH]))


class Run:
    """One run of all that was asked for."""

    def __init__(self, sizes: Sizes, transports: tuple[str, ...], only: tuple[str, ...], directory: Directory) -> None:
        self._sizes, self._transports, self._only, self._directory = sizes, transports, only, directory
        self.results, self.machine = Results(), dict[str, str]()
        self.interrupted = False
        self._generator: Generator | None = None
        self._began = time.monotonic()

    async def measure(self) -> None:
        """What fails is noted, and the rest goes on."""
        self._generator = Generator.find(self._directory.log("generator"))
        if self._generator is None:
            missing = [name for name in _NEED_GENERATOR if name in self._only]
            self.results.skipped += [(name, "no load generator") for name in missing]
            self._say(
                f"THE LOAD GENERATOR IS MISSING (../shared/bench, or {VARIABLE}=its directory; needs go):"
                f" left out are {', '.join(missing) or 'none of these'}",
            )
        else:
            self._say("building the load generator")
            await self._generator.build()
        self._say("loading events")
        async with Parts(self._directory) as parts:
            self.machine = await machine.describe(parts, self._directory.path)
            await parts.load(self._sizes, *self._logs())
            for name, in_process in _IN_PROCESS.items():
                await self._scenario(name, "in process", in_process, InProcess(parts, self._sizes, self.results))
        for transport in self._transports:
            await self._over(transport)
        self.machine["load at the end"] = machine.load()
        self.machine["took"] = f"{(time.monotonic() - self._began) / 60:.0f} minutes"

    def _logs(self) -> list[str]:
        """What has to be loaded; a million events take a while."""
        needed = {SMALL: ("growth",), BIG: ("growth", "reads"), BACKLOG: ("publisher",)}
        return [name for name, users in needed.items() if any(user in self._only for user in users)]

    async def _over(self, transport: str) -> None:
        log = self._directory.log(f"floor-{transport}")
        for scenarios in (_OVER_THE_WIRE, _FRESH):
            if not any(name in self._only for name in scenarios):
                continue
            try:
                async with (
                    Store(self._directory, transport) as store,
                    transport_alone(transport, self._sizes.log, log) as floor,
                ):
                    bench = OverTheWire(store, self._directory, floor, self._sizes, self.results, self._generator)
                    for name, scenario in scenarios.items():
                        if self._generator is not None or name not in _NEED_GENERATOR:
                            await self._scenario(name, transport, scenario, bench)
            except Exception as error:
                self._fail(transport, error)

    async def _scenario(
        self, name: str, transport: str, scenario: Callable[[Any], Awaitable[None]], bench: Any
    ) -> None:
        if name not in self._only:
            return
        self._say(f"{name} ({transport})")
        known = len(self.results.rows)
        try:
            async with asyncio.timeout(900):
                await scenario(bench)
        except Exception as error:
            self._fail(f"{name} ({transport})", error)
        for row in self.results.rows[known:]:
            ratio = "" if row.shown_ratio is None else f"  {row.shown_ratio:.2f}"
            verdict = {None: "", True: "  met", False: f"  MISSED (bar {row.bar})"}[row.met]
            click.echo(f"    {row.what}: {row.measured:,.2f} {row.unit}{ratio}{verdict}", err=True)

    def _fail(self, what: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        self.results.failures.append((what, reason.splitlines()[0]))
        click.echo(f"    FAILED: {type(error).__name__}: {reason}", err=True)

    def _say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._began:6.0f} s  {text}", err=True)


@click.command()
@click.option("--quick", is_flag=True, help="A smoke of about 3 minutes: small, and its figures mean nothing.")
@click.option("--transport", type=click.Choice([*TRANSPORTS, "both"]), default="both", show_default=True)
@click.option("--only", multiple=True, type=click.Choice(SCENARIOS), help="Some scenarios; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), help="Interleaved rounds, instead of 3 (1 with --quick).")
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), help="Factor on durations, instead of 0.4 (0.06).")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Instead of benchmarks/README.md.")
@click.option("--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Also write all rows here.")
@click.option("--keep", is_flag=True, help="Keep the directory of the run, with logs and data.")
def main(
    quick: bool,
    transport: str,
    only: tuple[str, ...],
    rounds: int | None,
    scale: float | None,
    output: Path | None,
    as_json: Path | None,
    keep: bool,
) -> None:
    """Measure the store next to its floors.

    A run with --quick or --only, or one that is interrupted, prints its report unless --output names a file. The exit
    status is 1 when a scenario could not be measured; a bar that is missed is shown, and fails nothing.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    # PostgreSQL's own user has to reach it
    path = Path(tempfile.mkdtemp(prefix="orisun-bench-"))
    path.chmod(0o755)
    directory = Directory(path)
    transports = TRANSPORTS if transport == "both" else (transport,)
    sizes = QUICK if quick else FULL
    sizes = dataclasses.replace(sizes, rounds=rounds or sizes.rounds, scale=scale or sizes.scale)
    run = Run(sizes, transports, only or SCENARIOS, directory)
    try:
        uvloop.run(_until_asked_to_stop(run))
    finally:
        if keep:
            click.echo(f"kept: {path}", err=True)
        else:
            shutil.rmtree(directory.postgres.resolve(), ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
    text = render(run.results, run.machine)
    if as_json:
        rows = [dataclasses.asdict(row) | {"met": row.met} for row in run.results.rows]
        as_json.write_text(json.dumps({"machine": run.machine, "rows": rows}, indent=1, default=str))
    if output is None and (quick or only or run.interrupted):
        click.echo(text)
    else:
        (output or README).write_text(text)
        click.echo(f"written: {output or README.relative_to(Path.cwd())}", err=True)
    sys.exit(1 if run.results.failures else 0)


async def _until_asked_to_stop(run: Run) -> None:
    """SIGTERM and Ctrl-C end everything that was started, and what was measured until then is reported."""
    task = asyncio.ensure_future(run.measure())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return
    run.interrupted = True
    run.results.failures.append(("the run", "was interrupted"))


if __name__ == "__main__":
    main()
