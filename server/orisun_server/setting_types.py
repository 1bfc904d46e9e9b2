"""How values of ORISUN_* variables are written: durations, lists, passwords, boundaries and their schemas. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr

from orisun_server.core.users import MAX_PASSWORD, MIN_PASSWORD
from orisun_server.storage.names import is_identifier

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Limit = Annotated[int, Field(ge=-1)]
Text = Annotated[str, Field(min_length=1)]
#: nats-server takes no spaces in these.
Word = Annotated[str, Field(pattern=r"^\S+$")]

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")

#: A variable and what is wrong with its value.
Mistake = tuple[str, str]

#: What the seeds' default of ORISUN_PG_SCHEMAS maps; a boundary that is named without a schema gets its own name else.
SEED_SCHEMAS = {"orisun_test_1": "public", "orisun_test_2": "test2", "orisun_admin": "admin"}
_SEED_DESCRIPTIONS = {"orisun_test_1": "boundary1", "orisun_test_2": "boundary2", "orisun_admin": "boundary3"}


def parse_duration(value: object) -> float:
    """Seconds of a duration as Go writes it: ``250ms``, ``5m``, ``1h30m``, ``1800s``, ``0``; numbers are seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip()
        parts = _DURATION_PART.findall(text)
        if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
            raise ValueError("write a duration with its unit, such as 250ms, 30s, 5m or 1h30m")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 <= seconds < float("inf"):
        raise ValueError("a duration cannot be negative or endless")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest spelling that ``parse_duration`` reads back: ``5m``, ``1h30m``, ``250ms``."""
    if seconds == 0:
        return "0"
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    written = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{number:g}{unit}" for number, unit in written if number)


#: Seconds; in the environment as Go writes durations.
Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str, when_used="json")
]


def _level(value: object) -> object:
    return value.upper().replace("WARNING", "WARN") if isinstance(value, str) else value


Level = Annotated[Literal["DEBUG", "INFO", "WARN", "ERROR"], BeforeValidator(_level)]


def _check_password(value: SecretStr) -> SecretStr:
    if not MIN_PASSWORD <= len(value.get_secret_value()) <= MAX_PASSWORD:
        raise ValueError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    return value


#: Of a user of the server.
Password = Annotated[SecretStr, AfterValidator(_check_password)]


def entries(text: str) -> tuple[str, ...]:
    """Of a comma-separated list, without blanks."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


#: Comma-separated in the environment.
List = Annotated[tuple[str, ...], BeforeValidator(lambda value: entries(value) if isinstance(value, str) else value)]


def _check_users(pairs: tuple[str, ...]) -> tuple[str, ...]:
    for pair in pairs:
        name, _, user = pair.rpartition("=")
        if pair != "*" and not (name and user):
            raise ValueError(f'"{pair}" is no name=user pair, such as orders-service=orders, and not *')
    return pairs


#: Names of client certificates, each with the user that it stands for: ``name=user``, or ``*``.
CertificateUsers = Annotated[List, AfterValidator(_check_users)]


class BoundarySetting(NamedTuple):
    """A boundary that the server creates at its start when the catalog does not have it."""

    name: str
    description: str
    schema: str


class Boundaries(NamedTuple):
    """What the three variables say together."""

    boundaries: tuple[BoundarySetting, ...]
    mistakes: tuple[Mistake, ...]


def default_schema(boundary: str) -> str:
    """The schema of a boundary for which none is set."""
    return SEED_SCHEMAS.get(boundary, boundary)


def derive_boundaries(definitions: str | None, schemas: str | None, admin: str) -> Boundaries:
    """Combine the three variables (contract.md, Environment).

    Of ORISUN_BOUNDARIES and ORISUN_PG_SCHEMAS, one that is not set follows from the other; both set must name the same
    boundaries. The admin boundary is added where it is missing. Neither set means the seeds' three boundaries.
    """
    mistakes: list[Mistake] = []
    described = _parse_definitions(definitions, mistakes) if definitions is not None else None
    mapped = _parse_schemas(schemas, mistakes) if schemas is not None else None
    if not is_identifier(admin):
        mistakes.append(("ORISUN_ADMIN_BOUNDARY", f'"{admin}" cannot name a boundary: {_RULE}'))
    if described is not None and mapped is not None and not mistakes:
        _check_agreement(described, mapped, admin, mistakes)
    if described is None and mapped is None:
        names: Iterable[str] = [*(name for name in SEED_SCHEMAS if name != "orisun_admin"), admin]
    else:
        names = [*(described if described is not None else mapped or {}), admin]
    boundaries = tuple(
        BoundarySetting(
            name,
            (_SEED_DESCRIPTIONS if described is None and mapped is None else described or {}).get(name, ""),
            (mapped or {}).get(name) or default_schema(name),
        )
        for name in dict.fromkeys(names)
    )
    return Boundaries(boundaries, tuple(mistakes))


def format_schemas(boundaries: Sequence[BoundarySetting]) -> str:
    """Boundaries as ORISUN_PG_SCHEMAS writes them."""
    return ",".join(f"{boundary.name}:{boundary.schema}" for boundary in boundaries)


def format_definitions(boundaries: Sequence[BoundarySetting]) -> str:
    """Boundaries as ORISUN_BOUNDARIES writes them."""
    items = [{"name": boundary.name, "description": boundary.description} for boundary in boundaries]
    return json.dumps(items, separators=(",", ":"), ensure_ascii=False)


_RULE = "1-63 letters, digits and underscores, the first no digit"
_EXAMPLE = '[{"name":"orders","description":"orders"}]'


def _parse_definitions(text: str, mistakes: list[Mistake]) -> dict[str, str]:
    """Name to description, in order."""
    variable, described = "ORISUN_BOUNDARIES", dict[str, str]()
    try:
        items = json.loads(text)
    except ValueError as error:
        mistakes.append((variable, f"is not JSON ({error}); write a list such as {_EXAMPLE}"))
        return described
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        mistakes.append((variable, f"must be a JSON list of objects such as {_EXAMPLE}"))
        return described
    for number, item in enumerate(items):
        name, description = item.get("name"), item.get("description", "")
        if not isinstance(name, str) or not is_identifier(name):
            mistakes.append((variable, f"item {number}: name {json.dumps(name)} cannot name a boundary: {_RULE}"))
        elif not isinstance(description, str):
            mistakes.append((variable, f'item {number} ("{name}"): description must be a text'))
        elif name in described:
            mistakes.append((variable, f'names "{name}" twice; remove one'))
        else:
            described[name] = description
        for key in item.keys() - {"name", "description"}:
            mistakes.append((variable, f'item {number}: unknown key "{key}"; known are name and description'))
    return described


def _parse_schemas(text: str, mistakes: list[Mistake]) -> dict[str, str]:
    """Boundary to schema, in order."""
    variable, mapped = "ORISUN_PG_SCHEMAS", dict[str, str]()
    for entry in entries(text):
        name, colon, schema = (part.strip() for part in entry.partition(":"))
        schema = schema if colon else name
        if not is_identifier(name):
            mistakes.append((variable, f'"{name}" in "{entry}" cannot name a boundary: {_RULE}'))
        elif not is_identifier(schema) or schema.startswith("pg_") or schema == "information_schema":
            mistakes.append((variable, f'"{schema}" in "{entry}" cannot name a schema: {_RULE}, not pg_...'))
        elif name in mapped:
            mistakes.append((variable, f'names boundary "{name}" twice; remove one'))
        else:
            mapped[name] = schema
    if not mapped and not mistakes:
        mistakes.append((variable, f'"{text}" names no boundary; write boundary:schema pairs such as orders:public'))
    return mapped


def _check_agreement(
    described: Mapping[str, str], mapped: Mapping[str, str], admin: str, mistakes: list[Mistake]
) -> None:
    for variable, here, there, other in (
        ("ORISUN_PG_SCHEMAS", mapped, described, "ORISUN_BOUNDARIES"),
        ("ORISUN_BOUNDARIES", described, mapped, "ORISUN_PG_SCHEMAS"),
    ):
        missing = [name for name in there if name not in here and name != admin]
        if missing:
            mistakes.append(
                (variable, f"does not name {', '.join(missing)}, which {other} does; add it or unset one of the two")
            )
