"""The ways in which the product's documents start a server: the variables that they print, taken out of their text."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from orisun_server.embedded.postgres import PostgresAddress
from tests.harness import free_port

EXCERPTS = Path(__file__).parent / "seeds"

# a shell's NAME=value, docker's -e NAME=value, or NAME: value of a compose file
_SET = re.compile(r"\s*(?:-e\s+)?(ORISUN_[A-Z_]+)(?:=|: )(.*?)\s*\\?")
#: The oldest document has a colon without a value.
_ODD = re.compile(r"(ORISUN_[A-Z_]+:\w+) \\")
_MORE = "[... other config ...] \\"


def blocks(text: str) -> list[str]:
    """The verbatim lines of each start: those in a row that set variables."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if _SET.fullmatch(line) or _ODD.fullmatch(line) or line == _MORE:
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(block) for block in found if block]


def variables(block: str) -> dict[str, str]:
    """What a start sets; the odd one is a name with a blank value."""
    found: dict[str, str] = {}
    for line in block.splitlines():
        if odd := _ODD.fullmatch(line):
            found[odd[1]] = " "
        elif assignment := _SET.fullmatch(line):
            (found[assignment[1]],) = shlex.split(assignment[2])
    return found


def starts(document: str) -> list[dict[str, str]]:
    """The starts of a document, "000" to "002", each once."""
    found: list[dict[str, str]] = []
    for block in blocks((EXCERPTS / f"{document}_starts.txt").read_text()):
        given = variables(block)
        if _essence(given) not in [_essence(other) for other in found]:
            found.append(given)
    return found


#: What no two machines have alike: it is replaced by what there is.
_LOCAL = ("ORISUN_PG_HOST", "ORISUN_PG_PORT", "ORISUN_PG_NAME", "ORISUN_GRPC_PORT", "ORISUN_NATS_PORT")


def _essence(given: Mapping[str, str]) -> dict[str, str]:
    return {name: value.rpartition("/")[2] for name, value in given.items() if name not in _LOCAL}


def here(given: Mapping[str, str], place: Path, postgres: Mapping[str, str]) -> dict[str, str]:
    """The same start on this machine: other addresses, free ports, directories below ``place``.

    ``postgres`` replaces ORISUN_PG_HOST, _PORT and _NAME; a start that names no PostgreSQL embeds one.
    """
    made = {name: value for name, value in given.items() if name not in _LOCAL}
    made |= {"ORISUN_NATS_PORT": str(free_port()), "ORISUN_NATS_STORE_DIR": str(place / "nats")}
    made |= postgres if "ORISUN_PG_HOST" in given else {"ORISUN_DATA_DIR": str(place)}
    for name in ("CERT", "KEY", "CA"):
        if path := made.get(f"ORISUN_GRPC_TLS_{name}_FILE"):
            made[f"ORISUN_GRPC_TLS_{name}_FILE"] = str(place / Path(path).name)
    return made


def routed(*nodes: dict[str, str]) -> list[dict[str, str]]:
    """Nodes that find each other on this machine: each host with its port becomes a free port of the loopback."""
    addresses = [
        f"{node['ORISUN_NATS_CLUSTER_HOST']}:{node['ORISUN_NATS_CLUSTER_PORT']}" for node in nodes if is_clustered(node)
    ]
    ports = {address: str(free_port()) for address in addresses}
    made = []
    for node, address in zip(nodes, addresses, strict=bool(addresses)):
        routes = node["ORISUN_NATS_CLUSTER_ROUTES"]
        for other, port in ports.items():
            routes = routes.replace(other, f"127.0.0.1:{port}")
        changed = {"HOST": "127.0.0.1", "PORT": ports[address], "ROUTES": routes}
        made.append(node | {f"ORISUN_NATS_CLUSTER_{name}": value for name, value in changed.items()})
    return made or list(nodes)


def is_clustered(given: Mapping[str, str]) -> bool:
    return given.get("ORISUN_NATS_CLUSTER_ENABLED") == "true"


@asynccontextmanager
async def fresh_database(postgres: PostgresAddress) -> AsyncIterator[dict[str, str]]:
    """An empty database, as the variables that name it."""
    name = f"start_{secrets.token_hex(4)}"
    administration = await asyncpg.connect(host=postgres.host, user=postgres.user, database=postgres.database)
    try:
        await administration.execute(f"CREATE DATABASE {name}")
        yield {"ORISUN_PG_HOST": postgres.host, "ORISUN_PG_PORT": str(postgres.port), "ORISUN_PG_NAME": name}
    finally:
        await administration.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await administration.close()
