"""What `orisun doctor` finds where the server is installed, each made real: in PostgreSQL, and in NATS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from orisun_api import eventstore_pb2 as pb
from orisun_server.doctor import Finding, nats_checks, postgres_checks
from orisun_server.embedded.nats import EmbeddedNats
from orisun_server.environment import load
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, eventually, free_port
from tests.integration.web import running


async def found(findings: AsyncIterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding async for finding in findings}


async def test_an_index_that_is_not_used(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    one = settings.boundaries[0]
    async with running(settings) as app:
        connection = Connection(app.address)
        request = pb.CreateIndexRequest(boundary=one.name, name="idle", fields=[pb.IndexField(json_key="other")])
        await connection.events.CreateIndex(request, metadata=ADMIN)

        async def ready() -> bool:
            got = await connection.events.GetIndex(pb.GetIndexRequest(boundary=one.name, name="idle"), metadata=ADMIN)
            return bool(got.index.state == pb.INDEX_STATE_READY)

        await eventually(ready, timeout=20)
        await connection.close()
        checks = await found(postgres_checks.all_of(settings))
    unused = checks[f"index idle of {one.name}"]
    assert (unused.level, "was not used once" in unused.found) == ("warning", True)
    assert unused.todo == f"if nothing needs it: orisun index drop {one.name} idle"


async def test_settings_clock_transactions_and_connections(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, pg_dsn: str
) -> None:
    settings = make_settings()
    async with running(settings):
        fine = await found(postgres_checks.all_of(settings))
        assert fine["PostgreSQL's clock"].level == fine["connections"].level == fine["schema"].level == "ok"
        # the tests' PostgreSQL runs without
        assert fine["PostgreSQL's fsync"].level == "problem"
        monkeypatch.setattr(postgres_checks, "_SKEW", -1.0)
        monkeypatch.setattr(postgres_checks, "_LONG", 0.0)
        other = await asyncpg.connect(pg_dsn, server_settings={"application_name": "a report"})
        try:
            async with other.transaction():
                await other.fetch("SELECT 1")
                checks = await found(
                    postgres_checks.all_of(settings.model_copy(update={"pg_read_max_open_conns": 999}))
                )
        finally:
            await other.close()
    assert checks["PostgreSQL's clock"].level == "warning"
    assert "PostgreSQL allows" in checks["connections"].found
    # the server's own may be open at the same moment
    held = [finding for check, finding in checks.items() if check.startswith("transaction of process")]
    assert len([finding for finding in held if "a report" in finding.found]) == 1


async def test_a_database_that_no_server_has_prepared(make_settings: Callable[..., Settings]) -> None:
    checks = await found(postgres_checks.all_of(make_settings()))
    assert checks["PostgreSQL"].level == "ok"
    assert (checks["schema"].level, "orisun migrate apply" in checks["schema"].todo) == ("warning", True)


async def test_nats_is_too_old_or_fine(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings()
    checks = await found(nats_checks.all_of(settings))
    assert checks["NATS"].level == checks["NATS's quorum"].level == "ok"
    monkeypatch.setattr(nats_checks, "_OLDEST", (99, 0, 0))
    old = (await found(nats_checks.all_of(settings)))["NATS"]
    assert (old.level, "is too old" in old.found) == ("problem", True)
    monkeypatch.setattr(nats_checks, "MIN_PAYLOAD", 2 * 1024 * 1024)
    assert (await found(nats_checks.all_of(settings)))["NATS's max_payload"] == (
        "problem", "NATS's max_payload", "1048576 bytes, too little for an event", "set it to 2097152 at least"
    )  # fmt: skip


async def test_nats_without_a_quorum(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_checks, "_PATIENCE", 1.0)
    environ = {
        "ORISUN_NATS_PORT": str(free_port()), "ORISUN_NATS_SERVER_NAME": "alone",
        "ORISUN_NATS_STORE_DIR": str(data_dir / "nats"), "ORISUN_NATS_CLUSTER_ENABLED": "true",
        "ORISUN_NATS_CLUSTER_HOST": "127.0.0.1", "ORISUN_NATS_CLUSTER_PORT": str(free_port()),
        "ORISUN_NATS_CLUSTER_ROUTES": f"nats://127.0.0.1:{free_port()},nats://127.0.0.1:{free_port()}",
    }  # fmt: skip
    settings = load(environ).settings
    embedded = EmbeddedNats(settings)
    url = await embedded.start()
    try:
        checks = await found(nats_checks.all_of(settings.model_copy(update={"nats_url": SecretStr(url)})))
    finally:
        await embedded.stop()
    quorum = checks["NATS's quorum"]
    assert (quorum.level, "no leader" in quorum.found) == ("problem", True)
    assert "2 of 3" in quorum.todo
