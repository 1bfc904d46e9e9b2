"""``orisun completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .base import examples

_VARIABLE = "_ORISUN_COMPLETE"


@click.command(
    epilog=examples(
        """
        bash, in ~/.bashrc:                      eval "$(orisun completion bash)"
        zsh, in ~/.zshrc:                        eval "$(orisun completion zsh)"
        fish:  orisun completion fish > ~/.config/fish/completions/orisun.fish
        """
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes the shell complete commands and options of orisun with the Tab key."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"there is no completion for {shell}")
    made = kind(context.find_root().command, {}, "orisun", _VARIABLE)
    # not source(): that runs bash to look at its version, also where bash is not the shell of this machine
    click.echo(made.source_template % made.source_vars())
