"""lepton key ls | add | remove | rotate"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option, store_url
from leptonstore.cli.secret import cost_of, new_secret, new_secret_options
from leptonstore.errors import BadInput
from leptonstore.store import Store
from leptonstore.store.keys import Key, KeyRing


@click.group("key")
def command() -> None:
    """Show, add, remove or rotate the keys of an encrypted store.

    A key is a passphrase or a key file. Each one opens everything; the data is encrypted once, under a master key that each of them
    wraps. All take --store and --json. Exit code 10: the passphrase or key file is wrong, or none was given.

    \b
    Example:
      lepton key ls
      lepton key add --label backup --new-key-file ~/backup.key
      lepton key rotate
      lepton key rm backup
    """


@command.command("ls")
@store_option
@json_option
def ls(store: str | None, as_json: bool) -> None:
    """List the keys of a store, oldest first. Needs no passphrase.

    \b
    Example:
      lepton key ls --json
    """
    tier, config = Store.read_config(store_url(store))
    if config.encryption is None:
        raise BadInput(f"{tier.url} is not encrypted: it has no keys")
    ring = KeyRing(tier, config.store_id, tier.url)
    keys = ring.all()
    damaged = {name: str(error) for name, error in ring.damaged.items()}
    told = {"store": tier.url, "keys": [_told(key) for key in keys], "damaged": damaged}
    emit(told, as_json, lambda: _print(keys, ring))


@command.command("add")
@store_option
@click.option("--label", default="", help="What to call the new key.")
@new_secret_options
@json_option
def add(
    store: str | None,
    label: str,
    new_passphrase_file: str | None,
    new_key_file: str | None,
    scrypt_cost: int,
    as_json: bool,
) -> None:
    """Add a passphrase or key file that opens the store, too.

    \b
    Example:
      lepton key add --label laptop --new-passphrase-file laptop.txt
    """
    with open_store(store) as opened:
        ring, unlocked = _ring(opened)
        secret = new_secret(new_passphrase_file, new_key_file)
        key = ring.add(unlocked.keys.master, secret, label, cost_of(scrypt_cost))
        emit({"store": opened.url, **_told(key)}, as_json, f"added {_line(key)}")


@command.command("rm")
@click.argument("key")
@store_option
@json_option
def rm(key: str, store: str | None, as_json: bool) -> None:
    """Remove KEY (the beginning of its id, or its label). The last one stays.

    It opens the store no more, but whoever kept a copy of its file in keys/ can still use that on a copy of the store.

    \b
    Example:
      lepton key rm 3f2a
    """
    with open_store(store) as opened:
        ring, _ = _ring(opened)
        found = ring.find(key)
        ring.remove(found.id)
        emit({"store": opened.url, **_told(found)}, as_json, f"removed {_line(found)}")


@command.command("rotate")
@click.argument("key", required=False)
@store_option
@new_secret_options
@json_option
def rotate(
    key: str | None,
    store: str | None,
    new_passphrase_file: str | None,
    new_key_file: str | None,
    scrypt_cost: int,
    as_json: bool,
) -> None:
    """Replace KEY (default: the one that opened the store) by a new passphrase or key file.

    The new key is durable before the old one goes. The data is not encrypted anew.

    \b
    Example:
      lepton key rotate --passphrase-file old.txt --new-passphrase-file new.txt
    """
    with open_store(store) as opened:
        ring, unlocked = _ring(opened)
        old = ring.find(key).id if key else unlocked.key_id
        secret = new_secret(new_passphrase_file, new_key_file)
        new = ring.rotate(unlocked.keys.master, old, secret, cost_of(scrypt_cost))
        emit({"store": opened.url, **_told(new), "replaced": old}, as_json, f"replaced {old[:12]} by {_line(new)}")


def _ring(opened: Store) -> tuple[KeyRing, Any]:
    if opened.unlocked is None:
        raise BadInput(f"{opened.url} is not encrypted: it has no keys")
    return KeyRing(opened.home, opened.config.store_id, opened.url), opened.unlocked


def _told(key: Key) -> dict[str, Any]:
    told: dict[str, Any] = {"id": key.id, "kind": key.kind, "label": key.label, "created": _when(key)}
    return told if key.cost is None else told | vars(key.cost)


def _when(key: Key) -> str:
    return datetime.fromtimestamp(key.created_ns / 1e9, UTC).isoformat(timespec="seconds")


def _line(key: Key) -> str:
    return f"{key.id[:12]}  {'passphrase' if key.cost else 'key file':10}  {_when(key)}  {key.label}".rstrip()


def _print(keys: list[Key], ring: KeyRing) -> None:
    for key in keys:
        click.echo(_line(key))
    for error in ring.damaged.values():
        click.echo(f"lepton: warning: {error}", err=True)
