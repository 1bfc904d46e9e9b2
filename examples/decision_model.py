"""A decision model: many states from one query, and a condition that knows exactly what they rest on."""

from __future__ import annotations

from examples.support import place, run
from orisun import Conflict, NewEvent, Projector, where


async def main() -> None:
    async with place("shop") as here:
        await here.events.append(
            [
                NewEvent("ProductPriced", {"product": "lamp", "price": 40}),
                NewEvent("StockArrived", {"product": "lamp", "pieces": 3}),
                NewEvent("CustomerBlocked", {"customer": "mallory"}),
                NewEvent("StockArrived", {"product": "chair", "pieces": 9}),
            ]
        )
        price = Projector("price", where("ProductPriced", product="lamp"), 0, lambda _, event: int(event.data["price"]))
        stock = Projector(
            "stock", where("StockArrived", "Sold", product="lamp"), 0, lambda left, event: left + event.data["pieces"]
        )
        blocked = Projector("blocked", where("CustomerBlocked", customer="alice"), False, lambda _, __: True)

        decision = await here.events.decide(price, stock, blocked)
        print(
            f"price {decision[price]}, stock {decision[stock]}, blocked {decision[blocked]}; {decision.events} events"
        )
        print("the decision rests on:", decision.query)

        # what has nothing to do with it does not disturb it
        await here.events.append([NewEvent("StockArrived", {"product": "chair", "pieces": 1})])
        sale = NewEvent("Sold", {"product": "lamp", "customer": "alice", "pieces": -1, "price": decision[price]})
        position = await here.events.append([sale], condition=decision.condition)
        print("sold, at", position)

        # a price that changes in between does
        decision = await here.events.decide(price, stock, blocked)
        await here.events.append([NewEvent("ProductPriced", {"product": "lamp", "price": 45})])
        try:
            await here.events.append(
                [NewEvent("Sold", {"product": "lamp", "customer": "alice", "pieces": -1, "price": decision[price]})],
                condition=decision.condition,
            )
        except Conflict as conflict:
            print(f"refused: decided as of {conflict.expected}, and {conflict.actual} came since")
        again = await here.events.decide(price, stock, blocked)
        print(f"decided again at price {again[price]}")


if __name__ == "__main__":
    run(main)
