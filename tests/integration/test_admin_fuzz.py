"""Anything in any place of any page's path, query and form: a page that says what was wrong, never a failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from urllib.parse import quote_from_bytes

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orisun_server.admin.web.app import _PAGES
from orisun_server.settings import Settings
from tests.harness import Connection
from tests.integration.test_admin_page import orders, save
from tests.integration.web import browsing, running

QUERY = ("criteria", "type", "direction", "size", "after", "position", "page", "nodes", "find", "from", "key", "next")
FORM = (
    "act", "name", "username", "password", "roles", "days", "description", "schema", "current", "new", "again",
    "combinator", "key0", "type0", "condition0", "operator0", "value0",
)  # fmt: skip
#: Bytes, for what a browser would not send comes too.
ODD = [
    b"", b"\0", b"a\0b", b"\xff", b"\xed\xa0\x80", "é\u202e😀".encode(), b"x" * 300, b"'; --", b"../..", b"%",
    b"\r\nx: y",
    rb'a="\ud800"', rb'"\ud800"=1', rb'a="\u0000"', b'a="x', b"a=b", b"-1", b"0", b"9" * 25, b"1e999", b"nan",
    b"999999999999999999-999999999999999999", b"-1--1", "٣-٣".encode(), b"orders", b"READER:\0", b"ADMIN", b"create",
]  # fmt: skip
values = (
    st.sampled_from(ODD) | st.binary(max_size=12) | st.text(max_size=12).map(lambda text: text.encode(errors="replace"))
)


async def test_every_page_takes_anything(
    make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    loop = asyncio.get_running_loop()
    async with running(make_settings("orders")) as app, browsing(app) as browser:
        connection = Connection(app.address)
        await save(connection, orders(app), ("one", "One", '{"a": 1}'))
        csrf = await browser.csrf("/account")
        client: httpx.AsyncClient = browser.client

        async def status(method: str, path: str, body: str) -> int:
            content = None if method == "GET" else body.encode()
            headers = {"content-type": "application/x-www-form-urlencoded"}
            async with client.stream(method, path, content=content, headers=headers) as answer:
                return answer.status_code

        @hypothesis_settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(_PAGES), values, values, values, st.randoms(use_true_random=True))
        def run(page: tuple[str, str, object, object], a: bytes, b: bytes, c: bytes, chance: random.Random) -> None:
            path, _, get, post = page
            boundary = chance.choice([orders(app).encode()] * 3 + [a])
            for name, value in (("boundary", boundary), ("name", a), ("user_id", a), ("token_id", a), ("position", a)):
                path = path.replace(f"{{{name}}}", quote_from_bytes(value, safe="") or "_")
            given = f"{chance.choice(QUERY)}={quote_from_bytes(b)}&{chance.choice(QUERY)}={quote_from_bytes(c)}"
            fields = "&".join(f"{name}={quote_from_bytes(chance.choice([a, b, c]))}" for name in FORM)
            method = chance.choice([name for name, there in (("GET", get), ("POST", post)) if there is not None])
            asked = status(method, f"{path}?{given}", f"csrf={csrf}&{fields}")
            code = asyncio.run_coroutine_threadsafe(asked, loop).result(60)
            assert code < 500, (method, path, given, fields)

        await asyncio.to_thread(run)
        for path in (f"/b/{orders(app)}/indexes/%00/drop", f"/b/{orders(app)}/events?criteria=a%3D%22%5Cud800%22"):
            assert await status("GET", path, "") == 400
        assert await status("POST", f"/b/{orders(app)}/indexes/%00/drop", f"csrf={csrf}") == 400
        assert await status("GET", f"/b/{orders(app)}/events/live?criteria=a%3D%22%5Cud800%22", "") == 400
        await connection.close()
    assert "Traceback" not in "".join(capsys.readouterr())
