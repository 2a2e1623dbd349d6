"""lepton token add | ls | revoke"""

from __future__ import annotations

from typing import Any

import click

from leptonstore.cli.runtime import emit, json_option, open_store
from leptonstore.cli.secret import secret_options
from leptonstore.daemon.token_requests import ask
from leptonstore.dataset.refs import list_refs
from leptonstore.quantities import lifetime_of

_store = click.argument("store", metavar="STORE")


@click.group("token")
def command() -> None:
    """Who may use a store through its daemons: make, list and revoke tokens.

    STORE is a path, a bucket or the lepton:// URL of a running daemon (which asks for a token that administers it; of your own daemon on
    this host none is needed). Tokens stand in the store, as hashes: every daemon of the store knows them. All take --json.

    \b
    Example:
      lepton token add ./store --name laptop --grant read --expires 30d
      lepton token ls ./store
      lepton token revoke ./store laptop
    """


@command.command("add")
@_store
@click.option("--name", required=True, help="What people call it; unique in the store.")
@click.option(
    "--grant",
    "grants",
    required=True,
    multiple=True,
    metavar="SCOPE[:DATASET]",
    help="read, write or admin, of the whole store or of one dataset; peer for another daemon of a cluster. May be given again.",
)
@click.option("--expires", default="90d", show_default=True, metavar="TIME", help="45m, 12h, 30d, 52w, or never.")
@click.option("--certificate", metavar="NAME", help="Not a token: who shows a client certificate for NAME (mTLS).")
@secret_options
@json_option
def add(store: str, name: str, grants: tuple[str, ...], expires: str, certificate: str | None, as_json: bool) -> None:
    """Make a token. It is shown now, on stdout, and never again.

    \b
    Example:
      lepton token add ./store --name ci --grant read:birds --grant write:results --expires 12h
      export LEPTON_TOKEN=$(lepton token add ./store --name laptop --grant read)
      lepton token add ./store --name node-7 --grant read --certificate node-7.train.example
    """
    told: dict[str, Any] = {"name": name, "grants": list(grants)}
    lifetime_s = lifetime_of(expires)
    told |= {} if lifetime_s is None else {"lifetime_s": lifetime_s}
    told |= {} if certificate is None else {"certificate": certificate}
    with open_store(store) as opened:
        made = ask(opened, "token_add", told)
        known = {info.name for info in list_refs(opened)}
    for name in dict.fromkeys(grant.partition(":")[2] for grant in made["token"]["grants"]):
        if name and name not in known:
            click.echo(f"lepton: warning: there is no dataset {name!r} yet", err=True)

    def text() -> None:
        click.echo(f"made {_line(made['token'])}", err=True)
        if made["secret"]:
            click.echo("this is the only time that it is shown:", err=True)
            click.echo(made["secret"])

    emit(made, as_json, text)


@command.command("ls")
@_store
@secret_options
@json_option
def ls(store: str, as_json: bool) -> None:
    """List the tokens of a store, oldest first; never what they are.

    \b
    Example:
      lepton token ls lepton://127.0.0.1:7400/store --json
    """
    with open_store(store) as opened:
        found = ask(opened, "token_ls", {})

    def text() -> None:
        if not found["tokens"]:
            click.echo("no token yet; `lepton token add` makes one")
        for token in found["tokens"]:
            click.echo(_line(token))
        if found["damaged"]:
            click.echo(
                f"lepton: warning: {found['damaged']} documents in tokens/ cannot be read; they open nothing", err=True
            )

    emit(found, as_json, text)


@command.command("revoke")
@_store
@click.argument("token")
@secret_options
@json_option
def revoke(store: str, token: str, as_json: bool) -> None:
    """Revoke TOKEN (its name, or the beginning of its id): nobody gets in with it any more.

    The daemon that is asked, and every daemon of a store in a directory, knows at once; those of a store in a bucket within two seconds.

    \b
    Example:
      lepton token revoke ./store laptop
    """
    with open_store(store) as opened:
        gone = ask(opened, "token_revoke", {"token": token})["token"]
    emit({"token": gone, "revoked": True}, as_json, f"revoked {_line(gone)}")


def _line(token: dict[str, Any]) -> str:
    until = (
        "never expires"
        if token["expires"] is None
        else f"{'EXPIRED' if token['expired'] else 'until'} {token['expires']}"
    )
    of = f"  certificate {token['certificate']}" if token["certificate"] else ""
    by = f"  by {token['author']}" if token["author"] else ""
    return f"{token['id']}  {token['name']:<16} {' '.join(token['grants']):<24} {until}{of}{by}"
