"""A browser: the system's Chromium, driven by Playwright. Without one these tests are skipped, and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

from orisun_server.app import App
from orisun_server.settings import Settings
from tests.browser import store
from tests.harness import Connection
from tests.integration.web import running

ARTEFACTS = Path(__file__).parents[2] / "build" / "screenshots"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-device-scale-factor=1",
]  # fmt: skip


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The system's Chromium, headless."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"NO BROWSER: none of {', '.join(_NAMES)} is on PATH; install Debian's chromium to run these tests")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
async def app(make_settings: Callable[..., Settings]) -> AsyncIterator[App]:
    """A server with something to show."""
    async with running(make_settings("orders", "payments")) as app:
        connection = Connection(app.address)
        await store.fill(app, connection)
        stream = await store.subscribe(app, connection)
        yield app
        stream.cancel()
        await connection.close()


@pytest.fixture
async def make_page(chromium: Browser, app: App) -> AsyncIterator[Callable[..., Awaitable[Page]]]:
    """A page of a browser with nothing remembered; what goes wrong in it fails the test at its end."""
    problems: list[str] = []
    contexts = []

    async def make(*, dark: bool = False, script: bool = True, width: int = 1280) -> Page:
        context = await chromium.new_context(
            base_url=app.page_address,
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
            viewport={"width": width, "height": 860},
            reduced_motion="reduce",
            # axe is brought in by the test, past the page's policy, which is checked by the page's own behaviour
            bypass_csp=False,
        )
        contexts.append(context)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        return page

    yield make
    for context in contexts:
        await context.close()
    # a refused sign-in or form, and what a test cut off, is told to the console too
    expected = ("status of 4", "ERR_FAILED", "htmx:")
    assert [problem for problem in problems if not any(text in problem for text in expected)] == []


async def sign_in(page: Page, username: str = "admin", password: str = "changeit") -> None:
    await page.goto("/sign-in")
    await page.get_by_label("User name").fill(username)
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Sign in").click()


async def shoot(page: Page, name: str) -> None:
    """Keeps a picture of the whole page."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    # else what sticks to the top of the window lies across the picture
    await page.evaluate("scrollTo(0, 0)")
    await page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)
