"""The profiles that a server gives open in the viewers that docs/telemetry.md names: speedscope and go's pprof."""

from __future__ import annotations

import asyncio
import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from orisun_server.telemetry import profiling

pytestmark = pytest.mark.recipe


async def busy_function_of_this_test(kept: list[bytes]) -> None:
    while True:
        sum(range(1_000))
        kept.append(bytes(10_000))
        await asyncio.sleep(0)


@pytest.fixture
async def profiles(tmp_path: Path) -> dict[str, Path]:
    """A CPU and a heap profile of this process, while it is busy."""
    task = asyncio.create_task(busy_function_of_this_test([]))
    made = {"cpu": await profiling.cpu(0.5), "heap": await profiling.heap(0.2)}
    task.cancel()
    for kind, body in made.items():
        (tmp_path / f"{kind}.pb.gz").write_bytes(body)
    return {kind: tmp_path / f"{kind}.pb.gz" for kind in made}


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on the PATH")
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a directory, without a word."""

    def log_message(self, format: str, *_: object) -> None:
        del format


async def test_speedscope(profiles: dict[str, Path], tmp_path: Path) -> None:
    npm, chromium = tool("npm"), os.environ.get("CHROMIUM") or tool("chromium")
    await asyncio.to_thread(
        subprocess.run, [npm, "install", "--prefix", tmp_path, "--no-audit", "--no-fund", "speedscope"], check=True
    )
    files = tmp_path / "node_modules" / "speedscope" / "dist" / "release"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        async with async_playwright() as playwright:
            arguments = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
            browser = await playwright.chromium.launch(executable_path=chromium, args=arguments)
            for kind, expected in (("cpu", "busy_function_of_this_test"), ("heap", "test_profile_viewers.py")):
                page = await browser.new_page()
                await page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
                await page.set_input_files("input[type=file]", profiles[kind])
                # its table of functions
                await page.get_by_text("Sandwich").click()
                await page.get_by_text(expected).first.wait_for(timeout=20_000)
                assert "speedscope" in await page.title()
            await browser.close()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("kind", "expected"), [("cpu", "busy_function_of_this_test"), ("heap", "inuse_space")])
def test_pprof(profiles: dict[str, Path], kind: str, expected: str) -> None:
    done = subprocess.run(
        [tool("go"), "tool", "pprof", "-top", profiles[kind]], capture_output=True, text=True, check=True
    )
    assert expected in done.stdout
