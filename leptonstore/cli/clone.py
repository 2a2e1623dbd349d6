"""lepton clone"""

from __future__ import annotations

import click

from leptonstore.cli.exchange import depth_option, kind_option, print_exchange, require_joined, transfer_progress
from leptonstore.cli.init import create_encrypted
from leptonstore.cli.runtime import emit, json_option, store_url
from leptonstore.cli.secret import (
    given_remote_secret,
    given_secret,
    remote_secret_options,
    scrypt_option,
    secret_options,
)
from leptonstore.dataset.exchange import clone
from leptonstore.errors import BadInput, StoreMissing
from leptonstore.store import Store
from leptonstore.store.config import StoreConfig
from leptonstore.store.remotes import DEFAULT, absolute_url, add_remote, remotes_of


@click.command("clone")
@click.argument("url")
@click.argument("path", required=False)
@click.option("--name", "names", multiple=True, metavar="NAME", help="Only this one (may be repeated).")
@click.option("--origin", default=DEFAULT, show_default=True, metavar="REMOTE", help="The name to remember URL by.")
@click.option(
    "--encrypt", is_flag=True, help="Encrypt the new store, under a passphrase or a key file (made if missing)."
)
@kind_option
@depth_option
@remote_secret_options
@secret_options
@scrypt_option
@json_option
def command(
    url: str,
    path: str | None,
    names: tuple[str, ...],
    origin: str,
    encrypt: bool,
    kind: str,
    depth: int | None,
    scrypt_cost: int,
    as_json: bool,
) -> None:
    """Make a new store at PATH (default: $LEPTON_STORE, else ./.lepton) with what the store at URL has, and remember URL.

    Everything comes: datasets, models and checkpoints with their branches, tags and history; with --name only these (of --kind).
    Interrupted, it may be run again and goes on. Exit codes: 0 done, 2 there is another store at PATH, 3 no store at URL, 6 disk full.

    \b
    Example:
      lepton clone s3://bucket/birds
      lepton clone /mnt/team /data/store --name birds --depth 1
    """
    with Store.open(absolute_url(url), unlock=given_remote_secret()) as remote:
        config = StoreConfig(chunks=remote.config.chunks, zstd_level=remote.config.zstd_level)
        with _made(path, config, remote.url, origin, encrypt, scrypt_cost) as store:
            with transfer_progress("clone") as progress:
                done = clone(remote, store, names, kind, depth, progress)
            value = {"store": store.url, "remote": remote.url, **done.to_json()}
            emit(value, as_json, lambda: print_exchange(done))
            require_joined(done)


def _made(path: str | None, config: StoreConfig, url: str, origin: str, encrypt: bool, cost: int) -> Store:
    """The new store, or the one that an earlier attempt began. Raises BadInput for any other."""
    secret = given_secret()
    if secret.demand and not encrypt:
        raise BadInput("a passphrase or key file is for an encrypted store: add --encrypt")
    try:
        store = Store.open(store_url(path), unlock=secret)
    except StoreMissing:
        store = create_encrypted(path, config, secret, cost) if encrypt else Store.create(store_url(path), config)
        add_remote(store, origin, url)
    if remotes_of(store.state).get(origin) != url:
        store.close()
        raise BadInput(
            f"{store.url} is a store already, and no clone of {url}: choose another place, or use `lepton pull`"
        )
    return store
