"""The admin page as HTTP sees it: sign-in, roles, forms, pages with and without content, probes and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from orisun_server.embedded.postgres import EmbeddedPostgres
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, eventually, free_port
from tests.integration.test_tls import AUTHORITY, issue, written
from tests.integration.web import Browser, browsing, running

PAGES = ("/", "/subscriptions", "/queries", "/users", "/tokens", "/audit", "/configuration", "/account")


@pytest.fixture(scope="module")
async def app(make_settings: Callable[..., Settings]) -> AsyncIterator[App]:
    async with running(make_settings("orders")) as app:
        yield app


@pytest.fixture(scope="module")
async def connection(app: App) -> AsyncIterator[Connection]:
    connection = Connection(app.address)
    yield connection
    await connection.close()


@pytest.fixture
async def browser(app: App) -> AsyncIterator[Browser]:
    async with browsing(app) as browser:
        yield browser


def orders(app: App) -> str:
    return app.settings.boundaries[0].name


async def save(connection: Connection, boundary: str, *events: tuple[str, str, str]) -> None:
    made = [pb.EventToSave(event_id=i, event_type=t, data=d, metadata="{}") for i, t, d in events]
    await connection.events.SaveEvents(pb.SaveEventsRequest(boundary=boundary, events=made), metadata=ADMIN)


@pytest.mark.parametrize("path", PAGES)
async def test_pages_answer(browser: Browser, path: str) -> None:
    text = await browser.text(path)
    assert "<h1" in text
    assert "changeit" not in text


@pytest.mark.parametrize("path", [*PAGES, "/b/orders", "/b/orders/events"])
async def test_pages_ask_to_sign_in(app: App, path: str) -> None:
    async with browsing(app, "") as stranger:
        answer = await stranger.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in")


async def test_wrong_passwords_and_where_sign_in_leads(app: App) -> None:
    async with browsing(app, "") as stranger:
        wrong = await stranger.client.post("/sign-in", data={"username": "admin", "password": "wrong!"})
        assert wrong.status_code == 401
        assert "do not belong together" in wrong.text
        assert "wrong!" not in wrong.text
        for target, led in (
            ("/users", "/users"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://x/", "/"),
        ):
            right = await stranger.client.post(
                "/sign-in", data={"username": "admin", "password": "changeit", "next": target}
            )
            assert (right.status_code, right.headers["location"]) == (303, led)


async def test_the_cookie_is_for_this_server_alone(app: App) -> None:
    async with browsing(app, "") as stranger:
        cookies = []
        for _ in range(2):
            answer = await stranger.client.post("/sign-in", data={"username": "admin", "password": "changeit"})
            cookies.append(answer.headers["set-cookie"])
        assert all("HttpOnly" in cookie and "SameSite=strict" in cookie for cookie in cookies)
        # a cookie that was planted before is not the one of the session
        assert cookies[0].partition(";")[0] != cookies[1].partition(";")[0]


async def test_sign_out_ends_the_session(browser: Browser) -> None:
    kept = dict(browser.client.cookies)
    assert (await browser.submit("/", {}, to="/sign-out")).status_code == 303
    browser.client.cookies.update(kept)
    assert (await browser.get("/")).status_code == 303


async def test_sign_out_ends_the_session_on_every_server_also_for_a_thief(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings("orders")
    async with running(settings) as first, running(settings) as second, browsing(first) as owner:
        cookie = owner.client.cookies["orisun_session"]
        thief = httpx.AsyncClient(base_url=second.page_address, cookies={"orisun_session": cookie})
        connection = Connection(second.address)
        try:
            assert (await thief.get("/account")).status_code == 200
            live = f"/b/{orders(second)}/events/live"
            async with thief.stream("GET", live) as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "retry: 3000"
                assert (await owner.submit("/account", {}, to="/sign-out")).status_code == 303

                async def refused() -> bool:
                    return (await thief.get("/account")).status_code == 303

                await eventually(refused)
                await save(connection, orders(second), ("after", "After", "{}"))
                async with asyncio.timeout(20):
                    assert "After" not in "".join([line async for line in lines])
            # nor with a sign-in of the thief's own making, nor as what rpcs take
            body, nonce, signature = cookie.rsplit(".", 2)
            thief.cookies.clear()
            thief.cookies.set("orisun_session", f"{body}.{nonce[::-1]}.{signature}")
            assert (await thief.get("/account")).status_code == 303
            with pytest.raises(grpc.aio.AioRpcError) as problem:
                await connection.events.Ping(pb.PingRequest(), metadata=(("x-auth-token", cookie),))
            assert problem.value.code() is grpc.StatusCode.UNAUTHENTICATED
        finally:
            await connection.close()
            await thief.aclose()


async def test_a_sign_in_ends_after_seven_days_however_much_it_is_used(
    app: App, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = app.web._state.parts
    assert parts is not None
    sessions, now = parts.sessions, time.time()
    monkeypatch.setattr(sessions, "_clock", lambda: now)
    for day in range(14):
        now += 12 * 3600 - 60
        status = (await browser.get("/account")).status_code
        assert status == 200, f"half day {day}"
    now += 12 * 3600 - 60
    assert (await browser.get("/account")).status_code == 303


async def test_roles_of_boundaries_that_there_are_not_are_told(app: App, browser: Browser) -> None:
    fields = {
        "name": "M",
        "username": "missing",
        "password": "secret99",
        "roles": f"READER:nosuch READER:{orders(app)}",
    }
    await browser.submit("/users/new", fields)
    assert "There is no boundary nosuch yet" in await browser.text("/users")
    path = re.search(r'href="(/users/[0-9a-f-]{36})"', await browser.text("/users?find=missing"))
    assert path is not None
    await browser.submit(path[1], {"roles": f"USER:{orders(app)}"})
    assert "There is no boundary" not in await browser.text("/users")
    await browser.submit(path[1], {"roles": "USER:none"})
    assert "There is no boundary none yet" in await browser.text("/users")
    made = await browser.submit("/tokens/new", {"name": "to nowhere", "roles": "READER:nosuch", "days": "7"})
    assert "There is no boundary nosuch yet" in made.text


async def test_who_deletes_a_user_sees_its_tokens(app: App, browser: Browser) -> None:
    fields = {"name": "T", "username": "issuer", "password": "secret99", "roles": "ADMIN"}
    await browser.submit("/users/new", fields)
    async with browsing(app, "issuer", "secret99") as issuer:
        await issuer.submit("/tokens/new", {"name": "stays", "roles": "READER", "days": "7"})
    path = re.search(r'href="(/users/[0-9a-f-]{36})"', await browser.text("/users?find=issuer"))
    assert path is not None
    asked = await browser.text(f"{path[1]}/delete")
    assert re.search(r'href="/tokens/[^"]+/revoke">stays<', asked)
    await browser.submit(f"{path[1]}/delete", {})


async def test_the_account_pages_what_may_be_read(
    app: App, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orisun_server.admin.web.pages.people._MOST_LINKS", 1)
    second = f"second_{orders(app)}"[:60]
    placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=app.settings.boundaries[0].schema)
    request = admin_pb2.CreateBoundaryRequest(name=second, placement=placement)
    await connection.admin.CreateBoundary(request, metadata=ADMIN)
    user = admin_pb2.CreateUserRequest(name="P", username="pager", password="secret99", roles=["READER"])
    await connection.admin.CreateUser(user, metadata=ADMIN)
    async with browsing(app, "pager", "secret99") as pager:
        first = await pager.text("/account")
        older = re.search(r'rel="next" href="([^"]+)"', first)
        assert older is not None
        both = re.findall(r'href="/b/(\w+)/events"', first + await pager.text(older[1]))
        assert sorted(both) == sorted([orders(app), second])


async def test_ended_sign_ins_are_bounded_in_number(app: App, pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orisun_server.admin.users._MOST_SIGN_OUTS", 2)
    database = await asyncpg.connect(pg_dsn)
    try:
        for _ in range(5):
            async with browsing(app) as browser:
                await browser.submit("/account", {}, to="/sign-out")
        kept = await database.fetchval(f'SELECT count(*) FROM "{app.settings.admin_schema}".orisun_sign_out')
    finally:
        await database.close()
    assert kept == 3


async def test_forms_of_elsewhere_are_refused(browser: Browser) -> None:
    fields = {"name": "Eve", "username": "evelyn", "password": "secret99", "roles": "ADMIN"}
    without = await browser.client.post("/users/new", data=fields)
    assert without.status_code == 403
    token = await browser.csrf("/users/new")
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        answer = await browser.client.post("/users/new", data={**fields, "csrf": token}, headers=headers)
        assert answer.status_code == 403
    assert "evelyn" not in await browser.text("/users")
    sign_in = {"username": "admin", "password": "changeit"}
    refused = await browser.client.post("/sign-in", data=sign_in, headers={"origin": "https://evil.example"})
    assert refused.status_code == 403

    async def told() -> bool:
        page = await browser.text("/audit?type=orisun.CallDenied")
        return "form of page users and tokens, from elsewhere" in page and "form of the sign-in" in page

    await eventually(told)


async def test_every_answer_carries_the_headers(browser: Browser) -> None:
    for path in ("/", "/sign-in", "/nowhere", "/healthz", "/metrics", "/static/x/style.css", "/b/none/events"):
        headers = (await browser.get(path)).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


async def test_pages_obey_the_policy(browser: Browser, app: App) -> None:
    for path in (*PAGES, f"/b/{orders(app)}", f"/b/{orders(app)}/events", f"/b/{orders(app)}/indexes/new"):
        text = await browser.text(path)
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|javascript:", text), path


async def test_a_reader_sees_events_and_nothing_else(app: App, browser: Browser) -> None:
    fields = {"name": "Rita", "username": "rita", "password": "secret99", "roles": f"reader:{orders(app)}"}
    assert (await browser.submit("/users/new", fields)).headers["location"] == "/users"
    async with browsing(app, "") as stranger:
        answer = await stranger.client.post("/sign-in", data={"username": "rita", "password": "secret99"})
        assert answer.headers["location"] == "/account"
    async with browsing(app, "rita", "secret99") as reader:
        assert re.findall(r'href="/b/([^"]+)/events"', await reader.text("/account")) == [orders(app)]
        assert (await reader.get(f"/b/{orders(app)}/events")).status_code == 200
        for path in ("/", "/users", "/audit", "/configuration", f"/b/{orders(app)}/indexes", "/subscriptions"):
            assert (await reader.get(path)).status_code == 403, path
        assert (await reader.get(f"/b/{app.settings.admin_boundary}/events")).status_code == 403
        csrf = await reader.csrf("/account")
        refused = await reader.client.post("/users/new", data={**fields, "username": "rita2", "csrf": csrf})
        assert refused.status_code == 403

    async def told() -> bool:
        return "page users and tokens" in await browser.text("/audit?type=orisun.CallDenied")

    await eventually(told)


async def test_users_from_creation_to_deletion(browser: Browser) -> None:
    fields = {"name": "Mallory", "username": "mallory", "password": "secret99", "roles": "user"}
    refused = await browser.submit("/users/new", {**fields, "roles": "boss"})
    assert refused.status_code == 400
    assert "Unsupported role" in refused.text
    assert "secret99" not in refused.text
    await browser.submit("/users/new", fields)
    listed = await browser.text("/users?find=mallory")
    path = re.search(r'href="(/users/[0-9a-f-]{36})"', listed)
    assert path is not None
    await browser.submit(path[1], {"roles": "READER"})
    assert "READER" in await browser.text(path[1])
    assert "Delete user mallory" in await browser.text(f"{path[1]}/delete")
    await browser.submit(f"{path[1]}/delete", {})
    assert (await browser.get(path[1])).status_code == 404
    audit = await browser.text("/audit")
    assert all(act in audit for act in ("UserCreated", "UserRolesChanged", "UserDeleted"))


async def test_tokens_are_shown_once(app: App, browser: Browser) -> None:
    made = await browser.submit("/tokens/new", {"name": "reports", "roles": "READER", "days": "7"})
    secret = re.search(r"orisun_[0-9a-f]{32}_[\w-]+", made.text)
    assert secret is not None
    assert made.headers["cache-control"] == "no-store"
    listed = await browser.text("/tokens")
    assert "reports" in listed
    assert secret[0] not in listed
    path = re.search(r'href="(/tokens/[0-9a-f]+/revoke)"', listed)
    assert path is not None
    await browser.submit(path[1], {})
    assert "reports" not in re.sub(r"Token reports was revoked", "", await browser.text("/tokens"))


async def test_the_own_password(app: App, browser: Browser) -> None:
    await browser.submit("/users/new", {"name": "Olga", "username": "olga", "password": "secret99", "roles": "READER"})
    async with browsing(app, "olga", "secret99") as olga:
        wrong = await olga.submit("/account", {"current": "secret98", "new": "secret11", "again": "secret11"})
        assert wrong.status_code == 400
        right = await olga.submit("/account", {"current": "secret99", "new": "secret11", "again": "secret11"})
        assert right.headers["location"] == "/sign-in"
        assert "Your password was changed" in (await olga.get("/sign-in")).text
        # once, and not because a link says so
        assert "Your password was changed" not in (await olga.get("/sign-in?changed=1")).text
        assert (await olga.get("/account")).status_code == 303
    async with browsing(app, "olga", "secret11") as olga:
        assert (await olga.get("/account")).status_code == 200


async def test_the_event_browser(app: App, connection: Connection, browser: Browser) -> None:
    boundary = orders(app)
    hostile = json.dumps({"username": "<script>alert(1)</script>", "total": 12345678901234567890, "n": 0.10})
    await save(connection, boundary, *((f"e{n}", "OrderPlaced", '{"username": "alice"}') for n in range(25)))
    await save(connection, boundary, ("x1", "Odd<Type>", hostile))
    first = await browser.text(f"/b/{boundary}/events")
    assert first.count('class="event"') == 20
    assert "<script>alert" not in first
    assert "12345678901234567890" in first
    assert "Odd&lt;Type&gt;" in first
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = await browser.text(older[1].replace("&amp;", "&"))
    assert second.count('class="event"') == 6
    found = await browser.text(f"/b/{boundary}/events?criteria=username%3Dalice&type=OrderPlaced&size=50")
    assert found.count('class="event"') == 25
    link = re.search(rf'href="(/b/{boundary}/events/\d+-\d+)"', first)
    assert link is not None
    assert "x1" in await browser.text(link[1])
    await save(connection, boundary, ("big", "Big", json.dumps({"text": "x" * 600_000})))
    assert len(await browser.text(f"/b/{boundary}/events")) < 100_000
    big = await browser.text(f"/b/{boundary}/events?type=Big")
    link = re.search(rf'href="(/b/{boundary}/events/\d+-\d+)"', big)
    assert link is not None
    assert "the rest is left out" in await browser.text(link[1])
    nothing = await browser.text(f"/b/{boundary}/events?criteria=username%3Dnobody")
    assert "No event matches" in nothing
    wrong = await browser.get(f"/b/{boundary}/events?criteria=a%3Db%0Awhat")
    assert wrong.status_code == 400
    assert "line 2: &#34;what&#34; is not key=value" in wrong.text
    assert (await browser.get(f"/b/{boundary}/events/999999-999998")).status_code == 404
    gone = await browser.get(f"/b/{boundary}/events/go?position=(1,%200)")
    assert gone.headers["location"] == f"/b/{boundary}/events/1-0"


@pytest.mark.parametrize("criteria", ["a'=b'--", 'k="x\\u0027; DROP TABLE t"', "data->>'x'=1", '"a\\"b"=c', "%=_"])
async def test_criteria_are_never_sql(app: App, browser: Browser, criteria: str) -> None:
    answer = await browser.get(f"/b/{orders(app)}/events", params={"criteria": criteria})
    assert answer.status_code in (200, 400)


async def test_live_events(app: App, connection: Connection, browser: Browser) -> None:
    boundary = orders(app)
    url = f"/b/{boundary}/events/live"
    async with browser.client.stream("GET", url, params={"type": "LiveOne"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 3000"
        await save(connection, boundary, ("other", "Other", "{}"), ("live", "LiveOne", '{"a": "<b>"}'))
        told = []
        async with asyncio.timeout(30):
            async for line in lines:
                told.append(line)
                if line == "" and len(told) > 1:
                    break
        text = "\n".join(told)
        assert "LiveOne" in text
        assert "&lt;b&gt;" in text
        assert "Other" not in text


async def test_indexes_from_preview_to_drop(app: App, connection: Connection, browser: Browser) -> None:
    boundary = orders(app)
    form, path = {"name": "by_user", "key0": "username", "type0": "TEXT"}, f"/b/{boundary}/indexes/new"
    preview = await browser.submit(path, {**form, "act": "preview"})
    assert "CREATE INDEX CONCURRENTLY" in preview.text
    assert "by_user" not in await browser.text(f"/b/{boundary}/indexes")
    wrong = await browser.submit(path, {**form, "key0": "", "act": "create"})
    assert wrong.status_code == 400
    await browser.submit(path, {**form, "act": "create"})

    async def ready() -> bool:
        return ">ready<" in await browser.text(f"/b/{boundary}/indexes")

    await eventually(ready)
    assert "Drop index by_user?" in await browser.text(f"/b/{boundary}/indexes/by_user/drop")
    await browser.submit(f"/b/{boundary}/indexes/by_user/drop", {})
    assert "No index yet" in await browser.text(f"/b/{boundary}/indexes")
    assert "IndexDropped" in await browser.text("/audit")


async def test_a_build_shows_how_far_it_is(app: App, browser: Browser, pg_dsn: str) -> None:
    one = app.settings.boundaries[0]
    writer = await asyncpg.connect(pg_dsn)
    try:
        async with writer.transaction():
            # a build waits for writers that were there before it
            await writer.execute(f'LOCK TABLE "{one.schema}"."{one.name}_orisun_es_event" IN ROW EXCLUSIVE MODE')
            form = {"name": "waiting", "key0": "slow", "type0": "TEXT", "act": "create"}
            await browser.submit(f"/b/{one.name}/indexes/new", form)

            async def waits() -> bool:
                text = await browser.text(f"/b/{one.name}/indexes")
                return ">building<" in text and "waiting for writers" in text

            await eventually(waits)
    finally:
        await writer.close()

    async def ready() -> bool:
        return ">building<" not in await browser.text(f"/b/{one.name}/indexes")

    await eventually(ready)
    await browser.submit(f"/b/{one.name}/indexes/waiting/drop", {})


async def test_queries_without_an_index_and_what_would_help(app: App, connection: Connection, browser: Browser) -> None:
    boundary = orders(app)
    about = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key="colour", value="very private")])])
    await connection.events.GetEvents(pb.GetEventsRequest(boundary=boundary, query=about, count=1), metadata=ADMIN)
    text = await browser.text("/queries")
    assert "colour" in text
    assert "very private" not in text
    assert f"/b/{boundary}/indexes/new?key=colour" in text
    assert "by" not in (await browser.text(f"/b/{boundary}/indexes/new?key=colour")).partition('value="colour"')[0][-5:]


async def test_sums_are_of_what_the_caller_may_see(app: App, connection: Connection, browser: Browser) -> None:
    about = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key="shape", value="x")])])
    await connection.events.GetEvents(pb.GetEventsRequest(boundary=orders(app), query=about, count=1), metadata=ADMIN)
    unindexed = re.compile(r"Unindexed queries</h2><p>(?:<span[^>]*></span>)?(\d+)")
    found = unindexed.search(await browser.text("/"))
    assert found is not None
    assert int(found[1]) > 0
    fields = {"name": "Otto", "username": "otto", "password": "secret99", "roles": "operations:elsewhere"}
    await browser.submit("/users/new", fields)
    async with browsing(app, "otto", "secret99") as limited:
        text = await limited.text("/")
        assert orders(app) not in text
        found = unindexed.search(text)
        assert found is not None
        assert found[1] == "0"


async def test_boundaries_are_made_here(app: App, browser: Browser) -> None:
    name = f"made_{orders(app)}"
    answer = await browser.submit("/boundaries/new", {"name": name, "description": "for a test", "schema": ""})
    assert answer.headers["location"] == f"/b/{name}"
    assert name in await browser.text("/")
    assert "empty" in await browser.text(f"/b/{name}")
    assert "no events yet" in await browser.text(f"/b/{name}/events")
    again = await browser.submit("/boundaries/new", {"name": name, "description": "", "schema": ""})
    assert again.status_code == 409


async def test_subscriptions_show_where_they_are(app: App, connection: Connection, browser: Browser) -> None:
    boundary = orders(app)
    request = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="billing <1>")
    stream = connection.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)
    await stream.initial_metadata()

    async def shown() -> bool:
        text = await browser.text("/subscriptions")
        return "billing &lt;1&gt;" in text and "this server" in text

    await eventually(shown)
    stream.cancel()


async def test_subscriptions_of_other_servers(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    boundary = settings.boundaries[0].name
    async with running(settings) as first, running(settings) as second:
        connection = Connection(second.address)
        await save(connection, boundary, ("one", "One", '{"who": "eve"}'))
        about = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key="who", value="eve")])])
        request = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="afar", query=about)
        stream = connection.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)
        await stream.read()
        async with browsing(first) as browser:

            async def shown() -> bool:
                text = await browser.text("/subscriptions")
                return all(part in text for part in ("afar", second.node_id, "(1, 0)", "who=eve"))

            await eventually(shown)
        stream.cancel()
        await connection.close()


async def test_configuration_masks_secrets(browser: Browser) -> None:
    text = await browser.text("/configuration?find=password")
    assert "ORISUN_ADMIN_PASSWORD" in text
    assert "********" in text
    assert "ORISUN_GRPC_PORT" not in text


async def test_configuration_tells_sources_in_sections(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORISUN_NODE_TTL", "6s")
    every = await browser.text("/configuration")
    assert every.index(">gRPC</th>") < every.index("ORISUN_GRPC_PORT") < every.index(">PostgreSQL</th>")
    given = await browser.text("/configuration?from=environment")
    assert "ORISUN_NODE_TTL" in given
    assert "ORISUN_GRPC_PORT" not in given
    assert "No variable matches “ttl” with a value from “derived”" in await browser.text(
        "/configuration?find=ttl&from=derived"
    )


async def test_probes(app: App) -> None:
    async with browsing(app, "") as stranger:
        assert (await stranger.get("/healthz")).text == "ok\n"
        ready = await stranger.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["postgresql"] == "ok"


async def test_metrics_are_well_formed_and_true(app: App, connection: Connection) -> None:
    boundary = orders(app)
    await save(connection, boundary, ("m1", "Measured", "{}"), ("m2", "Measured", "{}"))
    expected = pb.SaveQuery(
        expected_position=pb.Position(commit_position=-1, prepare_position=-1), subsetQuery=pb.Query()
    )
    conflict = pb.SaveEventsRequest(
        boundary=boundary, query=expected, events=[pb.EventToSave(event_id="m3", event_type="M")]
    )
    with pytest.raises(Exception, match="OptimisticConcurrency"):
        await connection.events.SaveEvents(conflict, metadata=ADMIN)
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    async with browsing(app, "") as stranger:

        async def looked_at() -> bool:
            """Whether what PostgreSQL was asked for now and then is of after the calls."""
            for family in text_string_to_metric_families((await stranger.get("/metrics")).text):
                samples.update(((one.name, tuple(sorted(one.labels.items()))), one.value) for one in family.samples)
            return value("orisun_head_position", boundary=boundary) >= 1

        await eventually(looked_at)

    assert value("orisun_appends_total", boundary=boundary, result="ok") >= 1
    assert value("orisun_appends_total", boundary=boundary, result="conflict") == 1
    assert value("orisun_events_appended_total", boundary=boundary) >= 2
    assert value("orisun_commit_duration_seconds_count", boundary=boundary) >= 2
    service = {"grpc_service": "orisun.EventStore", "grpc_method": "SaveEvents"}
    assert value("grpc_server_handled_total", **service, grpc_code="ALREADY_EXISTS") == 1
    assert value("grpc_server_handling_seconds_bucket", **service, le="+Inf") >= 2
    assert value("orisun_publisher_lag_events", boundary=boundary) >= 0
    assert value("orisun_pool_max_connections", pool="write") == app.settings.pg_write_max_open_conns
    assert value("orisun_serving") == 1
    assert value("process_resident_memory_bytes") > 0


async def test_metrics_are_written_seldom_however_many_ask(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = 0
    families = app.telemetry.families.collect

    def counted() -> Iterator[Metric]:
        nonlocal collected
        collected += 1
        return families()

    monkeypatch.setattr("orisun_server.admin.web.exposition._GOOD", 60.0)
    monkeypatch.setattr(app.telemetry.families, "collect", counted)
    async with browsing(app, "") as stranger:
        answers = await asyncio.gather(*(stranger.get("/metrics") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert collected <= 1
    monkeypatch.setattr("orisun_server.admin.web.exposition._GOOD", 0.0)
    async with browsing(app, "") as stranger:
        openmetrics = await stranger.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
    assert collected >= 1


async def test_metrics_may_be_kept_to_operators(make_settings: Callable[..., Settings]) -> None:
    async with running(make_settings(admin_metrics_public=False)) as app, browsing(app, "") as stranger:
        assert (await stranger.get("/metrics")).status_code == 401
        answer = await stranger.get("/metrics", auth=httpx.BasicAuth("admin", "changeit"))
        assert "orisun_serving" in answer.text
        async with browsing(app) as admin:
            await admin.submit(
                "/users/new", {"name": "Rita", "username": "rita", "password": "secret99", "roles": "reader"}
            )
            assert (await stranger.get("/metrics", auth=httpx.BasicAuth("rita", "secret99"))).status_code == 403

            async def told() -> bool:
                return "page metrics" in await admin.text("/audit?type=orisun.CallDenied")

            await eventually(told)


async def test_pages_of_large_events_hold_nothing_up(app: App, browser: Browser, connection: Connection) -> None:
    name = orders(app)
    ones = json.dumps({"a": [1] * 6_500})
    await save(connection, name, *((f"ones-{number}", "Ones", ones) for number in range(100)))
    await save(connection, name, ("many", "Many", json.dumps({"a": [1] * 70_000})))
    deep = '{"a":' + "[" * 400 + ",".join(["1"] * 100_000) + "]" * 400 + "}"
    await save(connection, name, ("deeper", "Deeper", deep))
    links = re.findall(r'href="(/b/\w+/events/\d+-\d+)">Open', await browser.text(f"/b/{name}/events"))
    longest, done = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not done.is_set():
            asked = time.monotonic()
            await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
            longest = max(longest, time.monotonic() - asked)

    watching = asyncio.create_task(watch())
    pages = await asyncio.gather(
        browser.text(f"/b/{name}/events?size=100"),
        *map(browser.text, links[:2]),
    )
    done.set()
    await watching
    assert longest < 1.5
    assert max(map(len, pages)) < 2_000_000
    assert all(wanted in page for page, wanted in zip(pages, ("Ones", "Deeper", "Many"), strict=True))


async def test_queries_for_programs(app: App, browser: Browser, connection: Connection) -> None:
    name = orders(app)
    await browser.text(f"/b/{name}/events?criteria=programs%3D1")
    async with httpx.AsyncClient(base_url=app.page_address) as client:
        assert (await client.get("/queries.json")).status_code == 401
        reader = admin_pb2.CreateUserRequest(name="Q", username="queries", password="secret99", roles=["READER"])
        await connection.admin.CreateUser(reader, metadata=ADMIN)
        assert (await client.get("/queries.json", auth=("queries", "secret99"))).status_code == 403
        told = (await client.get("/queries.json", auth=("admin", "changeit"))).json()
    fields = [{"json_key": "programs", "value_type": "TEXT"}]
    assert {"boundary": name, "name": "programs", "fields": fields} in [one["create_index"] for one in told]


@pytest.mark.parametrize(
    ("criteria", "limit"),
    [("\n".join(f"k{n}=x" for n in range(101)), "at most 100"), (" ".join(f"k{n}=x" for n in range(51)), "at most 50")],
)
@pytest.mark.parametrize("page", ["events", "events/live"])
async def test_criteria_have_the_limits_of_rpcs(
    app: App, browser: Browser, page: str, criteria: str, limit: str
) -> None:
    answer = await browser.get(f"/b/{orders(app)}/{page}", params={"criteria": criteria})
    assert answer.status_code == 400
    assert limit in answer.text


async def test_commands_by_page_and_with_their_events(app: App, connection: Connection) -> None:
    name = orders(app)
    for number in range(21):
        made = [pb.EventToSave(event_id=f"{number}-{n}", event_type=f"Told{n}", data="{}") for n in range(2)]
        told = pb.Command(command_id=f"told-{number}", type="Tell", data='{"t": "<i>"}', metadata='{"by": "me"}')
        request = pb.SaveEventsRequest(boundary=name, events=made, command=told)
        position = (await connection.events.SaveEvents(request, metadata=ADMIN)).log_position
    reader = admin_pb2.CreateUserRequest(name="R", username="commands", password="secret99", roles=[f"READER:{name}"])
    await connection.admin.CreateUser(reader, metadata=ADMIN)
    async with browsing(app, "commands", "secret99") as browser:
        first = await browser.text(f"/b/{name}/commands")
        assert re.findall(r"id (told-\d+)<", first) == [f"told-{number}" for number in range(20, 0, -1)]
        assert "&lt;i&gt;" in first
        older = re.search(r'rel="next" href="([^"]+)"', first)
        assert older is not None
        assert "told-0" in await browser.text(older[1])
        at = f"{position.commit_position}-{position.prepare_position}"
        one = await browser.text(f"/b/{name}/commands/{at}")
        assert re.findall(r">(Told\d) at", one) == ["Told0", "Told1"]
        for event in re.findall(rf'"(/b/{name}/events/\d+-\d+)"', one):
            assert f'<a href="/b/{name}/commands/{at}">Tell</a>' in await browser.text(event)
        many = [pb.EventToSave(event_id=f"many-{n}", event_type="Many", data="{}") for n in range(120)]
        told = pb.Command(command_id="many", type="Tell")
        request = pb.SaveEventsRequest(boundary=name, events=many, command=told)
        last = (await connection.events.SaveEvents(request, metadata=ADMIN)).log_position
        path, shown = f"/b/{name}/commands/{last.commit_position}-{last.prepare_position}", list[int]()
        page = path
        while page:
            text = await browser.text(page)
            shown = [int(number) for number in re.findall(r">Many at \(\d+, (\d+)\)", text)] + shown
            earlier = re.search(r'href="([^"]+)" rel="next"', text)
            page = f"{path}{earlier[1]}" if earlier else ""
        assert shown == list(range(last.prepare_position - 119, last.prepare_position + 1))
        wrong = f"{position.commit_position}-{position.prepare_position - 1}"
        for path, status in ((f"{name}/commands/{wrong}", 404), (f"{name}/commands/x", 404), ("other/commands", 403)):
            assert (await browser.get(f"/b/{path}")).status_code == status


async def test_probes_are_answered_however_many_connections_are_open(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orisun_server.admin.web.http._MOST_CONNECTIONS", 0)
    refused = await browser.get("/")
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert [(await browser.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]


async def test_a_taken_port_is_named(make_settings: Callable[..., Settings]) -> None:
    from orisun_server.admin.web.http import PortTaken

    async with running(make_settings()) as app:
        taken = int(app.page_address.rpartition(":")[2])
        with pytest.raises(PortTaken, match=f"{taken} .ORISUN_ADMIN_PORT.*0 takes a free one"):
            async with running(make_settings(admin_port=taken)):
                pass


async def test_without_the_page(make_settings: Callable[..., Settings]) -> None:
    async with running(make_settings(admin_enabled=False)) as app:
        assert app.page_address == ""


async def test_a_client_that_keeps_its_request_back_is_let_go(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orisun_server.admin.web.http._REQUEST_TIME", 0.3)
    port = int(app.page_address.rpartition(":")[2])
    for sent in (
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"POST /sign-in HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\nuser",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(30):
            rest = await reader.read()
        assert b"200 OK" not in rest
        writer.close()


async def test_too_much_is_refused(app: App, browser: Browser) -> None:
    csrf = await browser.csrf("/users/new")
    big = await browser.client.post("/users/new", data={"csrf": csrf, "name": "x" * 100_000})
    assert big.status_code == 400
    many = await browser.client.post("/users/new", data={f"f{n}": "" for n in range(500)})
    assert many.status_code == 400
    # the server may close before the client has sent it all
    with contextlib.suppress(httpx.TransportError):
        head = await browser.get("/", headers={"x-long": "x" * 400_000})
        assert head.status_code in (400, 431)


@pytest.mark.parametrize(
    "path", ["/static/x/../app.py", "/static/x/%2e%2e%2fapp.py", "/static/x/style.css%00", "/b/..%2f..%2fetc/events"]
)
async def test_no_path_leads_to_files(browser: Browser, path: str) -> None:
    answer = await browser.get(path)
    assert answer.status_code in (303, 400, 404, 409)
    assert "import" not in answer.text


async def test_over_tls(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    files = written(tmp_path, issue("localhost", AUTHORITY))
    trusted = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    async with running(make_settings(**files, grpc_tls_client_auth_required=True)) as app:
        url = app.page_address.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        async with httpx.AsyncClient(base_url=url, verify=trusted) as client:
            # probes and browsers have no certificate of their own
            assert (await client.get("/readyz")).status_code == 200
            answer = await client.post("/sign-in", data={"username": "admin", "password": "changeit"})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-orisun_session=")
            assert "Secure" in cookie
            assert "strict-transport-security" in answer.headers
            assert (await client.get("/users")).status_code == 200


async def test_before_postgresql_is_there(make_settings: Callable[..., Settings]) -> None:
    app = App(make_settings(pg_host="127.0.0.1", pg_port=free_port()))
    starting = asyncio.create_task(app.start())
    try:
        await eventually(lambda: app.page_address)
        async with browsing(app, "") as stranger:
            assert (await stranger.get("/healthz")).status_code == 200
            ready = await stranger.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
            assert (await stranger.get("/metrics")).status_code == 503
            for path in ("/", "/sign-in"):
                page = await stranger.get(path)
                assert page.status_code == 503
                assert "waits for PostgreSQL" in page.text
    finally:
        starting.cancel()
        await asyncio.wait([starting])


async def test_slow_queries_are_logged_with_what_would_help(
    make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(make_settings(slow_query_threshold=0.0)) as app:
        connection = Connection(app.address)
        boundary = orders(app)
        about = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key="shape", value="a private value")])])
        position = pb.Position(commit_position=-1, prepare_position=-1)
        event = pb.EventToSave(event_id="s1", event_type="S", data='{"shape": "a private value"}')
        query = pb.SaveQuery(expected_position=position, subsetQuery=about)
        await connection.events.SaveEvents(
            pb.SaveEventsRequest(boundary=boundary, query=query, events=[event]), metadata=ADMIN
        )
        await connection.events.GetEvents(pb.GetEventsRequest(boundary=boundary, query=about, count=1), metadata=ADMIN)
        await connection.close()
        kinds = {entry.shape.kind for entry in app.watch.queries.entries(unindexed=True)}
        assert kinds == {"append", "page"}
    said = capsys.readouterr().out
    assert "slow query" in said
    assert "create_index" in said
    assert "a private value" not in said


async def test_stopping_does_not_wait_for_live_views(make_settings: Callable[..., Settings]) -> None:
    app = App(make_settings())
    await app.start()
    async with browsing(app) as browser, browser.client.stream("GET", f"/b/{orders(app)}/events/live") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 3000"
        async with asyncio.timeout(30):
            await app.stop()
            with contextlib.suppress(httpx.TransportError):
                rest = [line async for line in lines]
                assert "event: ended" in rest


async def test_a_live_view_that_fails_says_so(make_settings: Callable[..., Settings], pg_dsn: str) -> None:
    # without NATS it reads PostgreSQL, where the table is not what it was
    settings = make_settings(nats_url=SecretStr(f"nats://127.0.0.1:{free_port()}"))
    one = settings.boundaries[0]
    async with running(settings) as app, browsing(app) as browser:
        async with browser.client.stream("GET", f"/b/{one.name}/events/live") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "retry: 3000"
            database = await asyncpg.connect(pg_dsn)
            await database.execute(f'ALTER TABLE "{one.schema}"."{one.name}_orisun_es_event" RENAME metadata TO gone')
            await database.close()
            async with asyncio.timeout(30):
                rest = [line async for line in lines]
        assert rest[-3:-1] == ["event: ended", "data: The live view failed; the server's log says more."]


async def test_no_user_takes_all_live_tails(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orisun_server.admin.web.pages.events._MOST_OF_USER", 2)
    monkeypatch.setattr("orisun_server.admin.web.pages.events._MOST_TAILS", 3)
    async with running(make_settings()) as app, contextlib.AsyncExitStack() as stack:
        connection = Connection(app.address)
        for name in ("second", "third"):
            user = admin_pb2.CreateUserRequest(name=name, username=name, password="secret99", roles=["READER"])
            await connection.admin.CreateUser(user, metadata=ADMIN)
        await connection.close()
        live = f"/b/{orders(app)}/events/live"

        async def opened(browser: Browser) -> int:
            stream = await stack.enter_async_context(browser.client.stream("GET", live))
            return stream.status_code

        async with browsing(app) as first, browsing(app) as again, browsing(app, "second", "secret99") as second:
            one = await first.client.send(first.client.build_request("GET", live), stream=True)
            assert one.status_code == 200
            # the limit is the user's, not the sign-in's
            assert await opened(again) == 200
            refused = await again.get(live)
            assert refused.status_code == 429
            assert "You have 2 live tails open" in refused.text
            assert await opened(second) == 200
            full = await second.get(live)
            assert full.status_code == 429
            assert "3 live tails are open on this server" in full.text
            # whoever leaves makes room
            await one.aclose()

            async def room() -> bool:
                async with second.client.stream("GET", live) as stream:
                    return stream.status_code == 200

            await eventually(room)


async def test_a_read_that_takes_too_long_is_ended(app: App, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orisun_server.admin.web.pages.events._PATIENCE", 0.0)
    answer = await browser.get(f"/b/{orders(app)}/events?criteria=a%3Db")
    assert answer.status_code == 400
    assert "took longer than 0 s" in answer.text


async def test_lists_page(app: App, connection: Connection, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(26):
        token = admin_pb2.CreateTokenRequest(name=f"paged {number:02}", roles=["READER"])
        token.expires_at.FromDatetime(datetime.now(UTC) + timedelta(days=1))
        await connection.admin.CreateToken(token, metadata=ADMIN)
    first, second = await browser.text("/tokens"), await browser.text("/tokens?page=2")
    assert "Page 1 of 2" in first
    assert "paged 00" in first
    assert "paged 25" not in first
    assert "paged 25" in second
    # a page beyond the last is the last
    assert "Page 2 of 2" in await browser.text("/tokens?page=99")
    one = app.settings.boundaries[0].name
    for name in ("paged_a", "paged_b"):
        fields = [pb.IndexField(json_key=name)]
        request = pb.CreateIndexRequest(boundary=one, name=name, fields=fields)
        await connection.events.CreateIndex(request, metadata=ADMIN)
    monkeypatch.setattr("orisun_server.admin.web.pages.indexes._PER_PAGE", 1)
    monkeypatch.setattr("orisun_server.admin.web.pages.overview._PER_PAGE", 1)
    first, second = await browser.text(f"/b/{one}/indexes"), await browser.text(f"/b/{one}/indexes?page=2")
    assert ("paged_a/drop" in first, "paged_b/drop" in first) == (True, False)
    assert ("paged_a/drop" in second, "paged_b/drop" in second) == (False, True)
    # the part that refreshes itself stays on its page
    assert f'hx-get="/b/{one}/indexes?page=2"' in second
    assert "Page 2 of" in await browser.text("/?page=2")


async def test_without_nats_pages_say_degraded(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(nats_url=SecretStr(f"nats://127.0.0.1:{free_port()}"))
    async with running(settings) as app, browsing(app) as browser:
        ready = await browser.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        text = await browser.text("/")
        assert "Degraded: NATS cannot be reached" in text
        assert "unreachable" in text
        assert "orisun_degraded 1.0" in await browser.text("/metrics")


async def test_while_postgresql_is_away_pages_say_so(data_dir: Path, make_settings: Callable[..., Settings]) -> None:
    own = EmbeddedPostgres(data_dir / "postgres", configuration={"fsync": "off"})
    address = await own.start()
    try:
        settings = make_settings(pg_host=address.host, pg_port=address.port, pg_user=address.user)
        async with running(settings) as app, browsing(app) as browser:
            await own.stop()

            async def unready() -> bool:
                return (await browser.get("/readyz")).status_code == 503

            await eventually(unready)
            assert (await browser.get("/healthz")).status_code == 200
            assert "orisun_serving 0.0" in await browser.text("/metrics")
            page = await browser.get("/")
            assert page.status_code == 503
            assert "This server is not serving" in page.text
            assert "PostgreSQL cannot be reached now" in page.text
            # where it is, is nobody's business
            assert address.host not in page.text
            await own.start()

            async def back() -> bool:
                return (await browser.get("/")).status_code == 200

            await eventually(back, timeout=30)
    finally:
        await own.stop()
