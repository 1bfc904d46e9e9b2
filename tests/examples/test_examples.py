"""Every example runs, prints no warning, and says what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orisun_server.testing.local import LocalStore

ROOT = Path(__file__).parents[2]
#: Something of each example's output that shows that its point came out.
EXPECTED = {
    "transfer": "no overdraft, and 600 in all",
    "enrollment": "no student has more than 2 courses",
    "concurrency": "no seat was sold twice",
    "streaming": "followed s1: 501 events, the last one live",
    "decision_model": "decided again at price 45",
    "batch": "repeated: True",
    "order": "2 shipped, 3 cancelled",
    "basic": "eve@example.com",
    "single_worker": "read my own write: 51",
    "partitioned": "they stopped with [0, 0, 0, 0]",
    "worker_pool": "2000 events, each once",
    "multiple_projections": "both read models have taken in 1000 events",
    "scaling": "events in the read model: 4500",
    "stop_resume": "2000 events in the read model, each once",
    "with_logging": "replayed 2 of 2, in order",
    "in_process": "a subscriber of the server got: OrderPlaced",
}
SHARED = {"__init__", "support", "views"}


@pytest.fixture(scope="module")
def environ(orisun_store: LocalStore) -> dict[str, str]:
    """One store for all of them, so that the suite does not start sixteen."""
    given = {"ORISUN_ADDRESS": orisun_store.address, "ORISUN_USERNAME": orisun_store.username}
    given |= {"ORISUN_PASSWORD": orisun_store.password, "READ_MODEL_DSN": orisun_store.dsn}
    return os.environ | given


def run(name: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, environ: dict[str, str]) -> None:
    assert EXPECTED[name] in run(name, environ)


def test_an_example_starts_its_own_store() -> None:
    """The embedded default: nothing but this checkout is needed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")}
    assert EXPECTED["basic"] in run("basic", plain)


def test_each_example_has_a_target_and_a_line_in_the_guide() -> None:
    written = {path.stem for path in (ROOT / "examples").glob("*.py")} - SHARED
    assert written == set(EXPECTED)
    targets = (ROOT / "Makefile").read_text()
    listed = re.search(r"^EXAMPLES := (.*)$", targets, re.MULTILINE)
    assert listed
    assert {name.replace("-", "_") for name in listed[1].split()} == written
    guide = (ROOT / "examples" / "README.md").read_text()
    for name in written:
        assert f"make example-{name.replace('_', '-')}" in guide
