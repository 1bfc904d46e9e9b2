"""The load generator that lies beside the project: a program in Go that needs only addresses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import BenchError
from .processes import end, spawn, tail

VARIABLE = "ORISUN_BENCH_GENERATOR"
_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "bench"
_GO = "/usr/local/go/bin"


@dataclass(frozen=True)
class Figures:
    """What the generator reports of a scenario; latencies in milliseconds."""

    ops: float
    ops_per_s: float
    events_per_s: float
    p50: float
    p95: float
    p99: float
    max: float
    errors: int
    first_error: str
    extra: Mapping[str, float]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Figures:
        return cls(
            raw["ops"],
            raw["ops_per_s"],
            raw["events_per_s"],
            raw["p50_ms"],
            raw["p95_ms"],
            raw["p99_ms"],
            raw["max_ms"],
            raw["errors"],
            raw.get("first_error", ""),
            raw.get("extra") or {},
        )

    @property
    def memory(self) -> float | None:
        """MiB of the server's process afterwards."""
        megabytes = self.extra.get("server_rss_mb")
        return megabytes * 1e6 / 2**20 if megabytes else None


class Generator:
    """Runs the generator; every scenario of it is bounded in operations and in time."""

    def __init__(self, script: Path, log: Path) -> None:
        self._script, self._log = script, log

    @classmethod
    def find(cls, log: Path) -> Generator | None:
        """The one that ORISUN_BENCH_GENERATOR names (its directory), or the one in ../shared/bench; None without."""
        directory = Path(os.environ.get(VARIABLE) or _DEFAULT)
        script = directory / "run.sh"
        has_go = shutil.which("go") or Path(_GO, "go").exists()
        return cls(script, log) if script.is_file() and has_go else None

    async def build(self) -> None:
        """Its first run builds it, which should not be measured."""
        await self._execute("-h", check=False)

    async def run(
        self,
        address: str,
        only: str,
        *,
        scale: float,
        boundary: str = "",
        preload: int | None = None,
        settle: float | None = None,
        pid: int | None = None,
    ) -> dict[str, Figures]:
        """Scenarios (``s1,s2``) against one server, by their full name. Raises BenchError when one cannot run."""
        both = await self._run(address, only, scale, boundary, preload, settle, pid)
        return {name: sides["a"] for name, sides in both.items()}

    async def compare(
        self,
        address: str,
        floor: str,
        only: str,
        *,
        rounds: int,
        scale: float,
        preload: int,
        settle: float,
        boundary: str = "",
        pid: int | None = None,
    ) -> dict[str, tuple[Figures, Figures]]:
        """The same against two servers in turns; medians of the rounds."""
        both = await self._run(
            address, only, scale, boundary, preload, settle, pid, "-b", floor, "-rounds", str(rounds)
        )
        return {name: (sides["a"], sides["b"]) for name, sides in both.items()}

    async def _run(
        self,
        address: str,
        only: str,
        scale: float,
        boundary: str,
        preload: int | None,
        settle: float | None,
        pid: int | None,
        *more: str,
    ) -> dict[str, dict[str, Figures]]:
        arguments = ["-a", address, "-only", only, "-scale", f"{scale:g}", *more]
        for flag, value in (("-boundary", boundary or None), ("-preload", preload), ("-pids-a", pid)):
            if value is not None:
                arguments += [flag, str(value)]
        if settle is not None:
            arguments += ["-settle", f"{settle:g}s"]
        document = json.loads(await self._execute(*arguments))
        results: dict[str, dict[str, Figures]] = {}
        for row in document["results"] or ():
            sides = {side: Figures.of(row[side]) for side in ("a", "b") if side in row}
            for figures in sides.values():
                if figures.errors and not figures.ops:
                    raise BenchError(f"load generator, {row['scenario']}: {figures.first_error}")
            results[row["scenario"]] = sides
        return results

    async def _execute(self, *arguments: str, check: bool = True) -> bytes:
        bash = shutil.which("bash") or "/bin/bash"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")}
        if cache := os.environ.get("ORISUN_E2E_CACHE"):
            environ["ORISUN_E2E_CACHE"] = cache
        process = await spawn([bash, str(self._script), *arguments], output=self._log, environ=environ, pipe=True)
        try:
            answer, _ = await process.communicate()
        finally:
            await end(process)
        if check and process.returncode != 0:
            raise BenchError(f"the load generator ended with {process.returncode}:\n{tail(self._log)}")
        return answer
