"""`completion`: the shell knows the commands and their flags."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from se_deploy.cli.main import COMPLETE_VARIABLE, PROGRAM, commands
from se_deploy.cli.parameters import argument, command

_SHELLS = ("bash", "zsh", "fish")


@command("completion", argument("shell", click.Choice(_SHELLS)))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes commands, flags, choices and files of se-deploy.

    \b
    Examples:
        eval "$(se-deploy completion bash)"       # in ~/.bashrc
        eval "$(se-deploy completion zsh)"        # in ~/.zshrc
        se-deploy completion fish > ~/.config/fish/completions/se-deploy.fish
    """
    kind = get_completion_class(shell)
    if kind is None:  # click knows the three
        raise ValueError(f"no completion for {shell}")
    click.echo(kind(commands, {}, PROGRAM, COMPLETE_VARIABLE).source())
