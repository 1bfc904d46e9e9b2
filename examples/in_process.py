"""The store inside the application: events in the same PostgreSQL transaction as the application's own tables."""

from __future__ import annotations

import json

import asyncpg

from examples.support import place, run
from orisun import NewEvent as ClientEvent
from orisun import Projector, decide, where
from orisun_server.errors import ContextChanged
from orisun_server.storage.in_process import NOTHING, Context, InProcessStore, NewEvent, query


async def main() -> None:
    async with place("shop") as here:
        connection = await asyncpg.connect(here.dsn)
        store, boundary = InProcessStore("admin"), here.events.name
        of_order = query([[("order", "o-1")]])
        placed = NewEvent("placed-o-1", "OrderPlaced", json.dumps({"order": "o-1"}), "{}")
        await connection.execute("CREATE TEMPORARY TABLE shop_order (id text PRIMARY KEY, status text)")

        async with connection.transaction():
            await connection.execute("INSERT INTO shop_order VALUES ('o-1', 'placed')")
            position = await store.append(connection, boundary, [placed], Context(NOTHING, of_order))
        print("row and event are committed together, at", tuple(position))

        try:
            async with connection.transaction():
                await connection.execute("UPDATE shop_order SET status = 'shipped'")
                shipped = NewEvent("shipped-o-1", "OrderShipped", json.dumps({"order": "o-1"}), "{}")
                await store.append(connection, boundary, [shipped], Context(NOTHING, of_order))
        except ContextChanged as error:
            status = await connection.fetchval("SELECT status FROM shop_order")
            print(f"the decision was out of date ({error.actual} came since): both rolled back, status {status}")

        # the client's decisions, commands and streams work in the transaction too
        async with connection.transaction():
            orders = store.boundary(connection, boundary)
            events_of_order = Projector("events", where(order="o-1"), 0, lambda count, _: count + 1)
            decision = await decide(orders, events_of_order)
            await connection.execute("UPDATE shop_order SET status = 'shipped'")
            await orders.append([ClientEvent("OrderShipped", {"order": "o-1"})], condition=decision.condition)
        print("shipped after", decision[events_of_order], "event, decided and recorded in one transaction")

        # the server delivers what was stored here
        await store.wake(connection, boundary)
        async with here.events.subscribe("mailer", where(order="o-1")) as subscription:
            print("a subscriber of the server got:", (await anext(subscription)).event_type)
        await connection.close()


if __name__ == "__main__":
    run(main)
