"""scripts/release.sh on a repository of its own, with a remote beside it."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTES = "# Orisun 1.2.3\n\n## Changes\n\n- a heading is no comment\n"


class Repository:
    """A clone with one commit, and the bare repository that it came from."""

    def __init__(self, directory: Path) -> None:
        self.remote, self.clone = directory / "remote.git", directory / "clone"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(self.remote)], check=True)
        subprocess.run(["git", "init", "-q", "-b", "main", str(self.clone)], check=True)
        self.git("remote", "add", "origin", str(self.remote))
        self.git("config", "user.name", "tester")
        self.git("config", "user.email", "tester@localhost")
        for name in ("scripts", "helm", "crds", "examples/kubernetes", "docs/argocd"):
            shutil.copytree(ROOT / name, self.clone / name)
        for name in ("pyproject.toml", "README.md", "docs/kubernetes.md"):
            shutil.copy(ROOT / name, self.clone / name)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "First")
        self.git("push", "-q", "origin", "main")

    def git(self, *arguments: str, at: Path | None = None) -> str:
        command = ["git", "-C", str(at or self.clone), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, check=False, cwd=self.clone, capture_output=True, text=True)

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("scripts/release.sh", *arguments)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_releases(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(NOTES)
    done = repository.release("1.2.3", "--notes", str(tmp_path / "notes.md"))
    assert done.returncode == 0, done.stderr
    assert repository.git("log", "-1", "--format=%s", "v1.2.3", at=repository.remote) == "Release 1.2.3\n"
    assert repository.git("for-each-ref", "refs/tags/v1.2.3", "--format=%(contents)", at=repository.remote).startswith(
        NOTES
    )
    assert 'version = "1.2.3"' in repository.git("show", "v1.2.3:pyproject.toml")
    assert 'appVersion: "1.2.3"' in repository.git("show", "v1.2.3:helm/orisun-operator/Chart.yaml")
    again = repository.release("1.2.3")
    assert again.returncode == 1
    assert "v1.2.3 exists already" in again.stderr


def test_every_image_and_label_is_of_the_release(repository: Repository) -> None:
    """kubectl, Kustomize and Argo CD bring what was tagged, and install.yaml is still the chart's."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in repository.git("show", "HEAD:examples/kubernetes/kustomize/base/install.yaml")
    assert repository.release("3.4.5rc6", "--no-push").returncode == 0
    # values.yaml names one in a comment, for what a tag looks like
    named = repository.run("git", "grep", "--fixed-strings", "--word-regexp", version, "--", ":!helm/*/values.yaml")
    assert (named.returncode, named.stdout) == (1, "")
    assert "newTag: 3.4.5rc6" in repository.git("show", "HEAD:examples/kubernetes/kustomize/overlay/kustomization.yaml")
    if shutil.which("helm"):
        checked = repository.run("scripts/render_chart.sh", "--check")
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_candidate_is_semver_in_the_chart_and_lists_what_changed(repository: Repository) -> None:
    assert repository.release("2.0.0rc1", "--no-push").returncode == 0
    assert "version: 2.0.0-rc.1" in repository.git("show", "HEAD:helm/orisun-operator/Chart.yaml")
    assert "- First" in repository.git("tag", "-n9", "v2.0.0rc1")
    assert "v2.0.0rc1" not in repository.git("tag", at=repository.remote)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one"], '"one" is no version'),
        (["1.2.3", "--notes", "nowhere.md"], 'no release notes in "nowhere.md"'),
        ([], "release.sh 1.2.3"),
    ],
)
def test_says_what_is_wrong(repository: Repository, arguments: list[str], words: str) -> None:
    done = repository.release(*arguments)
    assert done.returncode != 0
    assert words in done.stderr


def test_only_from_a_clean_main(repository: Repository) -> None:
    (repository.clone / "pyproject.toml").write_text("changed")
    assert "not committed" in repository.release("1.2.3").stderr
    repository.git("checkout", "-q", "pyproject.toml")
    repository.git("checkout", "-q", "-b", "other")
    assert 'this is "other"' in repository.release("1.2.3").stderr
