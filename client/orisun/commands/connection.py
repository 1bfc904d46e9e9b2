"""Which server, and who is calling: the options that every command has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from ..channels import TLS
from ..client import Client, connect
from ..retries import RetryPolicy

F = TypeVar("F", bound=Callable[..., object])

_FILE = click.Path(dir_okay=False)
_PROMPTS = "asked for on a terminal"

#: Name of the parameter -> its option; the names are those of ``Connection``.
_OPTIONS: Mapping[str, Any] = {
    "server": click.option(
        "-s", "--server", envvar="ORISUN_SERVER", show_envvar=True, default="localhost:5005", show_default=True,
        metavar="HOST:PORT[,...]", help="The store's address, or several joined by commas.",
    ),
    "username": click.option(
        "-u", "--username", envvar="ORISUN_CLIENT_USERNAME", show_envvar=True, metavar="NAME",
        help=f"Who is calling; {_PROMPTS} when missing.",
    ),
    "password": click.option(
        "--password", envvar="ORISUN_CLIENT_PASSWORD", show_envvar=True, metavar="TEXT",
        help=f"Their password; {_PROMPTS} when missing. As an option it can be seen in `ps`.",
    ),
    "token": click.option(
        "--token", envvar="ORISUN_CLIENT_TOKEN", show_envvar=True, metavar="TEXT",
        help="An API token instead of both (see `orisun token`). As an option it can be seen in `ps`.",
    ),
    "tls": click.option(
        "--tls/--no-tls", default=None, envvar="ORISUN_CLIENT_TLS", show_envvar=True,
        help="Speak TLS; --ca and --cert imply it.",
    ),
    "ca": click.option(
        "--ca", type=_FILE, envvar="ORISUN_CLIENT_CA", show_envvar=True, help="Authority to trust, PEM.",
    ),
    "cert": click.option(
        "--cert", type=_FILE, envvar="ORISUN_CLIENT_CERT", show_envvar=True, help="Your own certificate, PEM.",
    ),
    "key": click.option(
        "--key", type=_FILE, envvar="ORISUN_CLIENT_KEY", show_envvar=True, help="The key of that certificate, PEM.",
    ),
    "tls_name": click.option(
        "--tls-name", envvar="ORISUN_CLIENT_TLS_NAME", show_envvar=True, metavar="NAME",
        help="Name in the server's certificate, where it is not the address.",
    ),
    "timeout": click.option(
        "--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
        envvar="ORISUN_CLIENT_TIMEOUT", show_envvar=True, metavar="SECONDS", help="Longest that a call may take.",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Connection:
    """The options of a connection, complete: what was missing was asked for."""

    server: str
    username: str | None
    password: str | None = field(repr=False)
    token: str | None = field(repr=False)
    tls: TLS | None
    timeout: float

    def client(self, target: str | None = None, *, patient: bool = False) -> Client:
        """A client of the server, or of another one with the same options.

        ``patient`` goes on trying for the whole timeout while no server answers, as long work should.
        """
        retry = RetryPolicy(attempts=1_000) if patient else RetryPolicy(attempts=4, first=0.1, longest=0.5)
        return connect(
            target or self.server,
            username=self.username,
            password=self.password,
            token=self.token,
            tls=self.tls or False,
            timeout=self.timeout,
            retry=retry,
        )

    @property
    def caller(self) -> str:
        """Who is calling, for messages."""
        return f'user "{self.username}"' if self.username else "the token" if self.token else "the certificate"


def connection_options(function: F) -> F:
    """Adds the options to a command."""
    for option in reversed(list(_OPTIONS.values())):
        function = option(function)
    return function


def is_connection_option(parameter: click.Parameter) -> bool:
    return parameter.name in _OPTIONS


def take_connection(given: dict[str, Any]) -> Connection:
    """The connection of a command's parameters, which are taken out of ``given``.

    Raises UsageError where it is not said who is calling and there is no terminal to ask at.
    """
    options = {name: given.pop(name) for name in _OPTIONS}
    username, password, token = options["username"], options["password"], options["token"]
    with_certificate = bool(options["cert"])
    if token and _came_from_option("token") and not _came_from_option("username"):
        username = password = None  # what was typed wins over the environment
    elif token and _came_from_option("username"):
        token = None
    if token and username:
        raise click.UsageError(
            "give a user name and password, or a token, not both (one may be set in the environment)"
        )
    if not token and not (username and password) and not (with_certificate and not username):
        username, password = _ask(username, password)
    tls = options["tls"]
    if tls is False or (tls is None and not (options["ca"] or options["cert"])):
        secured = None
    else:
        key, certificate = options["key"], options["cert"]
        secured = TLS(ca=options["ca"], certificate=certificate, key=key, server_name=options["tls_name"])
    return Connection(options["server"], username, password, token, secured, options["timeout"])


def _came_from_option(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _ask(username: str | None, password: str | None) -> tuple[str, str]:
    if not sys.stdin.isatty():
        missing = "a password: set ORISUN_CLIENT_PASSWORD" if username else (
            "who is calling: set ORISUN_CLIENT_USERNAME and ORISUN_CLIENT_PASSWORD, or ORISUN_CLIENT_TOKEN"
        )  # fmt: skip
        raise click.UsageError(f"there is no terminal to ask for {missing}")
    username = username or str(click.prompt("Username", default="admin", err=True))
    password = password or str(click.prompt(f"Password of {username}", hide_input=True, err=True))
    return username, password


def read_secret(path: str) -> str:
    """The first line of a file, or of standard input for ``-``. Raises UsageError."""
    try:
        text = sys.stdin.readline() if path == "-" else Path(path).read_text()
    except OSError as problem:
        raise click.UsageError(f"{path} cannot be read: {problem.strerror}") from None
    return text.split("\n", 1)[0]
