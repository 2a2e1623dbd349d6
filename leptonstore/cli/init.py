"""lepton init"""

from __future__ import annotations

import os

import click

from leptonstore import limits
from leptonstore.cli.runtime import emit, json_option, store_url
from leptonstore.cli.secret import (
    CommandLineSecret,
    cost_of,
    given_secret,
    make_key_file,
    scrypt_option,
    secret_options,
)
from leptonstore.errors import BadInput
from leptonstore.store import Store
from leptonstore.store.config import StoreConfig


@click.command("init")
@click.argument("path", required=False)
@click.option("--zstd-level", type=int, default=limits.ZSTD_LEVEL, show_default=True, help="1 (fast) to 19 (small).")
@click.option("--encrypt", is_flag=True, help="Encrypt everything, under a passphrase or a key file (made if missing).")
@secret_options
@scrypt_option
@json_option
def command(path: str | None, zstd_level: int, encrypt: bool, scrypt_cost: int, as_json: bool) -> None:
    """Make a new store at PATH (default: $LEPTON_STORE, else ./.lepton).

    An encrypted store cannot be read without its passphrase or key file: nobody can restore a lost one.

    \b
    Example:
      lepton init /data/store
      lepton init /data/secret --encrypt
      lepton init /data/secret --encrypt --key-file ~/secret.key
    """
    secret = given_secret()
    if secret.demand and not encrypt:
        raise BadInput("a passphrase or key file is for an encrypted store: add --encrypt")
    config = StoreConfig(zstd_level=zstd_level)
    with (
        create_encrypted(path, config, secret, scrypt_cost)
        if encrypt
        else Store.create(store_url(path), config) as store
    ):
        told = {"store": store.url, "id": store.config.store_id.hex(), "encrypted": encrypt}
        emit(told, as_json, f"new {'encrypted ' if encrypt else ''}store at {store.url}")


def create_encrypted(path: str | None, config: StoreConfig, given: CommandLineSecret, cost: int) -> Store:
    """A new encrypted store; its key file is made, and said so, when it does not exist."""
    environment = "LEPTON_PASSPHRASE" in os.environ or "LEPTON_PASSPHRASE_FILE" in os.environ
    if not given.passphrase_file:
        make_key_file(given.key_file or (None if environment else os.environ.get("LEPTON_KEY_FILE")))
    source = CommandLineSecret(given.passphrase_file, given.key_file, confirm=True)
    return Store.create(store_url(path), config, unlock=source, cost=cost_of(cost))
