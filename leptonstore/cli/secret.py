"""Where the command line finds the passphrase or key file of an encrypted store.

First what was given as an option, then $LEPTON_PASSPHRASE, $LEPTON_PASSPHRASE_FILE, $LEPTON_KEY_FILE, then a prompt
when stdin is a terminal. The same for a new secret, with --new-… and $LEPTON_NEW_…, and for that of a remote store, with --remote-… and
$LEPTON_REMOTE_….
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from leptonstore import limits
from leptonstore.errors import BadInput, WrongKey
from leptonstore.store.keys import (
    KeyFileAt,
    Passphrase,
    PassphraseFileAt,
    ScryptCost,
    Secret,
    SecretSource,
    create_key_file,
)

_META = "leptonstore.secret"
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class CommandLineSecret(SecretSource):
    """Reads the secret when a store turns out to be encrypted; in a worker process once more, from the same place."""

    passphrase_file: str | None = None
    key_file: str | None = None
    new: bool = False
    confirm: bool = False  # ask twice
    remote: bool = False  # of the other store, of a command that works on two

    @property
    def demand(self) -> bool:  # type: ignore[override]
        """Options are meant for this store; the environment may be meant for another one."""
        return self.passphrase_file is not None or self.key_file is not None

    def __call__(self) -> Secret:
        """Raises BadInput, or WrongKey when there is none."""
        option, variable = ("--new-", "LEPTON_NEW_") if self.new else ("--", "LEPTON_")
        if self.remote:
            option, variable = "--remote-", "LEPTON_REMOTE_"
        if self.passphrase_file is not None and self.key_file is not None:
            raise BadInput(f"give {option}passphrase-file or {option}key-file, not both")
        if self.passphrase_file is not None:
            return PassphraseFileAt(self.passphrase_file)()
        if self.key_file is not None:
            return KeyFileAt(self.key_file)()
        text = os.environb.get(f"{variable}PASSPHRASE".encode())
        if text is not None:
            return Passphrase(text)
        if path := os.environ.get(f"{variable}PASSPHRASE_FILE"):
            return PassphraseFileAt(path)()
        if path := os.environ.get(f"{variable}KEY_FILE"):
            return KeyFileAt(path)()
        if sys.stdin is not None and sys.stdin.isatty():
            label = "New passphrase" if self.new else f"Passphrase of the {'remote ' if self.remote else ''}store"
            return Passphrase(click.prompt(label, hide_input=True, err=True, confirmation_prompt=self.confirm).encode())
        of = "remote store's " if self.remote else ""
        raise WrongKey(
            f"a {'new ' if self.new else ''}{of}passphrase or key file is needed, and there is no terminal to ask at: give "
            f"{option}passphrase-file PATH or {option}key-file PATH, or set ${variable}PASSPHRASE, "
            f"${variable}PASSPHRASE_FILE or ${variable}KEY_FILE"
        )


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta[f"{_META}.{parameter.name}"] = value


def secret_options(command: _F) -> _F:
    """--passphrase-file and --key-file; `given_secret` tells what they say, so that no command has to pass them on."""
    options = (
        ("--passphrase-file", "Passphrase of an encrypted store (or $LEPTON_PASSPHRASE[_FILE], or a prompt)."),
        ("--key-file", "Key file of an encrypted store (or $LEPTON_KEY_FILE)."),
    )
    for name, text in reversed(options):
        command = click.option(name, metavar="PATH", help=text, expose_value=False, callback=_remember)(command)
    return command


def remote_secret_options(command: _F) -> _F:
    """--remote-passphrase-file and --remote-key-file; `given_remote_secret` tells what they say."""
    options = (
        ("--remote-passphrase-file", "Passphrase of an encrypted remote (or $LEPTON_REMOTE_PASSPHRASE[_FILE])."),
        ("--remote-key-file", "Key file of an encrypted remote (or $LEPTON_REMOTE_KEY_FILE)."),
    )
    for name, text in reversed(options):
        command = click.option(name, metavar="PATH", help=text, expose_value=False, callback=_remember)(command)
    return command


def new_secret_options(command: _F) -> _F:
    """--new-passphrase-file, --new-key-file and --scrypt-cost; see `new_secret`."""
    options = (
        ("--new-passphrase-file", "The new passphrase (or $LEPTON_NEW_PASSPHRASE[_FILE], or a prompt)."),
        ("--new-key-file", "The new key file (or $LEPTON_NEW_KEY_FILE); made when it does not exist."),
    )
    command = scrypt_option(command)
    for name, text in reversed(options):
        command = click.option(name, metavar="PATH", help=text)(command)
    return command


def scrypt_option(command: _F) -> _F:
    """--scrypt-cost: the logarithm of scrypt's n."""
    return click.option(
        "--scrypt-cost",
        type=click.IntRange(10, 20),
        default=limits.SCRYPT_N.bit_length() - 1,
        show_default=True,
        help="A guess of the passphrase takes 2^COST KiB.",
    )(command)


def given_secret() -> CommandLineSecret:
    """What the running command was given; to be called when a store asks for it."""
    context = click.get_current_context(silent=True)
    meta = context.meta if context is not None else {}
    return CommandLineSecret(meta.get(f"{_META}.passphrase_file"), meta.get(f"{_META}.key_file"))


def given_remote_secret() -> CommandLineSecret:
    """As `given_secret`, of the remote store."""
    context = click.get_current_context(silent=True)
    meta = context.meta if context is not None else {}
    return CommandLineSecret(
        meta.get(f"{_META}.remote_passphrase_file"), meta.get(f"{_META}.remote_key_file"), remote=True
    )


def new_secret(passphrase_file: str | None, key_file: str | None) -> Secret:
    """A secret that is about to open a store for the first time. Makes the key file, and says so, when it does not exist."""
    path = key_file or (None if passphrase_file else os.environ.get("LEPTON_NEW_KEY_FILE"))
    make_key_file(path)
    return CommandLineSecret(passphrase_file, key_file, new=True, confirm=True)()


def make_key_file(path: str | None) -> None:
    """A new key file at `path` unless it exists."""
    if path and not Path(path).exists():
        create_key_file(path)
        click.echo(f"lepton: made the key file {path}: without it (or another key) the store cannot be read", err=True)


def cost_of(logarithm: int) -> ScryptCost:
    """From --scrypt-cost."""
    return ScryptCost(n=1 << logarithm)
