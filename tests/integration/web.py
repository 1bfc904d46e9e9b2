"""A server with its admin page, and a client that is signed in to it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from orisun_server.app import App
from orisun_server.settings import Settings


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """A server in this process."""
    app = App(settings)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


@asynccontextmanager
async def browsing(app: App, username: str = "admin", password: str = "changeit") -> AsyncIterator[Browser]:
    """Signed in, unless the user name is ""."""
    async with httpx.AsyncClient(base_url=app.page_address, timeout=20) as client:
        browser = Browser(client)
        if username:
            answer = await client.post("/sign-in", data={"username": username, "password": password})
            assert answer.status_code == 303, answer.text
        yield browser


class Browser:
    """What a browser without JavaScript does."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def text(self, path: str) -> str:
        answer = await self.client.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.text

    async def csrf(self, path: str) -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', await self.text(path))
        assert found is not None
        return found[1]

    async def submit(self, path: str, fields: dict[str, str], *, to: str = "") -> httpx.Response:
        """Fills in the form of a page and sends it."""
        return await self.client.post(to or path, data={"csrf": await self.csrf(path), **fields})
