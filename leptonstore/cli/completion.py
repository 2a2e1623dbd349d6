"""lepton completion, and what a shell is offered for a NAME."""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem, get_completion_class

from leptonstore.cli.runtime import store_url
from leptonstore.errors import LeptonError

_VARIABLE = "_LEPTON_COMPLETE"  # click's: what the script asks us by
_VERSIONS = ("name", "names", "dataset", "model", "before", "after")  # arguments of commands that name versions


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of datasets.

    \b
    Example:
      lepton completion bash >> ~/.bashrc
      lepton completion zsh >> ~/.zshrc
      lepton completion fish > ~/.config/fish/completions/lepton.fish
    """
    from leptonstore.cli.group import lepton

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(lepton, {}, "lepton", _VARIABLE).source())


class _Version(click.ParamType):
    """A NAME, for a shell that asks: datasets and the like and, after an @, their branches and tags."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Nothing where the store needs a secret, or is further away than a directory."""
        from leptonstore.store import Store
        from leptonstore.store.log import Log

        url = store_url(ctx.params.get("store"))
        if "://" in url or not os.path.isdir(url):
            return []
        try:
            tier, config = Store.read_config(url)
            if config.encryption is not None:
                return []
            refs = [name.split("/", 2) for name in Log(tier, url).load().refs]
        except (LeptonError, OSError):
            return []
        names = {name for _, name, _ in refs} | {f"{name}@{branch}" for _, name, branch in refs if "@" in incomplete}
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def offer_names(command: click.Command) -> None:
    """Let the arguments of a command that stand for a version be completed; does nothing unless a shell asks."""
    if _VARIABLE not in os.environ:
        return
    for param in command.params:
        if isinstance(param, click.Argument) and param.name in _VERSIONS:
            param.type = _Version()
