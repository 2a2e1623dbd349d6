"""The part of the independent reader that opens encrypted stores (docs/FORMAT.md, "Encryption"); see reader.py for the rest.

HKDF and scrypt are the standard library's, the keyed hash is BLAKE3's. AES-256-GCM has to come from `cryptography`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import unicodedata
from typing import Any

from blake3 import blake3
from reader_common import need


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) of 32 bytes: one block."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def unseal(key: bytes, nonce: bytes, associated: bytes, sealed: bytes) -> bytes | None:
    """The plain bytes, None when the tag does not fit."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        return None


def canonical(value: Any) -> bytes:
    """Canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def wrapping_key(body: dict[str, Any], secret: bytes) -> bytes:
    """The key that a passphrase, or the content of a key file, gives for this key document."""
    salt = bytes.fromhex(body["salt"])
    if body["kind"] == "key-file":
        return hkdf(secret, salt, b"lepton key file")
    need(body["kind"] == "scrypt", "key: its kind")
    n, r, p = body["n"], body["r"], body["p"]
    need(128 * n * r <= 1 << 30 and n * r * p <= 1 << 24, "key: its cost")
    normal = unicodedata.normalize("NFC", secret.decode()).encode()
    return hashlib.scrypt(normal, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


class SealedKeys:
    """The keys of one encrypted store."""

    def __init__(self, config: dict[str, Any], documents: list[dict[str, Any]], secret: bytes) -> None:
        """`documents`: the bodies in keys/. Raises Bad when the secret opens none of them."""
        self.store_id = bytes.fromhex(config["store_id"])
        masters = [self._unwrap(dict(body), secret) for body in documents if body["store"] == config["store_id"]]
        found = [master for master in masters if master is not None]
        need(found, "the secret opens no key")
        self.master = found[0]
        self._names = self._derive(b"lepton names")
        self._documents = self._derive(b"lepton documents")
        encryption = {name: value for name, value in config["encryption"].items() if name != "check"}
        need(encryption == {"cipher": "aes-256-gcm", "kdf": "hkdf-sha256"}, "config: its encryption")
        check = blake3(canonical({**config, "encryption": encryption}), key=self._derive(b"lepton check"))
        need(check.hexdigest() == config["encryption"]["check"], "config: its check")

    @staticmethod
    def _unwrap(body: dict[str, Any], secret: bytes) -> bytes | None:
        wrapped = bytes.fromhex(body.pop("wrapped"))
        associated = b"lepton-key 1.0 00000000" + canonical(body)
        return unseal(wrapping_key(body, secret), bytes(12), associated, wrapped)

    def _derive(self, info: bytes) -> bytes:
        return hkdf(self.master, self.store_id, info)

    def name(self, digest: bytes) -> bytes:
        """KEYED(names, digest)."""
        return blake3(digest, key=self._names).digest()

    def open_document(self, prefix: bytes, body: bytes) -> bytes:
        """The JSON of a sealed document whose header line begins with `prefix`."""
        plain = unseal(hkdf(self._documents, body[:32], b"lepton document"), bytes(12), prefix, body[32:])
        need(plain is not None, "document: its seal")
        assert plain is not None
        return plain

    def open_payload(self, header: bytes, offset: int, head: bytes, payload: bytes) -> bytes:
        """See reader_packs.Keys."""
        key = hkdf(self.master, header[56:88], b"lepton pack" + header[32:48])
        plain = unseal(key, offset.to_bytes(12, "little"), head, payload)
        need(plain is not None, "record: its seal")
        assert plain is not None
        return plain
