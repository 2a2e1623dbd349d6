"""lepton remote"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.store.remotes import add_remote, remotes_of, remove_remote


@click.group("remote")
def command() -> None:
    """Remember other stores by name, for push and pull. What is remembered stands in the store, without secrets. All take --json.

    \b
    Example:
      lepton remote add origin s3://bucket/birds
      lepton remote ls
    """


@command.command("add")
@click.argument("name")
@click.argument("url")
@store_option
@json_option
def add(name: str, url: str, store: str | None, as_json: bool) -> None:
    """Remember the store at URL as NAME. It need not exist yet; keys and passphrases stay in the environment.

    \b
    Example:
      lepton remote add origin s3://bucket/birds
    """
    with open_store(store) as opened:
        kept = add_remote(opened, name, url)
        emit({"remote": name, "url": kept}, as_json, f"{name}  {kept}")


@command.command("ls")
@store_option
@json_option
def ls(store: str | None, as_json: bool) -> None:
    """List the remotes.

    \b
    Example:
      lepton remote ls
    """
    with open_store(store) as opened:
        known = remotes_of(opened.state)

        def text() -> None:
            if not known:
                click.echo("no remote yet; `lepton remote add NAME URL` remembers one")
            for name, url in known.items():
                click.echo(f"{name:<12} {url}")

        emit({"remotes": known}, as_json, text)


@command.command("rm")
@click.argument("name")
@store_option
@json_option
def rm(name: str, store: str | None, as_json: bool) -> None:
    """Forget remote NAME; the store there is not touched.

    \b
    Example:
      lepton remote rm origin
    """
    with open_store(store) as opened:
        remove_remote(opened, name)
        emit({"remote": name, "removed": True}, as_json, f"{name} is forgotten")
