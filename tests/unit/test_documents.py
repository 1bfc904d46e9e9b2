"""The documents of administration name all that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from orisun_api import admin_pb2, eventstore_pb2

DOCS = Path(__file__).parents[2] / "docs"


def test_every_rpc_has_a_section_with_an_example() -> None:
    page = (DOCS / "admin-api.md").read_text()
    services = admin_pb2.DESCRIPTOR.services_by_name["Admin"], eventstore_pb2.DESCRIPTOR.services_by_name["EventStore"]
    rpcs = {method.name for service in services for method in service.methods}
    assert set(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == rpcs
    assert set(re.findall(r"orisun\.\w+/(\w+)", page)) >= rpcs


def test_what_documents_tell_grpcurl_to_send_is_what_rpcs_take() -> None:
    """Also by field names: a key that no message has, or a value of another type, does not parse."""
    checked = []
    for document in (DOCS.parent / "README.md", *DOCS.rglob("*.md")):
        for block in re.findall(r"^ *```bash\n(.*?)^ *```$", document.read_text(), re.MULTILINE | re.DOTALL):
            for command in block.split("grpcurl ")[1:]:
                line, _, given = command.partition(" <<EOF\n")
                words = shlex.split(line.replace("\\\n", " "), comments=True)
                rpc = next((word for word in words if re.fullmatch(r"orisun\.\w+/\w+", word)), None)
                if rpc is None:
                    continue
                service, _, method = rpc.partition("/")
                request = Default().FindServiceByName(service).FindMethodByName(method).input_type
                body = words[words.index("-d") + 1] if "-d" in words else "{}"
                body = given.partition("EOF\n")[0] if body == "@" else body
                json_format.Parse(body, GetMessageClass(request)())
                checked.append(rpc)
    assert len(checked) > 20


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
