"""``make run`` in a terminal, with the commands that it tells to try next, as a newcomer goes about it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import grpc
import psutil
import pytest

from tests.contract.examples import Reflected, grpcurl, parse
from tests.harness import free_port
from tests.integration.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.fault

ROOT = Path(__file__).parents[2]


async def shell(command: str, program: Path | None) -> str:
    """What a command prints that one types in another terminal; ``program`` is the grpcurl that it may call."""
    path = [str(program.parent)] if program else []
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-ec", command), cwd=ROOT, env={**os.environ, "PATH": ":".join([*path, os.environ["PATH"]])},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()
    return output.decode()


def to_try_next(shown: str) -> tuple[str, str]:
    """The two commands, as printed: one saves an event, one reads."""
    said = shown.partition("Try next, in another terminal:\n")[2].partition("\nCtrl-C stops")[0]
    save, read = said.strip().split("\n\n")
    return save, read


async def test_a_fresh_clone_makes_its_environment_from_the_lock_file_first(tmp_path: Path) -> None:
    """What make would do there; that it works is what .ci/run begins with, on a clean clone."""
    if shutil.which("make") is None:
        pytest.skip("NOT TESTED: there is no make")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    said = await shell(f"make --no-print-directory -C {shlex.quote(str(tmp_path))} -n run", None)
    steps = (
        "-m venv .venv",
        "pip install .*--require-hashes -r requirements.lock",
        r"-e \.",
        "exec .venv/bin/orisun serve",
    )
    assert re.search(".*".join(steps), said, re.DOTALL), said


async def test_a_newcomers_first_steps(data_dir: Path) -> None:
    if Path(sys.prefix) != ROOT / ".venv" or shutil.which("make") is None:
        pytest.skip("NOT TESTED: make run makes .venv, and these tests do not run in it")
    program = grpcurl(data_dir)
    ports = {f"ORISUN_{name}_PORT": str(free_port()) for name in ("GRPC", "ADMIN", "NATS")}
    data = data_dir / "store"
    data.mkdir(mode=0o711)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ORISUN_", "MAKE"))}
    environ |= {**ports, "ORISUN_DATA_DIR": str(data), "ORISUN_NATS_STORE_DIR": str(data / "nats")}

    for start in ("first", "second"):
        async with Terminal("make", "run", environ=environ, directory=ROOT) as terminal:
            await terminal.shows("Ctrl-C stops all of it; the data stays.")
            for told in (
                f"gRPC       localhost:{ports['ORISUN_GRPC_PORT']}",
                f"admin page http://localhost:{ports['ORISUN_ADMIN_PORT']}",
                f"PostgreSQL embedded, data in {data}/postgres",
                f"NATS       embedded, localhost:{ports['ORISUN_NATS_PORT']}, data in {data}/nats",
            ):
                assert told in terminal.shown
            save, read = to_try_next(terminal.shown)
            assert save.startswith("grpcurl ")
            assert read.startswith(".venv/bin/python ")
            if start == "first":
                assert "user-001" not in await shell(read, None)
                if program is not None:
                    assert '"latest_global_id": "0"' in await shell(save, program)
                else:
                    (example,) = parse(save)
                    async with grpc.aio.insecure_channel(example.arguments[-2]) as channel:
                        assert (await Reflected(channel).call(example, example.body))["latest_global_id"] == "0"
            assert 'event_id: "user-001"' in await shell(read, None)

            family = terminal.family
            assert {"make", "postgres", "nats-server"} <= {process.name() for process in family}
            await terminal.press(CTRL_C)
            # make ends as a shell expects of what Ctrl-C has ended, and not before the server has stopped by itself
            assert await terminal.end() == -2
            assert "stopped " in terminal.shown.splitlines()[-1]
            assert "Traceback" not in terminal.shown
            _, alive = psutil.wait_procs(family, timeout=0)
            assert alive == []
    assert (data / "postgres.log").read_text().count("database system is shut down") == 2
