"""Reads ``Settings`` from the environment: every mistake at once, and where each value came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr, ValidationError

from orisun_server.addresses import mask_userinfo
from orisun_server.setting_types import Mistake, derive_boundaries, format_duration
from orisun_server.settings import SECTIONS, Settings

PREFIX = "ORISUN_"

#: Fields that three variables make together; ORISUN_PG_SCHEMAS has no field of its own.
_BOUNDARY_VARIABLES = ("ORISUN_BOUNDARIES", "ORISUN_PG_SCHEMAS", "ORISUN_ADMIN_BOUNDARY")
#: What the command line of the client goes by; a shell may have them beside the server's.
_CLIENT_VARIABLES = re.compile(r"ORISUN_(SERVER|CLIENT_\w+|ADMIN_URL|NEW_PASSWORD_FILE)")
_GO_VARIABLES = ("GOMAXPROCS", "GOMEMLIMIT", "GOGC")
#: Kubernetes describes a Service called orisun-grpc by ORISUN_GRPC_PORT=tcp://10.0.0.1:5005 and the like.
_SERVICE_LINK = re.compile(r"ORISUN(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?|PORT)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")

#: Finds what is wrong with settings of which each by itself is well written.
Check = Callable[[Settings], Iterable[Mistake]]


class SettingsError(Exception):
    """The settings cannot be used; every mistake is listed, one a line."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        lines = "\n".join(f"  {variable}: {text}" for variable, text in mistakes)
        super().__init__(f"{len(mistakes)} mistake{'s' * (len(mistakes) != 1)} in the settings:\n{lines}")


@dataclass(frozen=True)
class Loaded:
    """Settings with the origin of each variable (environment, default or derived) and warnings for the log."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def variables() -> dict[str, str | None]:
    """Every variable in the order of the documents, with its field (ORISUN_PG_SCHEMAS has none)."""
    names: dict[str, str | None] = {}
    for field in Settings.model_fields:
        names[PREFIX + field.upper()] = field
        if field == "boundaries":
            names["ORISUN_PG_SCHEMAS"] = None
    return names


def load(environ: Mapping[str, str], *checks: Check) -> Loaded:
    """Read the settings. Empty values count as unset. Raises SettingsError naming every mistake, also those that
    ``checks`` find (see checks.py).
    """
    known, warnings = variables(), list[str]()
    given = _given(environ, known, warnings)
    derived = derive_boundaries(
        given.get("ORISUN_BOUNDARIES"),
        given.get("ORISUN_PG_SCHEMAS"),
        given.get("ORISUN_ADMIN_BOUNDARY", "orisun_admin"),
    )
    mistakes = list(derived.mistakes)
    values: dict[str, Any] = {
        field: given[variable] for variable, field in known.items() if field and variable in given
    }
    values["boundaries"] = derived.boundaries
    try:
        settings = Settings(**values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistakes += [_mistake(detail, given) for detail in details]
        refused = {detail["loc"][0] for detail in details}
        # the others are looked at all the same
        settings = Settings(**{f: Settings.model_fields[f].default if f in refused else values[f] for f in values})
    told = {variable for variable, _ in mistakes}
    for check in (_idle_connections, *checks):
        # what only follows from a value that is refused is no mistake of its own
        mistakes += [(name, text) for name, text in check(settings) if not any(one in f"{name} {text}" for one in told)]
    if mistakes:
        raise SettingsError(mistakes)
    origins = {variable: _origin(variable, field, given, settings) for variable, field in known.items()}
    return Loaded(settings, origins, tuple(warnings))


def effective(settings: Settings) -> dict[str, str]:
    """Every variable with its value as the environment would write it, secrets masked."""
    shown = {}
    for variable, field in variables().items():
        if field == "boundaries":
            shown[variable] = settings.boundary_definitions
        elif field is None:
            shown[variable] = settings.pg_schemas
        else:
            shown[variable] = _written(field, getattr(settings, field))
    return shown


def origins(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Where each variable's value comes from: environment, default or derived (from other variables)."""
    known = variables()
    given = _given(environ, known, [])
    return {variable: _origin(variable, field, given, settings) for variable, field in known.items()}


def descriptions() -> dict[str, str]:
    """What each variable means."""
    return {
        variable: (Settings.model_fields[field].description or "").removeprefix("Ours. ")
        if field
        else "`boundary:schema` pairs; a bare `x` means `x:x`"
        for variable, field in variables().items()
    }


def sections() -> dict[str, list[str]]:
    """The variables of each section of the reference, in its order."""
    found: dict[str, list[str]] = {}
    for variable, field in variables().items():
        if field in SECTIONS:
            found[SECTIONS[field]] = []
        found[next(reversed(found))].append(variable)
    return found


def reference() -> str:
    """The tables of ``docs/configuration.md``."""
    defaults, lines = Settings(), list[str]()
    for variable, field in variables().items():
        if field in SECTIONS:
            lines += ["", f"## {SECTIONS[field]}", "", "| Variable | Default | Meaning |", "|---|---|---|"]
        if field is None:
            default, meaning = defaults.pg_schemas, "`boundary:schema` pairs; a bare `x` means `x:x`"
        else:
            info = Settings.model_fields[field]
            raw = defaults.boundary_definitions if field == "boundaries" else info.default
            default = str(raw).lower() if isinstance(raw, bool) else str("" if raw is None else raw)
            meaning = info.description or ""
        lines.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join(lines).strip() + "\n"


def _given(environ: Mapping[str, str], known: Mapping[str, str | None], warnings: list[str]) -> dict[str, str]:
    """The ORISUN_* variables that are set and known; says what is odd about the others."""
    given: dict[str, str] = {}
    tuning = [name for name in sorted(_GO_VARIABLES) if name in environ]
    if tuning:
        warnings.append(f"{', '.join(tuning)}: for the Go runtime; this server runs on Python and ignores them")
    for name in sorted(environ):
        value = environ[name].strip()
        if not name.startswith(PREFIX) or not value:
            misplaced, colon, rest = name.partition(":")
            if colon and misplaced in known and rest and misplaced not in environ:
                given[misplaced] = rest
                warnings.append(f'"{name}" is taken as {misplaced}={rest}; write = instead of :')
            continue
        if _SERVICE_LINK.fullmatch(name) and (name not in known or _SERVICE_LINK_VALUE.fullmatch(value)):
            continue
        if name in known:
            given[name] = value
        elif _CLIENT_VARIABLES.fullmatch(name):
            continue
        else:
            close = difflib.get_close_matches(name, known, n=1)
            warnings.append(f"{name} is unknown and ignored" + (f"; did you mean {close[0]}?" if close else ""))
    return given


def _mistake(detail: Any, given: Mapping[str, str]) -> Mistake:
    field = str(detail["loc"][0])
    variable, value = PREFIX + field.upper(), given.get(PREFIX + field.upper(), "")
    message = str(detail["msg"]).removeprefix("Value error, ")
    # before an @ there may be a password, and what is written wrong cannot be masked for sure
    shown = "" if _is_secret(field) or "@" in value else f'"{value}": '
    return variable, f"{shown}{message[:1].lower()}{message[1:]}"


def _idle_connections(settings: Settings) -> Iterator[Mistake]:
    for pool in ("write", "read", "admin"):
        idle, most = f"pg_{pool}_max_idle_conns", f"pg_{pool}_max_open_conns"
        kept, limit = getattr(settings, idle), getattr(settings, most)
        if idle in settings.model_fields_set and kept > limit:
            yield PREFIX + idle.upper(), f'"{kept}" is more than {PREFIX}{most.upper()}="{limit}"; lower it'


def _is_secret(field: str) -> bool:
    return "SecretStr" in str(Settings.model_fields[field].annotation)


def _written(field: str, value: object) -> str:
    if _is_secret(field):
        return "********" if isinstance(value, SecretStr) and value.get_secret_value() else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_duration(value)
    if isinstance(value, tuple):
        return mask_userinfo(",".join(map(str, value)))
    return "" if value is None else mask_userinfo(str(value))


def _origin(variable: str, field: str | None, given: Mapping[str, str], settings: Settings) -> str:
    if variable in given:
        return "environment"
    if variable in _BOUNDARY_VARIABLES[:2]:
        return "derived" if any(name in given for name in _BOUNDARY_VARIABLES) else "default"
    if field is not None and (field == "grpc_host" or getattr(settings, field) != getattr(Settings(), field)):
        return "derived"
    return "default"
