"""The documents of administration name all that there is."""

from __future__ import annotations

import re
from pathlib import Path

from orisun_api import admin_pb2

DOCS = Path(__file__).parents[2] / "docs"


def test_every_rpc_of_administration_has_a_section() -> None:
    sections = set(re.findall(r"^### (\w+)$", (DOCS / "admin-api.md").read_text(), re.MULTILINE))
    rpcs = {method.name for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods}
    assert sections == rpcs | {"CreateIndex", "DropIndex", "ListIndexes", "GetIndex"}


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
