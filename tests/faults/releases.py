"""A newer release of the server, made of this one: its package with one more migration, and a version of its own."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import orisun_server
from orisun_server.storage.migrations import Sources

#: The package's own directory, and that of its migrations within.
PACKAGE = Path(next(iter(orisun_server.__path__)))
MIGRATIONS = Path("storage") / "sql" / "migrations"

#: What one more migration of each kind does: a column that this release knows nothing of.
ADDS = {
    "admin": "ALTER TABLE {schema}.orisun_node ADD COLUMN newer text NOT NULL DEFAULT 'x';\n",
    "boundary": "ALTER TABLE {q_events} ADD COLUMN newer text NOT NULL DEFAULT 'x';\n",
}
#: The number of that migration.
NUMBERS = {kind: len(getattr(Sources.packaged(), kind)) + 1 for kind in ADDS}


def newer_release(directory: Path, version: str, oldest_server: Mapping[str, str]) -> dict[str, str]:
    """Make it in ``directory``; the environment in which ``orisun serve`` is that release.

    ``oldest_server`` says, for each kind of migration that it adds (admin, boundary), which server that admits.
    """
    copy = directory / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, oldest in oldest_server.items():
        file = copy / MIGRATIONS / kind / f"{NUMBERS[kind]:04}_newer.sql"
        file.write_text(f"-- oldest-server: {oldest}\n{ADDS[kind]}")
    # what pip leaves of an installed package: its version and its commands
    told = directory / f"orisun-{version}.dist-info"
    told.mkdir()
    ours = importlib.metadata.distribution("orisun")
    for name in ("METADATA", "entry_points.txt"):
        text = ours.read_text(name) or ""
        (told / name).write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", text, count=1))
    path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}
