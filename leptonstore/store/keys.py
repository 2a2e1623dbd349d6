"""Who may open an encrypted store: copies of its master key, each wrapped by a passphrase or by a key file.

    keys/<32 hex>    a framed document of kind "key", one for each passphrase or key file:
        {"store", "kind": "scrypt", "salt", "n", "r", "p", "label", "created_ns", "id", "wrapped"}
        {"store", "kind": "key-file", "salt",            "label", "created_ns", "id", "wrapped"}

Invariants:

- A document is created, or removed, and never changed; it is durable before the one that it replaces is removed.
- `wrapped` is AES-256-GCM of the master under a key that comes from the secret and the document's own salt; the header line and
  the rest of the body are associated data, so that nothing of a key can be altered or moved to another store.
- At least one key remains. (Two people who remove the last two keys at the same moment are not stopped.)
- The secret and the master never reach a pickle, a log line or an error.

Rotation wraps the master anew; it does not change it. Somebody who kept a copy of a removed key document *and* knows its passphrase can
still open a copy of the store: the way to shut them out is a new store.
"""

from __future__ import annotations

import os
import secrets
import time
import unicodedata
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from leptonstore import crypto, limits
from leptonstore.crypto import KEY_BYTES, SALT_BYTES, TAG_BYTES, StoreKeys
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, NotFound, WrongKey
from leptonstore.format import framed
from leptonstore.store.config import StoreConfig
from leptonstore.tiers.roles import HomePruner

FOLDER = "keys"
SCRYPT, KEY_FILE = "scrypt", "key-file"


# -- secrets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Passphrase:
    """What a person remembers. Text is compared in Unicode's NFC form, so that each keyboard types the same."""

    secret: bytes

    def __post_init__(self) -> None:
        if not self.secret:
            raise BadInput("the passphrase is empty")
        if len(self.secret) > limits.SECRET_BYTES_MAX:
            raise BadInput(f"the passphrase is longer than {limits.SECRET_BYTES_MAX} bytes")

    @property
    def normal(self) -> bytes:
        """The bytes that scrypt is given."""
        try:
            return unicodedata.normalize("NFC", self.secret.decode("utf-8")).encode("utf-8")
        except UnicodeDecodeError:
            return self.secret

    def __reduce__(self) -> NoReturn:
        raise TypeError("a passphrase is never pickled")


@dataclass(frozen=True, repr=False)
class KeyFile:
    """The content of a key file: 32 random bytes or more; it is not stretched."""

    content: bytes

    def __post_init__(self) -> None:
        if not limits.KEY_FILE_BYTES_MIN <= len(self.content) <= limits.SECRET_BYTES_MAX:
            raise BadInput(
                f"a key file has {limits.KEY_FILE_BYTES_MIN} to {limits.SECRET_BYTES_MAX} random bytes, "
                f"not {len(self.content)} (make one with `head -c 32 /dev/urandom`)"
            )

    def __reduce__(self) -> NoReturn:
        raise TypeError("the content of a key file is never pickled")


Secret: TypeAlias = Passphrase | KeyFile
Unlock: TypeAlias = Secret | Callable[[], Secret]


class SecretSource(ABC):
    """Where a secret can be read again, also in another process: picklable, and holds no secret itself."""

    demand = True  # whether it is an error to give it for a store that is not encrypted

    @abstractmethod
    def __call__(self) -> Secret:
        """Read it. Raises BadInput."""


@dataclass(frozen=True)
class PassphraseFileAt(SecretSource):
    """A file whose content, without a newline at its end, is the passphrase."""

    path: str

    def __call__(self) -> Passphrase:
        """Read it. Raises BadInput."""
        return Passphrase(without_newline(_read(self.path, "passphrase file")))


@dataclass(frozen=True)
class KeyFileAt(SecretSource):
    """A key file."""

    path: str

    def __call__(self) -> KeyFile:
        """Read it. Raises BadInput."""
        return KeyFile(_read(self.path, "key file"))


def without_newline(data: bytes) -> bytes:
    """What an editor's or echo's newline at the end leaves."""
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limits.SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise BadInput(f"{what} {path} cannot be read ({error.strerror})") from None


def create_key_file(path: str | Path) -> None:
    """A new key file of 32 random bytes that only its owner can read. Raises BadInput when the name is taken."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"key file {path} cannot be created ({error.strerror})") from None
    with open(fd, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(fd)


# -- key documents -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScryptCost:
    """RFC 7914's parameters: 128 * n * r bytes of memory. Tests use a small n; nothing else should."""

    n: int = limits.SCRYPT_N
    r: int = limits.SCRYPT_R
    p: int = limits.SCRYPT_P


@dataclass(frozen=True)
class Key:
    """One key document. `id` is its name in keys/; what is secret in it is wrapped."""

    id: str
    kind: str
    label: str
    created_ns: int
    store_id: bytes
    salt: bytes
    cost: ScryptCost | None
    wrapped: bytes = b""

    def body(self) -> dict[str, Any]:
        """Everything but `wrapped`."""
        body: dict[str, Any] = {"id": self.id, "kind": self.kind, "label": self.label, "created_ns": self.created_ns}
        body |= {"store": self.store_id.hex(), "salt": self.salt.hex()}
        return body if self.cost is None else body | vars(self.cost)

    def encode(self) -> bytes:
        """The document."""
        return framed.encode("key", {**self.body(), "wrapped": self.wrapped.hex()})

    def _associated(self) -> bytes:
        return framed.prefix("key", framed.MAJOR, framed.MINOR, 0) + framed.canonical_json(self.body())

    def _wrapping_key(self, secret: Secret) -> bytes:
        if isinstance(secret, Passphrase):
            assert self.cost is not None
            return crypto.scrypt(secret.normal, self.salt, self.cost.n, self.cost.r, self.cost.p)
        return crypto.hkdf(secret.content, self.salt, b"lepton key file")

    def wrap(self, master: bytes, secret: Secret) -> Key:
        """The same with `master` wrapped in it; once only."""
        wrapped = crypto.seal_once(self._wrapping_key(secret), master, self._associated())
        return Key(**{**vars(self), "wrapped": wrapped})

    def unwrap(self, secret: Secret) -> bytes | None:
        """The master key, None when this is not its secret."""
        if self.kind != kind_of(secret):
            return None
        return crypto.open_once(self._wrapping_key(secret), self.wrapped, self._associated())


def kind_of(secret: Secret) -> str:
    """The kind of document that `secret` makes."""
    return SCRYPT if isinstance(secret, Passphrase) else KEY_FILE


def parse_key(data: bytes, name: str, what: str) -> Key:
    """Raises FormatDamaged or FormatTooNew (a kind or cost that we do not take)."""
    frame = framed.unframe(data, "key", what)
    body = framed.parse_body(frame.body, what)
    try:
        kind = str(body["kind"])
        if kind not in (SCRYPT, KEY_FILE):
            raise FormatTooNew(f"{what} has kind {kind!r}: upgrade LeptonStore")
        cost = ScryptCost(int(body["n"]), int(body["r"]), int(body["p"])) if kind == SCRYPT else None
        if cost is not None:
            crypto.require_cost(cost.n, cost.r, cost.p)  # before anything is allocated
        store_id, salt, wrapped = (bytes.fromhex(body[field]) for field in ("store", "salt", "wrapped"))
        key = Key(str(body["id"]), kind, str(body["label"]), int(body["created_ns"]), store_id, salt, cost, wrapped)
        if key.id != name or len(salt) != SALT_BYTES or len(wrapped) != KEY_BYTES + TAG_BYTES:
            raise ValueError("its name or a length is wrong")
    except (KeyError, TypeError, ValueError, BadInput) as error:
        raise FormatDamaged(f"{what} is damaged: {error}") from None
    if data != key.encode():
        raise FormatDamaged(f"{what} is damaged, or a newer LeptonStore wrote it: it says more than a key does")
    return key


# -- the keys of a store -------------------------------------------------------------------------------------------


class KeyRing:
    """The key documents of one encrypted store. Any thread."""

    def __init__(self, home: HomePruner, store_id: bytes, url: str) -> None:
        self._home, self._store_id, self._url = home, store_id, url
        self.damaged: dict[str, Exception] = {}  # documents that the last `all` could not read

    def all(self) -> list[Key]:
        """All keys that can be read, oldest first. What an interrupted `init` left for another store is passed over."""
        self.damaged = {}
        found = []
        for name in self._home.documents(FOLDER)[: limits.KEYS_MAX]:
            what = f"key {name} of {self._url}"
            try:
                data = self._home.read_document(f"{FOLDER}/{name}", limits.KEY_DOCUMENT_BYTES_MAX)
                key = None if data is None else parse_key(data, name, what)
            except (FormatDamaged, FormatTooNew) as error:
                self.damaged[name] = error
                continue
            if key is not None and key.store_id == self._store_id:
                found.append(key)
        return sorted(found, key=lambda key: (key.created_ns, key.id))

    def open(self, secret: Secret) -> tuple[bytes, str]:
        """(master key, id of the document that gave it). Raises WrongKey, or FormatDamaged when no document is whole."""
        keys = self.all()
        if not keys:
            why = next((str(error) for error in self.damaged.values()), "keys/ is empty")
            raise FormatDamaged(f"{self._url} is encrypted, but none of its keys can be read ({why}): restore keys/")
        for key in keys:
            master = key.unwrap(secret)
            if master is not None:
                return master, key.id
        hint = f"; {len(self.damaged)} of its keys are damaged" if self.damaged else ""
        if isinstance(secret, Passphrase):
            raise WrongKey(f"wrong passphrase: it opens no key of {self._url}{hint}")
        raise WrongKey(f"wrong key file: it opens no key of {self._url}{hint}")

    def add(self, master: bytes, secret: Secret, label: str = "", cost: ScryptCost | None = None) -> Key:
        """One more way to open the store; durable when it returns. Raises BadInput."""
        if len(label) > limits.KEY_LABEL_CHARS_MAX or not label.isprintable():
            raise BadInput(f"a label has at most {limits.KEY_LABEL_CHARS_MAX} printable characters")
        if len(self._home.documents(FOLDER)) >= limits.KEYS_MAX:
            raise BadInput(f"{self._url} has {limits.KEYS_MAX} keys already: remove one with `lepton key rm`")
        scrypt_cost = (cost or ScryptCost()) if isinstance(secret, Passphrase) else None
        identity, salt = secrets.token_hex(16), secrets.token_bytes(SALT_BYTES)
        key = Key(identity, kind_of(secret), label, time.time_ns(), self._store_id, salt, scrypt_cost)
        key = key.wrap(master, secret)
        data = key.encode()
        # Our own corruption must not lock anybody out, so what was made is tried before it is relied on.
        if parse_key(data, key.id, "the new key").unwrap(secret) != master:
            raise FormatDamaged("the new key does not open again: check this machine's memory")
        if not self._home.create_document(f"{FOLDER}/{key.id}", data):
            raise FormatDamaged(f"key {key.id} of {self._url} exists already: ids are never reused")
        return key

    def find(self, prefix: str) -> Key:
        """The key whose id begins with `prefix`, or whose label it is. Raises NotFound or BadInput."""
        found = [key for key in self.all() if key.label == prefix or (prefix and key.id.startswith(prefix))]
        if not found:
            raise NotFound(f"no key {prefix!r} in {self._url}: see `lepton key ls`")
        if len(found) > 1:
            raise BadInput(f"{prefix!r} names {len(found)} keys of {self._url}: give more of the id")
        return found[0]

    def remove(self, key_id: str) -> None:
        """Take a key away. Raises BadInput when it is the last one."""
        if not [key for key in self.all() if key.id != key_id]:
            raise BadInput(
                f"{key_id[:12]} is the last key of {self._url}: without it nothing could be read; add one first"
            )
        self._home.delete_document(f"{FOLDER}/{key_id}")

    def rotate(self, master: bytes, old: str, secret: Secret, cost: ScryptCost | None = None) -> Key:
        """Replace key `old` by one of `secret` with its label; the new one is durable before the old one goes."""
        label = next((key.label for key in self.all() if key.id == old), "")
        key = self.add(master, secret, label, cost)
        self._home.delete_document(f"{FOLDER}/{old}")
        return key


# -- unlocking -----------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Unlocked:
    """The keys of a store that is open, the document that gave them, and where the secret can be read again."""

    keys: StoreKeys
    key_id: str
    source: SecretSource | None = None


# What this process has open. A fork inherits it; a spawned process does not, and no pickle carries it.
_open: weakref.WeakValueDictionary[int, Unlocked] = weakref.WeakValueDictionary()


def lend(unlocked: Unlocked) -> None:
    """From now on this process (and what it forks) opens that store again without being asked."""
    _open[id(unlocked)] = unlocked


def forget(unlocked: Unlocked) -> None:
    """The end of `lend`."""
    _open.pop(id(unlocked), None)


def _borrowed(store_id: bytes) -> Unlocked | None:
    known = (reference() for reference in _open.valuerefs())
    found = next((one for one in known if one is not None and one.keys.store_id == store_id), None)
    return None if found is None else Unlocked(found.keys, found.key_id, found.source)


class _Home(HomePruner, Protocol):
    @property
    def url(self) -> str: ...


def create(
    home: _Home, config: StoreConfig, unlock: Unlock, cost: ScryptCost | None = None
) -> tuple[StoreConfig, Unlocked]:
    """A new master key with its first document, and the config of a store that is encrypted by it."""
    secret = unlock() if callable(unlock) else unlock
    keys = StoreKeys(secrets.token_bytes(KEY_BYTES), config.store_id)
    key = KeyRing(home, config.store_id, home.url).add(keys.master, secret, cost=cost)
    return config.encrypted_by(keys), Unlocked(keys, key.id, unlock if isinstance(unlock, SecretSource) else None)


def open_keys(home: _Home, config: StoreConfig, unlock: Unlock | None) -> Unlocked | None:
    """The keys of the store, None when it is not encrypted.

    Raises WrongKey, FormatDamaged, MissingExtra, or BadInput when a secret is lacking or there is nothing to unlock.
    """
    what = f"config of {home.url}"
    if config.encryption is None:
        if isinstance(unlock, Passphrase | KeyFile) or (isinstance(unlock, SecretSource) and unlock.demand):
            raise BadInput(
                f"{home.url} is not encrypted, so a passphrase or key file is not for it: is it the right store?"
            )
        return None
    crypto.require()
    borrowed = _borrowed(config.store_id)
    if borrowed is not None and (unlock is None or (isinstance(unlock, SecretSource) and unlock == borrowed.source)):
        config.require_keys(borrowed.keys, what)
        return borrowed
    if unlock is None:
        raise WrongKey(
            f"{home.url} is encrypted and this process has no key: give a passphrase or key file "
            "(on the command line --passphrase-file, --key-file, or $LEPTON_PASSPHRASE; in Python Store.open(url, unlock=…). "
            "A worker process that was spawned, not forked, needs unlock=PassphraseFileAt(path) or KeyFileAt(path))"
        )
    secret = unlock() if callable(unlock) else unlock
    master, key_id = KeyRing(home, config.store_id, home.url).open(secret)
    keys = StoreKeys(master, config.store_id)
    config.require_keys(keys, what)
    return Unlocked(keys, key_id, unlock if isinstance(unlock, SecretSource) else None)
