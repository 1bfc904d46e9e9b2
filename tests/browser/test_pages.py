"""The admin page in a real browser: what people do there, accessibility of every page, pictures of all of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from tests.browser.conftest import shoot, sign_in
from tests.browser.store import orders
from tests.harness import ADMIN, Connection

MakePage = Callable[..., Awaitable[Page]]
_AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


async def accessibility(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now."""
    # evaluated by the debugger: the page's own policy lets no such script in
    await page.evaluate(_AXE + "; undefined")
    found = await page.evaluate("rules => axe.run(document, {runOnly: rules})", _RULES)
    return [
        f"{page.url}: {one['id']}: {one['help']}: {node['html'][:160]} {(node['failureSummary'] or '')[:300]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]


def paths(app: App) -> dict[str, str]:
    boundary = orders(app)
    return {
        "overview": "/",
        "boundary": f"/b/{boundary}",
        "events": f"/b/{boundary}/events",
        "event": f"/b/{boundary}/events/60-59",
        "commands": f"/b/{boundary}/commands",
        "command": f"/b/{boundary}/commands/60-59",
        "commands-empty": f"/b/{app.settings.boundaries[1].name}/commands",
        "events-none": f"/b/{boundary}/events?type=Nothing",
        "events-wrong": f"/b/{boundary}/events?criteria=what",
        "events-empty": f"/b/{app.settings.boundaries[1].name}/events",
        "indexes": f"/b/{boundary}/indexes",
        "indexes-empty": f"/b/{app.settings.boundaries[1].name}/indexes",
        "index-new": f"/b/{boundary}/indexes/new",
        "index-drop": f"/b/{boundary}/indexes/by_order/drop",
        "boundary-new": "/boundaries/new",
        "subscriptions": "/subscriptions",
        "queries": "/queries",
        "users": "/users",
        "user-new": "/users/new",
        "tokens": "/tokens",
        "token-new": "/tokens/new",
        "audit": "/audit",
        "configuration": "/configuration",
        "account": "/account",
        "not-found": f"/b/{boundary}/events/7000-1",
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_page_is_accessible(app: App, make_page: MakePage, dark: bool) -> None:
    page = await make_page(dark=dark)
    colours = "dark" if dark else "light"
    await page.goto("/sign-in")
    wrong = await accessibility(page)
    await shoot(page, f"sign-in-{colours}")
    await sign_in(page)
    await page.goto("/users")
    rita = await page.get_by_role("link", name="rita", exact=True).get_attribute("href")
    for name, path in (paths(app) | {"user": f"{rita}", "user-delete": f"{rita}/delete"}).items():
        await page.goto(path)
        wrong += await accessibility(page)
        await shoot(page, f"{name}-{colours}")
    assert wrong == []


async def test_a_narrow_screen(app: App, make_page: MakePage) -> None:
    page = await make_page(width=390)
    await page.goto("/sign-in")
    await shoot(page, "sign-in-narrow")
    await sign_in(page, password="wrong-password")
    await expect(page.get_by_role("alert")).to_be_visible()
    assert await accessibility(page) == []
    await shoot(page, "sign-in-refused-narrow")
    await sign_in(page)
    for name in (
        "overview", "boundary", "events", "event", "commands", "command", "indexes", "index-new", "subscriptions",
        "queries", "users", "audit", "configuration",
    ):  # fmt: skip
        await page.goto(paths(app)[name])
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
        # tables too, which are lists of rows here
        assert await page.evaluate(
            "[...document.querySelectorAll('.scroll')].every(one => one.scrollWidth <= one.clientWidth)"
        ), name
        assert await accessibility(page) == []
        await shoot(page, f"{name}-narrow")


async def test_without_javascript(app: App, make_page: MakePage) -> None:
    page = await make_page(script=False)
    await sign_in(page, password="wrong-password")
    await expect(page.get_by_role("alert")).to_contain_text("do not belong together")
    await sign_in(page)
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.get_by_role("link", name=orders(app)).first.click()
    await page.get_by_role("link", name="Indexes").click()
    await page.get_by_role("link", name="New index").click()
    await page.get_by_label("Name").fill("by_customer")
    await page.get_by_label("Key 1", exact=True).fill("customer")
    await page.get_by_role("button", name="Preview SQL").click()
    await expect(page.get_by_text("CREATE INDEX CONCURRENTLY")).to_be_visible()
    await expect(page.get_by_label("Key 1", exact=True)).to_have_value("customer")
    await page.get_by_role("button", name="Create index").click()
    await expect(page.get_by_role("status").filter(has_text="is being built")).to_be_visible()
    await page.get_by_role("link", name="Drop by_customer").click()
    await page.get_by_role("button", name="Drop the index").click()
    await expect(page.get_by_role("status").filter(has_text="dropped")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_url(f"{app.page_address}/sign-in")


async def test_sql_is_previewed_in_place(app: App, make_page: MakePage) -> None:
    page = await make_page()
    await sign_in(page)
    await page.goto(paths(app)["index-new"])
    await page.get_by_label("Name").fill("cheap_orders")
    await page.get_by_label("Key 1", exact=True).fill("total")
    await page.get_by_label("Type of key 1").select_option("NUMERIC")
    await page.get_by_label("Key of condition 1").fill("express")
    await page.get_by_label("Value of condition 1").fill("true")
    address = page.url
    await page.get_by_role("button", name="Preview SQL").click()
    await expect(page.locator("#sql")).to_contain_text("WHERE ((data->>'express') = 'true')")
    assert page.url == address
    await shoot(page, "index-preview-light")


async def test_events_come_live(app: App, make_page: MakePage) -> None:
    boundary = orders(app)
    page = await make_page()
    await sign_in(page)
    await page.goto(paths(app)["events"])
    await page.get_by_role("button", name="Follow live").click()
    await expect(page.get_by_role("status").filter(has_text="Live")).to_be_visible()
    connection = Connection(app.address)
    hostile = json.dumps({"text": "<img src=x onerror=alert(1)>"})
    event = pb.EventToSave(event_id="live-1", event_type="LiveEvent", data=hostile, metadata="{}")
    await connection.events.SaveEvents(pb.SaveEventsRequest(boundary=boundary, events=[event]), metadata=ADMIN)
    await connection.close()
    first = page.locator("#events details").first
    await expect(first).to_contain_text("LiveEvent")
    await expect(first).to_contain_text("<img src=x onerror=alert(1)>")
    await first.locator("summary").click()
    await expect(first.locator("pre").first).to_be_visible()
    assert await accessibility(page) == []
    await shoot(page, "events-live-light")
    await page.get_by_role("button", name="Pause").click()
    await first.get_by_role("link", name="Open").click()
    await expect(page.get_by_role("heading", name="LiveEvent")).to_be_visible()


async def test_a_command_leads_to_its_events_and_back(app: App, make_page: MakePage) -> None:
    page = await make_page(script=False)
    await sign_in(page, "rita", "secret99")
    await page.goto(paths(app)["events"])
    await page.get_by_role("link", name="Commands", exact=True).click()
    await page.get_by_role("link", name="Older commands").click()
    await page.locator("details summary").first.click()
    await page.get_by_role("link", name="Open with its events").first.click()
    await expect(page.get_by_role("heading", name="ChangeOrder")).to_be_visible()
    address = page.url
    await page.get_by_role("region", name="Events of its call").get_by_role("link").click()
    await expect(page.get_by_role("heading", name="OrderCancelled")).to_be_visible()
    await page.get_by_role("link", name="ChangeOrder", exact=True).click()
    await expect(page).to_have_url(address)


async def test_the_keyboard_is_enough(app: App, make_page: MakePage) -> None:
    page = await make_page()
    await page.goto("/sign-in")
    await page.keyboard.type("admin")
    await page.keyboard.press("Tab")
    await page.keyboard.type("changeit")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.goto(paths(app)["events"])
    await page.locator("#events summary").first.focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#events details").first.locator("pre").first).to_be_visible()


_FOCUSABLE = """() => [
        ...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")
    ].filter(one => one.type !== "hidden" && !one.disabled && one.checkVisibility({visibilityProperty: true}))"""


async def test_the_keyboard_reaches_everything_and_shows_where_it_is(app: App, make_page: MakePage) -> None:
    # without scripts, for what refreshes itself would forget what was reached
    page = await make_page(script=False)
    await sign_in(page)
    for name in ("overview", "events", "index-new", "indexes", "users", "user-new", "queries", "account"):
        await page.goto(paths(app)[name])
        await page.evaluate("document.activeElement.blur()")
        missed = await page.evaluate(f"({_FOCUSABLE})().length")
        assert missed > 5, name
        for _ in range(missed + 5):
            await page.keyboard.press("Tab")
            await page.evaluate("""() => {
                const one = document.activeElement, style = getComputedStyle(one);
                one.dataset.reached = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            }""")
        unreached = f"({_FOCUSABLE})().filter(one => one.dataset.reached !== 'true').map(one => one.outerHTML)"
        assert await page.evaluate(unreached) == [], name


async def test_the_overview_refreshes_and_says_when_it_cannot(app: App, make_page: MakePage) -> None:
    page = await make_page()
    await sign_in(page)
    async with page.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true") as fragment:
        pass
    assert "<html" not in await (await fragment.value).text()
    await expect(page.get_by_text("could not be refreshed")).to_be_hidden()
    await page.context.route("**/*", lambda route: route.abort())
    await expect(page.get_by_text("could not be refreshed")).to_be_visible(timeout=20_000)


async def test_a_token_is_shown_and_revoked(make_page: MakePage) -> None:
    page = await make_page()
    await sign_in(page)
    await page.goto("/tokens/new")
    await page.get_by_label("Name").fill("nightly report")
    await page.get_by_label("Roles").fill("READER")
    await page.get_by_role("button", name="Issue token").click()
    await expect(page.locator("#secret")).to_contain_text("orisun_")
    assert await accessibility(page) == []
    await shoot(page, "token-made-light")
    await page.get_by_role("link", name="Done").click()
    await page.get_by_role("link", name="Revoke nightly report").click()
    await shoot(page, "token-revoke-light")
    await page.get_by_role("button", name="Revoke the token").click()
    await expect(page.get_by_role("rowheader", name="nightly report")).to_have_count(0)
