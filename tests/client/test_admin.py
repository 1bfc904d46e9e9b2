"""Boundaries, indexes, users, and pub/sub."""

from __future__ import annotations

import asyncio
import datetime
import pickle
import secrets
from collections.abc import Callable
from typing import Any

import pytest

import orisun
from orisun import IndexCondition, IndexField, NewEvent
from orisun_server.settings import Settings
from tests.harness import Connection, eventually


async def test_boundaries(client: orisun.Client) -> None:
    name = f"shop_{secrets.token_hex(3)}"
    made = await client.admin.create_boundary(name, schema="events", description="the shop")
    assert made == orisun.BoundaryInfo(name, "the shop", "events", "active", "")
    await client.boundary(name).append([NewEvent("A"), NewEvent("B")])
    assert await client.admin.boundary(name) == made
    assert made in await client.admin.boundaries()
    assert await client.admin.event_count(name) == 2
    with pytest.raises(orisun.AlreadyExists):
        await client.admin.create_boundary(name, schema="events")
    with pytest.raises(orisun.InvalidArgument, match="invalid boundary"):
        await client.admin.create_boundary("1 2", schema="events")
    with pytest.raises(orisun.NotFound):
        await client.admin.boundary("nobody")


async def test_indexes(client: orisun.Client, orders: orisun.Boundary) -> None:
    fields = ["account", IndexField("amount", "numeric")]
    made = await client.admin.create_index(
        orders.name, "by_account", fields, conditions=[("eventType", "=", "Deposited")], timeout=20
    )
    assert made == orisun.Index(
        "by_account",
        (IndexField("account"), IndexField("amount", "numeric")),
        (IndexCondition("eventType", "=", "Deposited"),),
        False,
        True,
    )
    assert await client.admin.create_index(orders.name, "by_account", fields, conditions=made.conditions) == made
    assert await client.admin.indexes(orders.name) == [made]
    with pytest.raises(orisun.AlreadyExists):
        await client.admin.create_index(orders.name, "by_account", ["other"])
    await client.admin.drop_index(orders.name, "by_account")
    await client.admin.drop_index(orders.name, "by_account")
    with pytest.raises(orisun.NotFound):
        await client.admin.index(orders.name, "by_account")


async def test_users(
    client: orisun.Client, server: Connection, make_client: Callable[..., orisun.Client], settings: Settings
) -> None:
    admin = client.admin
    user = await admin.create_user("reader", "secret-1", ["reader"], name="A Reader")
    assert (user.username, user.name, user.roles) == ("reader", "A Reader", ("READER",))
    assert await admin.user_count() == len(await admin.users()) == 2
    assert await admin.validate_credentials("reader", "secret-1") == user
    assert await admin.validate_credentials("reader", "wrong") is None
    mine = make_client(server.address, username="reader", password="secret-1")
    with pytest.raises(orisun.PermissionDenied) as denied:
        await mine.boundary(settings.boundaries[0].name).append([NewEvent("A")])
    told = pickle.loads(pickle.dumps(denied.value))
    assert (told.roles, told.boundary) == (("ADMIN", "OPERATIONS", "USER"), "")
    with pytest.raises(orisun.PermissionDenied) as denied:
        await mine.admin.users()
    assert (denied.value.roles, denied.value.boundary) == (("ADMIN",), "")
    assert (await admin.set_roles(user.user_id, ["USER"])).roles == ("USER",)
    await mine.boundary(settings.boundaries[0].name).append([NewEvent("A")])
    await mine.admin.change_password(user.user_id, "secret-1", "secret-2")
    with pytest.raises(orisun.Unauthenticated):
        await mine.ping()
    await admin.delete_user(user.user_id)
    with pytest.raises(orisun.NotFound):
        await admin.delete_user(user.user_id)
    with pytest.raises(orisun.InvalidArgument, match="time zone"):
        await admin.create_token("x", ["READER"], datetime.datetime(2100, 1, 1))


async def test_messages(client: orisun.Client) -> None:
    async with client.messages("news.sport", "a") as all_of_a, client.messages("news.sport", "b") as all_of_b:
        heard: list[orisun.Message] = []

        async def listen() -> None:
            async for message in all_of_b:
                heard.append(message)

        listening = asyncio.ensure_future(listen())

        async def published() -> bool:
            # who listens is known to the server a moment after the call
            await client.publish("news.sport", '{"score": 1}', metadata="m")
            return bool(heard)

        await eventually(published, interval=0.05)
        first = await asyncio.wait_for(anext(all_of_a), 30)
        assert (first.subject, first.json(), first.metadata) == ("news.sport", {"score": 1}, "m")
        listening.cancel()
    with pytest.raises(orisun.InvalidArgument):
        await client.publish("news.*", "x")


async def test_mistakes_are_told_in_words(client: orisun.Client) -> None:
    of_no_type: Any = orisun.IndexField("n", "int")  # type: ignore[arg-type]
    for message, call in (
        ('"int" is no type; it is one of text', lambda: client.admin.create_index("orders", "by_n", [of_no_type])),
        ("fields is a list", lambda: client.admin.create_index("orders", "by_n", "account")),
        ("roles is a list", lambda: client.admin.create_user("somebody", "some password", "USER")),
    ):
        with pytest.raises(orisun.InvalidArgument, match=message):
            await call()
