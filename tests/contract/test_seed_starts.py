"""The servers that the product's documents start, started as they are printed there, and one append and read on each.

``seeds/`` holds their variables verbatim. Addresses, ports and paths are this machine's; nothing else is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import grpc
import pytest

from orisun_api import eventstore_pb2 as wire
from orisun_server.embedded.postgres import PostgresAddress, running_address
from orisun_server.environment import load
from orisun_server.settings import Settings
from tests.contract.starts import EXCERPTS, blocks, fresh_database, here, routed, starts
from tests.contract.test_seed_examples import DOCUMENTS
from tests.harness import Connection, ServerProcess
from tests.integration.test_tls import AUTHORITY, credentials, issue, written

pytestmark = pytest.mark.fault


#: The three nodes of the older guide are in ``tests/integration/test_nats_cluster.py``.
ALONE = {
    document: [given for given in starts(document) if "ORISUN_NATS_SERVER_NAME" not in given]
    for document in ("000", "001", "002")
}


async def test_the_starts_are_the_documents() -> None:
    assert {document: len(found) for document, found in ALONE.items()} == {"000": 6, "001": 6, "002": 4}
    if not DOCUMENTS.exists():
        pytest.skip("NOT TESTED: the documents are not beside the project; their excerpts are tested all the same")
    for document in ALONE:
        (path,) = DOCUMENTS.glob(f"{document}_*")
        assert blocks((EXCERPTS / f"{document}_starts.txt").read_text()) == blocks(path.read_text())


@pytest.mark.parametrize("document", ALONE)
async def test_each_start_serves(document: str, postgres: PostgresAddress, data_dir: Path) -> None:
    room = asyncio.Semaphore(3)

    async def one(given: dict[str, str], place: Path) -> None:
        async with room:
            await start(given, postgres, place)

    async with asyncio.TaskGroup() as group:
        for number, given in enumerate(ALONE[document]):
            group.create_task(one(given, data_dir / str(number)))


async def start(given: dict[str, str], postgres: PostgresAddress, place: Path) -> None:
    await asyncio.to_thread(place.mkdir, mode=0o711)
    tls = None
    if "ORISUN_GRPC_TLS_ENABLED" in given:
        written(place, issue("localhost", AUTHORITY))
        is_mutual = "ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED" in given
        tls = credentials(issue("client", AUTHORITY) if is_mutual else None)
    (placed,) = routed(given)
    async with fresh_database(postgres) as database:
        environ = here(placed, place, database)
        # the newest document says that Go's variables are honoured, and this is no Go
        async with ServerProcess(None, {**environ, "GOMEMLIMIT": "1GiB"}, tls) as server:
            assert server.logs.count("GOMEMLIMIT") == 1
            for name in given:
                if ":" in name:
                    assert f'"{name}" is taken as {name.replace(":", "=")}' in server.logs.replace("\\", "")
            settings = load(given).settings
            for boundary in settings.boundaries:
                await saves_and_reads(server.connection, boundary.name)
            with pytest.raises(grpc.aio.AioRpcError, match='boundary "unheard_of" is not active'):
                await saves_and_reads(server.connection, "unheard_of")
            await has_tables(settings, environ, place)
            assert await server.stop() == 0


async def saves_and_reads(connection: Connection, boundary: str) -> None:
    event = wire.EventToSave(event_id="user-001", event_type="UserRegistered", data='{"username": "alice"}')
    request = wire.SaveEventsRequest(boundary=boundary, events=[event])
    await connection.events.SaveEvents(request, metadata=connection.metadata, timeout=20)
    question = wire.GetEventsRequest(boundary=boundary, count=100)
    answer = await connection.events.GetEvents(question, metadata=connection.metadata, timeout=20)
    assert "user-001" in [event.event_id for event in answer.events]


async def has_tables(settings: Settings, environ: Mapping[str, str], place: Path) -> None:
    """The boundaries' tables are in the schemas that the document puts them into."""
    host = environ.get("ORISUN_PG_HOST") or getattr(running_address(place / "postgres"), "host", None)
    connection = await asyncpg.connect(host=host, user="postgres", database=environ.get("ORISUN_PG_NAME", "orisun"))
    try:
        for boundary in settings.boundaries:
            table = f"{boundary.schema}.{boundary.name}_orisun_es_event"
            assert await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table), table
    finally:
        await connection.close()
