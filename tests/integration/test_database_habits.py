"""What an administrator has set for a database (time zone, styles, isolation ...) plays no part in what is stored."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import grpc
import pytest

from orisun_api import eventstore_pb2 as pb
from orisun_server.embedded.postgres import PostgresAddress
from orisun_server.settings import Settings
from tests.contract.starts import fresh_database
from tests.faults.parts import connected
from tests.harness import ADMIN, ServerProcess, eventually
from tests.integration.test_subscriptions_wire import Boundary, query

HABITS = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "search_path": "nowhere",
    "default_transaction_isolation": "serializable",
    "plan_cache_mode": "force_generic_plan",
    "client_encoding": "SQL_ASCII",
    "jit": "on",
}
KEY = 'it\'s a \\ "key"'
DATA = {"at": "2024-03-04T23:30:00Z", "n": 0.1, "text": "é\\ '", KEY: "\\'; x"}


async def test_the_habits_of_a_database_play_no_part(
    postgres: PostgresAddress, make_settings: Callable[..., Settings]
) -> None:
    async with fresh_database(postgres) as database:
        settings = make_settings(pg_name=database["ORISUN_PG_NAME"])
        async with connected(settings) as connection:
            for name, value in HABITS.items():
                text = value if name == "search_path" else f"'{value}'"
                await connection.execute(f"ALTER DATABASE {settings.pg_name} SET {name} = {text}")
        async with ServerProcess(settings) as server:
            events, boundary = server.connection.events, Boundary(server.connection, settings.boundaries[0].name)
            types = {"at": pb.TIMESTAMPTZ, "n": pb.NUMERIC, "text": pb.TEXT, KEY: pb.TEXT}
            for number, (key, kind) in enumerate(types.items()):
                condition = pb.IndexCondition(key=KEY, operator="=", value=DATA[KEY])
                fields = [pb.IndexField(json_key=key, value_type=kind)]
                index = pb.CreateIndexRequest(boundary=boundary.name, name=f"i{number}", fields=fields)
                index.conditions.extend([condition] if key == "text" else [])
                await events.CreateIndex(index, metadata=ADMIN)

            async def built() -> bool:
                listed = await events.ListIndexes(pb.ListIndexesRequest(boundary=boundary.name), metadata=ADMIN)
                return [one.state for one in listed.indexes] == [pb.INDEX_STATE_READY] * len(types)

            await eventually(built)
            async with boundary.subscribe(criteria=[DATA | {"n": "0.1"}]) as subscriber:
                before = datetime.datetime.now(datetime.UTC)
                await boundary.append(DATA)
                await subscriber.has(1)
                await boundary.append(DATA)  # live
                await subscriber.has(2)
                after = datetime.datetime.now(datetime.UTC)
                assert subscriber.events == await boundary.events()
            for tags in ({"at": DATA["at"]}, {"n": "0.1"}, {"text": DATA["text"], KEY: DATA[KEY]}, {KEY: DATA[KEY]}):
                assert len(await boundary.events([tags])) == 2
            assert await boundary.events([{"at": "05/03/2024 05:15:00 +0545"}]) == []
            request = pb.GetEventsRequest(boundary=boundary.name, count=1)
            (event,) = (await events.GetEvents(request, metadata=ADMIN)).events
            stored = event.date_created.ToDatetime(datetime.UTC)
            second = datetime.timedelta(seconds=1)
            assert before - second < stored < after + second
            conflict = pb.SaveEventsRequest(
                boundary=boundary.name,
                query=pb.SaveQuery(expected_position=pb.Position(commit_position=1), subsetQuery=query([{"n": "0.1"}])),
                events=[pb.EventToSave(event_id="late", event_type="T")],
            )
            with pytest.raises(grpc.aio.AioRpcError, match=r"Expected \(1, 0\), Actual \(2, 1\)"):
                await events.SaveEvents(conflict, metadata=ADMIN)
