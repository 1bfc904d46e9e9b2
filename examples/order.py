"""An e-commerce order, from placing to shipping: an aggregate stream, a check across orders, and a read model.

The order's own history is a stream with versions; that stock does not go below zero is a rule across all orders, which
a stream cannot hold and a decision can.
"""

from __future__ import annotations

import asyncio
from typing import Any

from examples.support import place, run
from orisun import Conflict, Event, NewEvent, Projector, where
from orisun.projections import Processor, Projection, by_key
from orisun.streams import NO_STREAM


class Orders(Projection):
    """One row an order, for the list that customers see."""

    name = "orders"
    key_of = by_key("aggregate_id")  # type: ignore[assignment]

    async def setup(self, tx: Any) -> None:
        await tx.execute("CREATE TABLE customer_order (id text PRIMARY KEY, status text, total int)")

    async def handle(self, tx: Any, event: Event) -> None:
        order = event.data.get("aggregate_id")
        match event.event_type:
            case "OrderPlaced":
                await tx.execute("INSERT INTO customer_order VALUES ($1, 'placed', $2)", order, event.data["total"])
            case "OrderPaid" | "OrderShipped" | "OrderCancelled":
                status = event.event_type.removeprefix("Order").lower()
                await tx.execute("UPDATE customer_order SET status = $2 WHERE id = $1", order, status)


def left(product: str) -> Projector[int]:
    """What is left of a product, over all orders."""
    return Projector(
        "left", where("StockArrived", "StockReserved", product=product), 0, lambda sum, e: sum + e.data["pieces"]
    )


async def main() -> None:
    async with place("orders") as here, here.pool() as pool:
        await here.index("by_aggregate", "aggregate_type", "aggregate_id")
        await here.index("by_product", "product")
        await here.events.append([NewEvent("StockArrived", {"product": "lamp", "pieces": 2})])
        processor, orders = Processor(pool, here.events), Orders()
        projecting = asyncio.create_task(processor.run(orders))

        async def order(number: int) -> str:
            stream = here.events.stream("order", f"o-{number}")
            placed = await stream.append([NewEvent("OrderPlaced", {"total": 40})], expected=NO_STREAM)
            while True:
                decision = await here.events.decide(left("lamp"))
                if decision["left"] < 1:
                    await stream.append([NewEvent("OrderCancelled", {"reason": "sold out"})], expected=placed.version)
                    return "cancelled"
                try:
                    reserved = NewEvent("StockReserved", {"product": "lamp", "pieces": -1, "order": f"o-{number}"})
                    await here.events.append([reserved], condition=decision.condition)
                    break
                except Conflict:  # another order was faster: look again what is left
                    continue
            await stream.append([NewEvent("OrderPaid"), NewEvent("OrderShipped")], expected=placed.version)
            return "shipped"

        outcomes = await asyncio.gather(*(order(number) for number in range(5)))
        print("five orders for two lamps:", ", ".join(outcomes))
        async for event in here.events.stream("order", "o-0").read():
            print(f"  o-0 version {event.data['aggregate_version']}: {event.event_type}")

        await processor.caught_up(orders)
        counts = await pool.fetch("SELECT status, count(*) FROM customer_order GROUP BY status ORDER BY status DESC")
        print("the read model says the same:", ", ".join(f"{row['count']} {row['status']}" for row in counts))
        processor.stop()
        await projecting


if __name__ == "__main__":
    run(main)
