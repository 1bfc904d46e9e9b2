"""Projections without a store: policies, what counts as passing, what a message may say, help."""

from __future__ import annotations

import logging

import asyncpg
import pytest
from click.testing import CliRunner

import orisun
from orisun.cli import main
from orisun.projections import (
    PoisonPolicy,
    ProcessorConfig,
    Projection,
    ProjectionStopped,
    StandardLogger,
    Tables,
    by_key,
)
from orisun.projections.errors import is_passing, reason_of
from orisun.testing import given


def test_pauses_grow_to_a_bound() -> None:
    policy = PoisonPolicy("retry", first_pause=0.1, longest_pause=1.0)
    assert [policy.pause(attempts) for attempts in (1, 2, 3, 4, 5, 5_000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PoisonPolicy("explode"),  # type: ignore[arg-type]
        lambda: PoisonPolicy(attempts=0),
        lambda: ProcessorConfig(batch_size=0),
        lambda: ProcessorConfig(partition_key=-1),
        lambda: ProcessorConfig(partition_key=1),
        lambda: Tables(schema="a b").q("c"),
        lambda: Tables(checkpoints="x" * 64).ddl(),
    ],
)
def test_what_cannot_be_is_refused(make: object) -> None:
    with pytest.raises(orisun.InvalidArgument):
        make()  # type: ignore[operator]


def test_the_reason_quotes_nothing() -> None:
    try:
        int("secret 4711")
    except ValueError as error:
        reason = reason_of(error)
    assert reason.startswith("ValueError at test_projection_rules.py:")
    assert "4711" not in reason
    unique = asyncpg.UniqueViolationError("Key (mail)=(secret) already exists")
    assert reason_of(unique) == "UniqueViolationError (SQLSTATE 23505)"
    stopped = ProjectionStopped("p", "e-1", orisun.Position(3, 2), 5, reason)
    assert "e-1 at (3, 2) after 5 attempts" in str(stopped)


def test_a_lost_database_passes_and_a_wrong_event_does_not() -> None:
    for error in (
        ConnectionRefusedError(),
        FileNotFoundError(),
        asyncpg.CannotConnectNowError("starting"),
        asyncpg.DeadlockDetectedError("d"),
        asyncpg.TooManyConnectionsError("full"),
        asyncpg.ConnectionDoesNotExistError("lost"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.QueryCanceledError("waited for a lock"),
    ):
        assert is_passing(error), error
    for wrong in (
        ValueError(),
        PermissionError(),
        asyncpg.UniqueViolationError("u"),
        asyncpg.UndefinedTableError("t"),
        asyncpg.InterfaceError("cannot use"),
        asyncpg.InFailedSQLTransactionError("f"),
        asyncpg.InterfaceError("pool is closed"),
        asyncpg.ConfigurationLimitExceededError("temp_file_limit"),
        asyncpg.DatabaseDroppedError("d"),
    ):
        assert not is_passing(wrong), wrong
    assert not is_passing(asyncpg.QueryCanceledError("statement_timeout"), in_handler=True)


def test_keys() -> None:
    class Ordinary(Projection):
        def handle(self, tx: object, event: orisun.Event) -> None: ...

    class Own(Ordinary):
        key_of = by_key("account", "currency")  # type: ignore[assignment]

    with pytest.raises(TypeError, match="abstract method handle"):
        Projection()  # type: ignore[abstract]
    ordinary, own = Ordinary(), Own()
    bare, both, aggregate = given(
        orisun.NewEvent("E", {"account": "a"}),
        orisun.NewEvent("E", {"account": "a", "currency": "EUR"}),
        orisun.NewEvent("E", {"aggregate_type": "order", "aggregate_id": "7"}),
    ).events
    assert (own.key_of(bare), own.key_of(both)) == (None, "a/EUR")
    assert (ordinary.key_of(bare), ordinary.key_of(aggregate)) == (None, "order/7")


def test_the_standard_logger_formats_only_what_is_written(caplog: pytest.LogCaptureFixture) -> None:
    class Dear:
        def __str__(self) -> str:
            raise AssertionError("put together in vain")

    logger = StandardLogger(logging.getLogger("projections.test"))
    with caplog.at_level(logging.INFO, "projections.test"):
        logger.debug("batch", position=Dear())
        logger.info("started", projection="p", partition=3)
    assert caplog.messages == ["started projection=p partition=3"]


@pytest.mark.parametrize(
    "command",
    ["", "run", "status", "parked", "replay", "discard", "reset", "rebuild", "repartition", "tables"],
)
def test_help(command: str) -> None:
    result = CliRunner().invoke(main, ["projections", *command.split(), "--help"])
    shown = result.output
    assert result.exit_code == 0, shown
    assert "Usage:" in shown


def test_a_wrong_app_is_told() -> None:
    wrong = {
        "no_module_of_this_name:app": "no_module_of_this_name",
        "sys:no_such_name": "no_such_name",
        "sys": "write MODULE:NAME",
        "sys:path": "a list is no ProjectionApp",
    }
    for app, told in wrong.items():
        result = CliRunner().invoke(main, ["projections", "--app", app, "status"])
        assert result.exit_code == 1
        assert told in result.output
        assert "Traceback" not in result.output
