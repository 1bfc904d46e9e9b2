"""What the browser tests' server holds."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from orisun_api import admin_pb2 as ad
from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from orisun_server.telemetry.sampler import Sample
from tests.harness import ADMIN, Connection, eventually

_TYPES = ("OrderPlaced", "OrderPaid", "OrderShipped", "OrderCancelled")


def orders(app: App) -> str:
    return app.settings.boundaries[0].name


async def fill(app: App, connection: Connection) -> None:
    """Events, an index, a read without one, and half an hour of rates for the charts."""
    boundary = orders(app)
    for number in range(60):
        data = {
            "order": f"o-{number // 3}",
            "customer": ("alice", "bob", "Zoë")[number % 3],
            "total": round(9.5 + number * 1.25, 2),
            "express": number % 4 == 0,
            "lines": [{"sku": f"sku-{number}", "count": number % 5 + 1}],
            "note": None,
        }
        event = pb.EventToSave(
            event_id=f"order-{number}",
            event_type=_TYPES[number % 4],
            data=json.dumps(data),
            metadata=json.dumps({"source": "shop", "trace": f"{number:04}"}),
        )
        told = pb.Command(
            command_id=f"c-{number}",
            type="ChangeOrder",
            data=json.dumps({"order": data["order"]}),
            metadata='{"by": "shop"}',
        )
        request = pb.SaveEventsRequest(boundary=boundary, events=[event], command=told if number % 2 else None)
        await connection.events.SaveEvents(request, metadata=ADMIN)
    fields = [pb.IndexField(json_key="order")]
    await connection.events.CreateIndex(
        pb.CreateIndexRequest(boundary=boundary, name="by_order", fields=fields), metadata=ADMIN
    )

    async def ready() -> bool:
        answer = await connection.events.GetIndex(
            pb.GetIndexRequest(boundary=boundary, name="by_order"), metadata=ADMIN
        )
        return bool(answer.index.state == pb.INDEX_STATE_READY)

    await eventually(ready, timeout=20)
    about = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key="customer", value="alice")])])
    await connection.events.GetEvents(pb.GetEventsRequest(boundary=boundary, query=about, count=5), metadata=ADMIN)
    await connection.admin.CreateUser(
        ad.CreateUserRequest(
            name="Rita Reader", username="rita", password="secret99", roles=[f"READER:{boundary}", "USER"]
        ),
        metadata=ADMIN,
    )
    until = Timestamp()
    until.FromDatetime(datetime.now(UTC) + timedelta(days=90))
    await connection.admin.CreateToken(
        ad.CreateTokenRequest(name="billing service", roles=["USER"], expires_at=until), metadata=ADMIN
    )
    _remember(app)


async def subscribe(app: App, connection: Connection) -> Any:
    """A subscription that stays open."""
    about = pb.Query(criteria=[pb.Criterion(tags=[pb.Tag(key="customer", value="alice")])])
    request = pb.CatchUpSubscribeToEventStoreRequest(boundary=orders(app), subscriber_name="invoices", query=about)
    stream = connection.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)
    await stream.read()
    return stream


def _remember(app: App) -> None:
    """Looks of the last half hour, as the sampler would have had them."""
    sampler = app.telemetry.sampler
    last = sampler.samples[-1]
    sampler.samples.clear()
    end, noise = 0.0, random.Random(7)
    for number in range(181):
        end += max(0.0, 240 + 180 * math.sin(number / 29) + noise.gauss(0, 40)) + (700 if 60 < number < 68 else 0)
        ends = {name: int(end * (3 if name == orders(app) else 1)) for name in last.ends}
        sampler.samples.append(Sample(last.at - (180 - number) * 10, ends))
