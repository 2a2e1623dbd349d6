"""Encryption at rest: one master key -> keyed names, sealed records, sealed documents. Pure: no I/O, no storage.

    master (32 random bytes of one store; wrapped copies of it lie in keys/, see leptonstore/store/keys.py)
      |- names       BLAKE3 keyed hash: plain digest -> the name by which packs, footers and the index call a record
      |- chunking    63 bits: the seed of FastCDC's table
      |- check       BLAKE3 keyed hash of the config: the right key? an unaltered config?
      |- documents   -> a key per document, by its random salt
      `- packs       -> a key per pack, by its random salt and its id

Invariants:
- A (key, nonce) pair seals once. A pack's key comes from 32 random bytes of its header, and its nonce is the offset of the
  record in the file; a document's key, and one that wraps the master, comes from 32 random bytes of its own, and its nonce is 0.
- What stands in the clear beside a payload (the first 60 bytes of a record's header) is associated data: altering it, or moving
  the payload to another place, another pack or another store, is noticed when it is opened.
- Compression comes before sealing. Lengths, codecs, kinds and the number of records are visible; docs/FORMAT.md says what that tells.

All subkeys are HKDF-SHA256 (RFC 5869), seals are AES-256-GCM (NIST SP 800-38D) with a 16-byte tag at the end, both by the `cryptography`
package, which is imported when the first key is made: stores that are not encrypted do not need it.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any, NoReturn

from blake3 import blake3

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import BadInput, FormatDamaged, MissingExtra
from leptonstore.format import framed
from leptonstore.format import pack as lpk

KEY_BYTES, SALT_BYTES, TAG_BYTES, NONCE_BYTES = 32, 32, 16, 12
_ZERO_NONCE = bytes(NONCE_BYTES)  # for keys that seal once


@functools.cache
def _primitives() -> tuple[Any, Any, Any, type[Exception]]:
    """(AESGCM, HKDF for SHA-256, Scrypt, InvalidTag). Raises MissingExtra."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ModuleNotFoundError as error:
        module = (error.name or "cryptography").split(".")[0]
        raise MissingExtra("an encrypted store", "crypto", module) from None
    return AESGCM, functools.partial(HKDF, hashes.SHA256()), Scrypt, InvalidTag


def require() -> None:
    """Raise MissingExtra when encryption is not installed."""
    _primitives()


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256: `length` bytes that tell nothing about `secret`, which must have 128 bits of entropy or more."""
    derived: bytes = _primitives()[1](length=length, salt=salt, info=info).derive(secret)
    return derived


def require_cost(n: int, r: int, p: int) -> None:
    """Raise BadInput for a cost of scrypt that is not valid, or over the limits of memory and time."""
    if n < 2 or n & (n - 1) or r < 1 or p < 1:
        raise BadInput(f"scrypt cost n={n}, r={r}, p={p} is not valid: n is a power of two, r and p are at least 1")
    if 128 * n * r > limits.SCRYPT_MEMORY_BYTES_MAX or n * r * p > limits.SCRYPT_WORK_MAX:
        raise BadInput(
            f"scrypt cost n={n}, r={r}, p={p} is over the limits of {limits.SCRYPT_MEMORY_BYTES_MAX} bytes or time"
        )


def scrypt(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    """A key of a passphrase (RFC 7914); takes 128 * n * r bytes of memory. Raises BadInput before it takes too much."""
    require_cost(n, r, p)
    key: bytes = _primitives()[2](salt=salt, length=KEY_BYTES, n=n, r=r, p=p).derive(passphrase)
    return key


def seal_once(key: bytes, plain: Buffer, associated: bytes) -> bytes:
    """Ciphertext and tag under a key that is never used again."""
    sealed: bytes = _primitives()[0](key).encrypt(_ZERO_NONCE, _octets(plain), associated)
    return sealed


def open_once(key: bytes, sealed: Buffer, associated: bytes) -> bytes | None:
    """The plain bytes, None when key, bytes or associated data are not those of the seal."""
    aesgcm, _, _, invalid = _primitives()
    try:
        plain: bytes = aesgcm(key).decrypt(_ZERO_NONCE, sealed, associated)
    except invalid:
        return None
    return plain


class PackCipher:
    """Seals and opens the payloads of one pack. Any thread; releases the GIL for payloads of 2 KiB and more."""

    def __init__(self, key: bytes, name: Callable[[Digest], Digest]) -> None:
        """`name`: what the store calls a record, see StoreKeys.name."""
        aesgcm, _, _, self._invalid = _primitives()
        self._aead, self.name = aesgcm(key), name

    def seal(self, header: lpk.RecordHeader, offset: int, payload: Buffer) -> bytes:
        """The stored payload of the record at `offset`. `header.stored` must count the tag already.

        A pack's offset MUST be sealed at once and once only: two payloads under one nonce give both away.
        """
        if header.stored != len(payload) + TAG_BYTES:
            raise ValueError("the header of a sealed record counts its tag")
        sealed: bytes = self._aead.encrypt(_nonce(offset), _octets(payload), lpk.head_of_record(header))
        return sealed

    def open(self, header: lpk.RecordHeader, offset: int, payload: Buffer) -> bytes:
        """What `seal` was given. Raises FormatDamaged when anything differs: payload, header, offset or pack."""
        if len(payload) < TAG_BYTES:
            raise FormatDamaged(f"sealed record has {len(payload)} bytes, fewer than its tag")
        try:
            plain: bytes = self._aead.decrypt(_nonce(offset), payload, lpk.head_of_record(header))
        except self._invalid:
            raise FormatDamaged("its seal does not fit: it was altered or moved, or is of another key") from None
        return plain


def _octets(data: Buffer) -> Buffer:
    """`cryptography` takes views of unsigned bytes only."""
    return data if isinstance(data, bytes) else memoryview(data).cast("B")


def _nonce(offset: int) -> bytes:
    return offset.to_bytes(NONCE_BYTES, "little")


class StoreKeys:
    """Everything that follows from the master key of one store. Never pickled, never printed. Any thread."""

    def __init__(self, master: bytes, store_id: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self.master, self.store_id = master, store_id
        self._names = self._derive(b"lepton names")
        self._check = self._derive(b"lepton check")
        self.documents = SealedDocuments(self._derive(b"lepton documents"))
        # 63 bits: pyfastcdc 0.3 refuses a 64th. 0 would mean FastCDC's published table.
        self.chunking_seed = int.from_bytes(self._derive(b"lepton chunking")[:8], "little") >> 1 or 1

    def _derive(self, info: bytes) -> bytes:
        return hkdf(self.master, self.store_id, info)

    def name(self, digest: Digest) -> Digest:
        """What the store calls the record whose plain bytes have `digest`."""
        return blake3(digest, key=self._names).digest()

    def check(self, data: bytes) -> bytes:
        """A keyed digest of `data`: nobody without the key can make it for other data, or tell the key from it."""
        return blake3(data, key=self._check).digest()

    def pack(self, salt: bytes, pack_id: bytes) -> PackCipher:
        """The cipher of the pack whose header carries `salt` and `pack_id`."""
        return PackCipher(hkdf(self.master, salt, b"lepton pack" + pack_id), self.name)

    def __reduce__(self) -> NoReturn:
        raise TypeError("the keys of a store are never pickled: open the store again with its passphrase or key file")

    def __repr__(self) -> str:
        return f"StoreKeys(of {self.store_id.hex()})"


class SealedDocuments:
    """Framed documents whose body is sealed: `leptonstore.format.framed`'s two functions, with a key.

    Body: salt (32) | ciphertext of the canonical JSON | tag (16). Key: HKDF(documents key, salt, "lepton document"). Associated
    data: kind, version and features as they stand in the header line. The line's digest is that of the stored body.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, kind: str, body: dict[str, Any], features: int = 0) -> bytes:
        """A sealed document of `kind`."""
        features |= framed.FEATURE_SEALED
        prefix = framed.prefix(kind, framed.MAJOR, framed.MINOR, features)
        return framed.frame(kind, self.seal(framed.canonical_json(body), prefix), features)

    def parse(self, data: bytes, kind: str, what: str) -> dict[str, Any]:
        """The body. Raises FormatDamaged (also when it is not sealed, or not by this key) or FormatTooNew."""
        frame = framed.unframe(data, kind, what)
        if not frame.features & framed.FEATURE_SEALED:
            raise FormatDamaged(f"{what} is not sealed, but its store is encrypted: somebody else put it there")
        return framed.parse_body(self.open(frame.body, frame.prefix, what), what)

    def seal(self, plain: Buffer, associated: bytes) -> bytes:
        """Salt, ciphertext and tag; under a key of its own."""
        salt = secrets.token_bytes(SALT_BYTES)
        return salt + seal_once(self._document_key(salt), plain, associated)

    def open(self, data: Buffer, associated: bytes, what: str) -> bytes:
        """What `seal` was given. Raises FormatDamaged; `what` names it."""
        salt, sealed = bytes(data[:SALT_BYTES]), data[SALT_BYTES:]
        plain = open_once(self._document_key(salt), sealed, associated) if len(sealed) >= TAG_BYTES else None
        if plain is None:
            raise FormatDamaged(f"{what} is damaged: its seal does not fit; it was altered or is of another store")
        return plain

    def _document_key(self, salt: bytes) -> bytes:
        return hkdf(self._key, salt, b"lepton document")

    def __reduce__(self) -> NoReturn:
        raise TypeError("the keys of a store are never pickled")
