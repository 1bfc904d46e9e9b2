"""Logger hooks: what they tell, that they quote no data, and that nothing of them runs where there is no logger."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import orisun
from orisun import AppendCondition, NewEvent, sync, where
from orisun.projections import PoisonPolicy, Processor, ProcessorConfig, ProjectionStopped
from orisun_server.settings import Settings
from tests.client.shop import Deposits, Shop, running
from tests.harness import Connection, ServerProcess

LIBRARY = Path(orisun.__file__).parent
METHODS = {"debug", "info", "error"}


class Told:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        assert level in METHODS
        return lambda message, /, **fields: self.messages.append((level, message, fields))

    def named(self, message: str) -> list[dict[str, Any]]:
        return [fields for _, found, fields in self.messages if found == message]


async def work(boundary: orisun.Boundary, shop: Shop, projection: Deposits, config: ProcessorConfig) -> None:
    """What a client and a worker do, with a conflict, a repeated attempt and an event that is never handled."""
    secret = {"account": "s3cret", "amount": 1}
    await boundary.append([NewEvent("Deposited", secret), NewEvent("Deposited", secret)])
    with pytest.raises(orisun.Conflict):
        await boundary.append([NewEvent("Deposited", secret)], condition=AppendCondition(where(account="s3cret")))
    await boundary.latest(where(account="s3cret") | where(account="nobody"))
    await boundary.stream("User", "u-1").append([NewEvent("UserCreated")])
    assert len([event async for event in boundary.read(where("Deposited", account="s3cret"))]) == 2
    async with running(Processor(shop.checkpoints, boundary, config), projection) as processor:
        await processor.caught_up(projection)
    await boundary.append([NewEvent("Deposited", {"account": "s3cret", "amount": 666})])
    with pytest.raises(ProjectionStopped):
        await Processor(shop.checkpoints, boundary, config).run(projection)


def deposits(shop: Shop) -> Deposits:
    projection = Deposits(shop.schema)
    projection.poison = {666}
    return projection


POISON = PoisonPolicy("stop", attempts=2, first_pause=0.001)


async def test_what_is_told(server: Connection, shop: Shop, make_client: Callable[..., orisun.Client]) -> None:
    told = Told()
    boundary = make_client(server.address, logger=told).boundary(shop.boundary.name)
    await work(boundary, shop, deposits(shop), ProcessorConfig(poison=POISON, logger=told))
    name = {"boundary": boundary.name}
    assert told.named("appended")[0] == name | {"events": 2, "position": "(2, 1)"}
    conflict = name | {"events": 1, "keys": "account", "expected": "(-1, -1)", "actual": "(2, 1)"}
    assert told.named("append conflicts") == [conflict]
    assert told.named("latest")[0] == name | {"keys": "account", "events": 1}
    assert told.named("appended to stream") == [{"stream": "User/u-1", "events": 1, "version": 1}]
    read = {"keys": "account,eventType", "descending": False, "asked": 500, "events": 2}
    assert name | read in told.named("read")
    assert sum(fields["handled"] for fields in told.named("batch committed")) == 2
    assert [fields["attempts"] for fields in told.named("event not handled")] == [1, 2]
    assert {"projection started", "projection stopped"} <= {message for _, message, _ in told.messages}
    assert "s3cret" not in str(told.messages), "values of data are nobody's business"


def test_the_synchronous_face_takes_it_too(server_process: ServerProcess, settings: Settings) -> None:
    told = Told()
    with sync.connect(server_process.address, username="admin", password="changeit", logger=told) as client:
        client.boundary(settings.boundaries[0].name).append([NewEvent("A")])
    assert len(told.named("appended")) == 1


# -- without one ---------------------------------------------------------------------------------------------------


def hooks() -> dict[tuple[str, int], str]:
    """Every line of the library that tells a logger something, with what is wrong about it: it must stand under an
    ``if`` that asks for that logger, so that its arguments are not even made where there is none."""
    found: dict[tuple[str, int], str] = {}

    def visit(path: Path, node: ast.AST, asked: frozenset[str]) -> None:
        if isinstance(node, ast.If):
            told = {one.target.id for one in ast.walk(node.test) if isinstance(one, ast.NamedExpr)}
            told |= {one.id for one in ast.walk(node.test) if isinstance(one, ast.Name)}
            for child in node.body:
                visit(path, child, asked | told)
            for child in node.orelse:
                visit(path, child, asked)
            return
        called = node.func if isinstance(node, ast.Call) else None
        value = called.value if isinstance(called, ast.Attribute) and called.attr in METHODS else None
        if isinstance(value, ast.Name) and value.id in ("log", "logger"):
            wrong = "" if value.id in asked else f"{value.id} is not asked for"
            found[str(path), node.lineno] = wrong  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            visit(path, child, asked)

    for path in LIBRARY.rglob("*.py"):
        if "commands" not in path.parts:
            visit(path, ast.parse(path.read_text()), frozenset())
    return found


async def test_no_line_of_a_hook_runs_where_there_is_no_logger(
    server: Connection, shop: Shop, make_client: Callable[..., orisun.Client]
) -> None:
    """Counted by the interpreter, line by line: no call, no text, no dictionary."""
    lines = hooks()
    assert len(lines) >= 12
    assert {place: wrong for place, wrong in lines.items() if wrong} == {}
    ran: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(str(LIBRARY)):
            return None
        ran.add((file, frame.f_lineno))
        return trace

    async def traced(logger: Told | None) -> set[tuple[str, int]]:
        ran.clear()
        boundary = make_client(server.address, logger=logger).boundary(shop.boundary.name)
        projection = deposits(shop)
        projection.name = f"deposits {logger is None}"
        config = ProcessorConfig(poison=POISON, logger=logger)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            await asyncio.create_task(work_of(boundary, projection, config))
        finally:
            sys.settrace(before)
        return ran & lines.keys()

    async def work_of(boundary: orisun.Boundary, projection: Deposits, config: ProcessorConfig) -> None:
        await boundary.append([NewEvent("Deposited", {"account": "a", "amount": 666})])
        with pytest.raises(ProjectionStopped):
            await Processor(shop.checkpoints, boundary, config).run(projection)
        with pytest.raises(orisun.Conflict):
            await boundary.append([NewEvent("Deposited", {})], condition=AppendCondition(where(account="a")))
        await boundary.stream("User", "u-1").append([NewEvent("UserCreated")])
        assert [event async for event in boundary.read()]

    assert len(await traced(Told())) >= 7, "the hooks are met"
    assert await traced(None) == set()
