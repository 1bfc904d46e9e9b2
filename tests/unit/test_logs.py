"""Logs are one line an event and carry neither payloads nor secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import asyncpg
import pytest
import structlog

from orisun_server import logs

Read = Callable[[], list[dict[str, object]]]


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    # the operator's command line, run in this process by other tests, silences it
    library = logging.getLogger("asyncpg")
    silenced = library.level
    library.setLevel(logging.NOTSET)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("INFO", "json", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level
    library.setLevel(silenced)


def entries(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_structlog_and_the_standard_library_write_the_same(output: io.StringIO) -> None:
    structlog.get_logger("a").info("one", count=1)
    logging.getLogger("b").warning("two %d", 2)
    structlog.get_logger("a").debug("not at this level")
    first, second = entries(output)
    assert (first["event"], first["count"], first["level"], first["logger"]) == ("one", 1, "info", "a")
    assert (second["event"], second["level"], second["logger"]) == ("two 2", "warning", "b")
    assert str(first["timestamp"]).endswith("Z")


def test_attempts_of_a_pool_to_connect_anew_are_one_line_each(output: io.StringIO) -> None:
    try:
        raise ConnectionRefusedError("nobody listens")
    except OSError:
        logging.getLogger("asyncpg.pool").warning("Failed to restore the pool connection floor", exc_info=True)
    (entry,) = entries(output)
    assert entry["reason"] == "ConnectionRefusedError: nobody listens"
    assert "exception" not in entry


def test_private_fields_are_redacted(output: io.StringIO) -> None:
    structlog.get_logger().info(
        "x", data="hush", metadata="hush", pg_password="hush", Authorization="hush", boundary="b"
    )
    assert "hush" not in output.getvalue()
    assert entries(output)[0]["boundary"] == "b"


def test_exceptions_are_described_without_rows_or_values(output: io.StringIO) -> None:
    unique = asyncpg.UniqueViolationError.new({"C": "23505", "M": "duplicate hush", "D": "Key (k)=(hush) exists."})
    try:
        try:
            raise unique
        except asyncpg.PostgresError as error:
            raise RuntimeError("first line\nDETAIL: hush") from error
    except RuntimeError as error:
        structlog.get_logger("a").exception("failed", error=error)
        logging.getLogger("b").exception("failed too")
    assert "hush" not in output.getvalue()
    for entry in entries(output):
        exception = str(entry["exception"])
        assert "UniqueViolationError (SQLSTATE 23505)" in exception
        assert "RuntimeError: first line" in exception
        assert "test_logs.py" in exception
    assert entries(output)[0]["error"] == "RuntimeError: first line"


def test_groups_of_exceptions_are_described(output: io.StringIO) -> None:
    try:
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    except ExceptionGroup:
        structlog.get_logger().exception("failed")
    exception = str(entries(output)[0]["exception"])
    assert "[1] ValueError: one" in exception
    assert "[2] KeyError: 'two'" in exception


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("WARN", "console", stream)
    structlog.get_logger("a").warning("careful", boundary="b")
    structlog.get_logger("a").info("quiet")
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level
    assert "careful" in stream.getvalue()
    assert "boundary=b" in stream.getvalue()
    assert "quiet" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")
