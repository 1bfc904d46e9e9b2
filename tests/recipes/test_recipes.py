"""The recipes of docs/clients.md, run as they stand there: their files, their commands, against a real store.

They fetch from registries of packages and take minutes, so they run only when asked for: ``make recipes``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from orisun_server.testing.local import LocalStore

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
#: Seconds for a recipe; most of it goes into fetching.
_PATIENCE = 480

pytestmark = pytest.mark.recipe


class Recipe(NamedTuple):
    """A section of the page: files by their names, and what is typed."""

    files: dict[str, str]
    commands: str


def recipe(language: str) -> Recipe:
    text = (ROOT / "docs" / "clients.md").read_text()
    section = text.partition(f"\n## {language}\n")[2].partition("\n## ")[0]
    found = _FENCE.findall(section)
    files = {title: body for _, title, body in found if title}
    return Recipe(files, "\n".join(body for kind, _, body in found if kind == "bash"))


def laid_out(one: Recipe, directory: Path, store: LocalStore | None = None) -> dict[str, str]:
    """Writes the recipe's files, for that store; what its commands run with."""
    shutil.copytree(ROOT / "proto", directory / "proto")
    for name, body in one.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body if store is None else _aimed(body, store))
    binaries = directory / "bin"
    binaries.mkdir()
    # protoc as grpcio-tools has it
    (binaries / "protoc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    (binaries / "protoc").chmod(0o755)
    path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "GOBIN": str(binaries)}


def _aimed(text: str, store: LocalStore) -> str:
    return text.replace("localhost:5005", store.address).replace("admin:changeit", f"admin:{store.password}")


def run_until(commands: str, expected: str, directory: Path, environ: dict[str, str]) -> None:
    """Runs commands until they print what is expected; a client that subscribes would go on for ever."""
    process = subprocess.Popen(
        ["timeout", str(_PATIENCE), "bash", "-euc", commands],
        cwd=directory, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if expected in line:
                return
        pytest.fail("".join(said)[-5_000:])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.stdout.close()
        process.wait(30)


@pytest.mark.parametrize(
    ("language", "tool", "expected"),
    [
        ("Go", "go", "stored at "),
        ("Node", "npm", "UserRegistered { commit_position: "),
        ("Java", "mvn", 'java-1 UserRegistered {"username": "carol"}'),
        ("C#", "dotnet", 'csharp-1 UserRegistered {"username": "dave"}'),
    ],
)
def test_recipe(language: str, tool: str, expected: str, tmp_path: Path, orisun_store: LocalStore) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"the recipe for {language} was not run: {tool} is not on the PATH")
    one = recipe(language)
    environ = laid_out(one, tmp_path, orisun_store)
    run_until(one.commands, expected, tmp_path, environ)


def test_python(tmp_path: Path) -> None:
    one = recipe("Python")
    # without this checkout's own stubs, which a package of the same name without __init__ gives way to
    away = "import sys; sys.path = [path for path in sys.path if not path.endswith('client')]; "
    look = f'python -c "{away}import orisun_api.admin_pb2_grpc as made; print(made.__file__)"'
    run_until(one.commands + look, f"{tmp_path}/orisun_api", tmp_path, laid_out(one, tmp_path))


def test_csharp_messages(tmp_path: Path) -> None:
    """As far as it goes without .NET: protoc's own generator, from where the Java recipe has fetched it."""
    found = sorted(Path.home().glob(".m2/repository/com/google/protobuf/protoc/*/protoc-*.exe"))
    if not found:
        pytest.skip("no protoc that makes C#: run the Java recipe first")
    protoc = tmp_path / "protoc"
    shutil.copy(found[-1], protoc)
    protoc.chmod(0o755)
    import grpc_tools

    known = Path(str(grpc_tools.__file__)).parent / "_proto"
    files = ["orisun_api/eventstore.proto", "orisun_api/admin.proto"]
    subprocess.run([protoc, f"-I{ROOT / 'proto'}", f"-I{known}", f"--csharp_out={tmp_path}", *files], check=True)
    made = (tmp_path / "Eventstore.cs").read_text()
    assert "namespace Orisun {" in made
    client = recipe("C#").files["Shop.cs"]
    messages = set(re.findall(r"new (\w+) ?[{\n]", client)) - {"Metadata"}
    fields = set(re.findall(r"\b([A-Z]\w+) =", client))
    assert {"SaveQuery", "EventToSave"} <= messages
    assert {"ExpectedPosition", "CommitPosition", "EventId"} <= fields
    assert not [name for name in messages if f"public sealed partial class {name} " not in made]
    assert not [name for name in fields if not re.search(rf"public \S+ {name} \{{", made)]
