"""What the commands have in common: how they are made, run and end."""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import click

from ..client import Client
from ..errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    OrisunError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from .connection import Connection, connection_options, is_connection_option, take_connection
from .output import Show, output_option


class Exit(enum.IntEnum):
    """How commands end; told in docs/command-line.md."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFLICT = 3
    UNAVAILABLE = 4
    #: 128 and the signal's number, as shells count: Ctrl-C.
    INTERRUPTED = 130
    #: Whoever read the output has gone, such as `| head`.
    BROKEN_PIPE = 141


_STDERR = 2

_CODES: tuple[tuple[type[OrisunError], Exit], ...] = (
    (AlreadyExists, Exit.CONFLICT),
    (Unavailable, Exit.UNAVAILABLE),
    (DeadlineExceeded, Exit.UNAVAILABLE),
    (InvalidArgument, Exit.USAGE),
)
_UNREACHABLE = re.compile(
    r"[Ff]ailed to connect|backends failing|DNS|resol|Connection (?:refused|reset)|recvmsg|[Hh]andshake|Socket closed"
)
_REASONS = {
    "DNS": "its name is not known",
    "resol": "its name is not known",
    "CERTIFICATE_VERIFY": "its certificate is not trusted",
    "handshake": "the TLS handshake failed",
    "Ssl": "the TLS handshake failed",
    "reset": "the connection was reset; does it want --tls?",
    "refused": "connection refused",
    "Socket closed": "it closed the connection; does it want --tls?",
}


class Failure(click.ClickException):
    """Ends the command with one line and an exit code."""

    def __init__(self, message: str, code: Exit = Exit.FAILURE) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = int(code)  # type: ignore[misc]  # click reads it of the instance


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    client: Client
    show: Show
    connection: Connection


class StoreCommand(click.Command):
    """A command whose options of the connection stand apart in its help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Connection": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections["Connection" if is_connection_option(parameter) else "Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def examples(text: str) -> str:
    """An epilog of examples, whose lines stay as they are."""
    lines = (f"  {line}" if line else "\n\b" for line in inspect.cleandoc(text).splitlines())
    return "\b\nExamples:\n" + "\n".join(lines)


def group(name: str, help_text: str, shown: str) -> click.Group:
    """A group of commands."""
    return click.Group(name, help=help_text, epilog=examples(shown))


def command(
    name: str, *, shown: str, within: click.Group | None = None, patient: bool = False
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], click.Command]:
    """Makes a command of a coroutine function that takes a ``Session`` and the command's own parameters.

    ``shown`` are its examples. ``patient`` is for long work: it goes on trying while no server answers.
    """

    def decorate(function: Callable[..., Coroutine[Any, Any, None]]) -> click.Command:
        @functools.wraps(function)
        def callback(**given: Any) -> None:
            show = Show(given.pop("output"))
            connection = take_connection(given)

            async def work() -> None:
                async with connection.client(patient=patient) as client:
                    await function(Session(client, show, connection), **given)

            run(work, connection)

        decorated = connection_options(output_option(callback))
        made = click.command(name, cls=StoreCommand, epilog=examples(shown), help=inspect.getdoc(function))(decorated)
        # one's own parameters first
        made.params.sort(key=lambda parameter: is_connection_option(parameter) + (parameter.name == "output"))
        if within is not None:
            within.add_command(made)
        return made

    return decorate


def run(work: Callable[[], Coroutine[Any, Any, None]], connection: Connection) -> None:
    """Runs a command's work to its end, whatever that is."""
    try:
        _quiet_grpc()
        asyncio.run(work())
        sys.stdout.flush()
    except KeyboardInterrupt:
        _forget_output()
        click.echo(err=True)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        _forget_output()
        sys.exit(Exit.BROKEN_PIPE)
    except OrisunError as error:
        raise failure(error, connection) from error


def _quiet_grpc() -> None:
    """gRPC's own lines of a failed handshake go nowhere: the error says it in words. GRPC_VERBOSITY shows them.

    It writes to the descriptor of stderr whatever Python thinks of it, and goes by its environment from before it was
    imported alone; so Python writes to a copy of the descriptor from now on. Its threads may write until the end.
    """
    try:
        is_plain = sys.stderr.fileno() == _STDERR
    except (AttributeError, OSError, ValueError):  # closed, or captured by a test
        is_plain = False
    if not is_plain or os.environ.get("GRPC_VERBOSITY"):
        return
    before, copy = sys.stderr, os.dup(_STDERR)
    sys.stderr = open(copy, "w", buffering=1, encoding=before.encoding, errors="backslashreplace")  # noqa: SIM115, PTH123
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)


def _forget_output() -> None:
    """What is still buffered for a reader that has gone must not be written when the interpreter ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def failure(error: OrisunError, connection: Connection) -> Failure:
    """An error as one line that says what to do, and its exit code."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILURE)
    return Failure(_told(error, str(error), connection), code)


def unreachable(message: str) -> str | None:
    """Why no server could be reached, in few words; None where one was reached."""
    if not _UNREACHABLE.search(message):
        return None
    return next((told for sign, told in _REASONS.items() if sign in message), message)


def _told(error: OrisunError, message: str, connection: Connection) -> str:
    if isinstance(error, Unavailable):
        reason = unreachable(message)
        if reason is None:
            return f"{message}; `orisun status` tells more"
        tls = (
            " TLS was asked for: does it speak it, and is its certificate trusted (--ca)?"
            if connection.tls is not None
            else ""
        )
        return (
            f"no server answers at {connection.server}: {reason}.{tls} "
            "Is it running (`orisun serve`)? Name another one with --server or ORISUN_SERVER"
        )
    if isinstance(error, DeadlineExceeded):
        return f"no answer within {connection.timeout:g} s ({message}); try again, or with a longer --timeout"
    if isinstance(error, Unauthenticated):
        return f"{connection.caller} is refused: {message}; check ORISUN_CLIENT_USERNAME and _PASSWORD, or the token"
    if isinstance(error, PermissionDenied):
        return f"{message}: {connection.caller} may not do this; {_needed(error)}"
    if isinstance(error, Conflict):
        return (
            f"nothing was stored: the context has changed. Expected {error.expected}, the latest matching event is at "
            f"{error.actual}; read again and decide again"
        )
    if isinstance(error, FailedPrecondition) and "is not active" in message:
        return f"{message}; `orisun boundary list` shows which there are"
    return message.replace("give tls=True for TLS", "give --tls for TLS")


def _needed(error: PermissionDenied) -> str:
    """Which role would do."""
    if not error.roles:
        return "docs/roles.md says which role may"
    place = f' for boundary "{error.boundary}"' if error.boundary else ""
    return f"it needs the role {' or '.join(error.roles)}{place}"


def confirmed(question: str) -> Callable[[Any], Any]:
    """Adds --yes; without it the question is asked, with the values of the command's arguments filled in."""

    def ask(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value or context.resilient_parsing:
            return
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask at: give --yes to confirm")
        if not click.confirm(question.format_map(context.params), err=True):
            raise Failure("not confirmed; nothing was done")

    return click.option("-y", "--yes", is_flag=True, expose_value=False, callback=ask, help="Do not ask.")
