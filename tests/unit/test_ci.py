""".ci/run, with stubs in place of what takes long: what it says and answers where no Kubernetes can be had."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _script(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("end_to_end", "can_have_one", "status", "loud"),
    [(0, True, 0, False), (69, False, 0, True), (69, True, 69, True), (1, False, 1, False)],
    ids=["tested", "not-tested", "not-tested-where-it-can-be", "failed"],
)
def test_without_a_kubernetes_it_is_loud(
    tmp_path: Path, end_to_end: int, can_have_one: bool, status: int, loud: bool
) -> None:
    """And fails where a cluster can be had."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text("lint docs test:\n")
    _script(tmp_path / "scripts" / "e2e.sh", f"exit {end_to_end}")
    if can_have_one:
        _script(tmp_path / "kubernetes" / "cluster.sh")
    done = subprocess.run(
        [tmp_path / ".ci" / "run"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "ORISUN_E2E_K8S": str(tmp_path / "kubernetes"), "CHROMIUM": "one"},
    )
    assert done.returncode == status, done.stderr
    assert ("NOT TESTED" in done.stderr) is loud


@pytest.mark.parametrize("there", [False, True])
def test_without_a_browser_it_is_loud(tmp_path: Path, there: bool) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text("lint docs test:\n")
    _script(tmp_path / "scripts" / "e2e.sh", "exit 0")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "make", "dirname", "timeout", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    if there:
        _script(tools / "chromium")
    environment = {"PATH": str(tools), "HOME": str(tmp_path), "ORISUN_E2E_K8S": str(tmp_path / "none")}
    done = subprocess.run([tmp_path / ".ci" / "run"], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("NOT TESTED: the admin page in a browser" in done.stderr) is not there
