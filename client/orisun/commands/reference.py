"""``python -m orisun.commands.reference``: the help of every command as the tables of docs/command-line.md."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from ..cli import main

_WIDTH = 100
_CONNECTION = re.compile(r"\nConnection:\n(?:  .*\n)+")


def reference() -> str:
    """Markdown of all commands; the options of the connection, which most of them have, stand there once."""
    parts = []
    for context in _contexts(_context(main, "orisun")):
        text = _CONNECTION.sub("", context.get_help() + "\n")
        told = "\n".join(line.rstrip() for line in text.splitlines()).strip()
        parts.append(f"## {context.command_path}\n\n```\n{told}\n```\n")
    return "\n".join(parts)


def connection() -> str:
    """The options of the connection, as the help of `orisun status` has them."""
    status = main.get_command(_context(main, "orisun"), "status")
    assert status is not None  # noqa: S101 - it is one of the client's own
    found = _CONNECTION.search(_context(status, "status").get_help() + "\n")
    assert found is not None  # noqa: S101
    return f"## Options of every command that talks to a server\n\n```\n{found[0].strip()}\n```\n"


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                yield from _contexts(_context(command, name, context))


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(
        command,
        parent,
        info_name=name,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )


if __name__ == "__main__":
    click.echo(f"{connection()}\n{reference()}", nl=False)
