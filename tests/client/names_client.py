"""A client of a name, as a process whose /etc/hosts is the test's: ``python -m tests.client.names_client JSON``.

It prints the node that answers whenever another one does; then, for each subscription, what it was handed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import orisun
from orisun import endpoints


async def follow(orders: orisun.Boundary, name: str) -> list[int]:
    numbers: list[int] = []
    async with orders.subscribe(name) as subscription:
        print("subscribed", flush=True)
        async for event in subscription:
            if event.event_type == "Last":
                break
            numbers.append(event.data["number"])
    return numbers


async def main(asked: dict[str, Any]) -> None:
    endpoints._SPREAD = 1.0
    async with orisun.connect(asked["target"], username="admin", password="changeit", refresh=0.1) as client:
        orders = client.boundary(asked["boundary"])
        following = [asyncio.create_task(follow(orders, f"spread-{number}")) for number in range(asked["count"])]
        work = asyncio.gather(*following)
        seen: set[str] = set()
        while not work.done():
            node = (await client.server_info()).node_id
            if node not in seen:
                seen.add(node)
                print(f"node {node}", flush=True)
            await asyncio.sleep(0.02)
        print(json.dumps(await work), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
