"""Every page about the client does what it says: its snippets run, and print what it shows."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import orisun
from orisun_server.settings import Settings
from tests import snippets
from tests.harness import Connection
from tests.integration.test_tls import AUTHORITY, issue

DOCS = Path(__file__).parents[2] / "docs" / "client"
PAGES = (
    "tutorial", "connect", "append-and-read", "decisions", "commands", "streams", "subscribe", "payloads", "errors",
    "admin",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
async def test_snippets(
    page: str, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]], tmp_path: Path
) -> None:
    pair = issue("client", AUTHORITY)
    for name, content in (
        ("ca.crt", AUTHORITY.certificate),
        ("client.crt", pair.certificate),
        ("client.key", pair.key),
    ):
        (tmp_path / name).write_bytes(content)
    server = await make_server(make_settings("accounts", "snapshots", exact=True))
    replaced = {"localhost:5005": server.address, "/etc/orisun/": f"{tmp_path}/"}
    running = snippets.run(DOCS / f"{page}.md", replaced)
    # a loop of its own, for there is a page whose calls block
    await asyncio.to_thread(asyncio.run, running)


def test_pages_link_to_pages_that_are_there() -> None:
    import re

    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "name", ["orisun", "orisun.projections", "orisun.sync", "orisun.sync.projections", "orisun.testing"]
)
def test_everything_public_has_a_docstring(name: str) -> None:
    """What has none is not in the reference."""
    module, missing = importlib.import_module(name), []
    for public in getattr(module, "__all__", [one for one in vars(module) if not one.startswith("_")]):
        found = getattr(module, public)
        if not (inspect.isclass(found) or inspect.isroutine(found)) or not found.__module__.startswith("orisun"):
            continue
        missing += [] if inspect.getdoc(found) else [public]
        for method, value in vars(found).items() if inspect.isclass(found) else ():
            if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                missing += [] if inspect.getdoc(getattr(found, method)) else [f"{public}.{method}"]
    assert missing == []


def test_the_page_about_errors_names_them_all() -> None:
    page = (DOCS / "errors.md").read_text()
    modules = (orisun, importlib.import_module("orisun.projections"))
    kinds = {name: getattr(module, name) for module in modules for name in module.__all__}
    errors = [name for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert len(errors) > 20
    assert [name for name in errors if f"`{name}`" not in page] == []
