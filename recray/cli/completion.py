"""Shell completion: the script that a shell reads once."""

import click
from click.shell_completion import get_completion_class

from recray.cli.base import cli, shared
from recray.progress import Console

FILES = {
    "bash": 'eval "$(recray completion bash)"  # into ~/.bashrc',
    "zsh": 'eval "$(recray completion zsh)"  # into ~/.zshrc',
    "fish": "recray completion fish > ~/.config/fish/completions/recray.fish",
}


@cli.command()
@click.argument("shell", type=click.Choice(list(FILES)))
@shared()
def completion(ui: Console, shell: str) -> None:
    """Print what makes SHELL complete commands, options, presets, settings and releases.

    \b
    Example:
        eval "$(recray completion bash)"     # one line in ~/.bashrc; zsh in ~/.zshrc likewise
        recray completion fish > ~/.config/fish/completions/recray.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise ValueError(f"click knows no shell {shell}")
    script = made(cli, {}, "recray", "_RECRAY_COMPLETE").source()
    ui.result({"shell": shell, "script": script, "install": FILES[shell]}, script)
