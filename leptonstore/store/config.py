"""The settings of a store: written once by `lepton init`, read by everybody, never guessed again.

The config of an encrypted store names its cipher and carries `check`, a keyed digest of everything else that stands here: it tells the
right key from a wrong one, and an altered config from ours. It holds no secret; the wrapped keys lie in keys/.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew
from leptonstore.format import framed
from leptonstore.version import __version__

if TYPE_CHECKING:
    from leptonstore.crypto import StoreKeys

DOCUMENT = "config"
CIPHER, KDF = "aes-256-gcm", "hkdf-sha256"


@dataclass(frozen=True)
class Encryption:
    """How a store is encrypted. `check` is StoreKeys.check of `checked`: the config's body without it, as it was read."""

    check: bytes = b""
    cipher: str = CIPHER
    kdf: str = KDF
    checked: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class StoreConfig:
    """`store_id` is 16 random bytes; packs carry it, so that a pack from elsewhere is not taken for ours."""

    store_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    chunks: ChunkSizes = field(default_factory=ChunkSizes)
    zstd_level: int = limits.ZSTD_LEVEL
    encryption: Encryption | None = None
    made_by: str = f"LeptonStore {__version__}"  # for the message of a program that is too old for this store

    def __post_init__(self) -> None:
        least, most = limits.ZSTD_LEVEL_RANGE
        if not isinstance(self.zstd_level, int) or not least <= self.zstd_level <= most:
            raise BadInput(f"zstd level is {self.zstd_level!r}; it must be from {least} to {most}")

    def _body(self) -> dict[str, Any]:
        body = {"store_id": self.store_id.hex(), "chunks": asdict(self.chunks), "zstd_level": self.zstd_level}
        if self.made_by:
            body["made_by"] = self.made_by
        if self.encryption is not None:
            body["encryption"] = {"cipher": self.encryption.cipher, "kdf": self.encryption.kdf}
        return body

    def encode(self) -> bytes:
        """The document."""
        body = self._body()
        if self.encryption is None:
            return framed.encode("config", body)
        body["encryption"]["check"] = self.encryption.check.hex()
        return framed.encode("config", body, framed.FEATURE_ENCRYPTED_STORE)

    def encrypted_by(self, keys: StoreKeys) -> StoreConfig:
        """The same settings for a store that is encrypted by `keys`."""
        config = replace(self, encryption=Encryption())
        checked = framed.canonical_json(config._body())
        return replace(config, encryption=Encryption(keys.check(checked), checked=checked))

    def require_keys(self, keys: StoreKeys, what: str) -> None:
        """Raise FormatDamaged unless these settings were made with `keys`."""
        found = self.encryption or Encryption()
        if not hmac.compare_digest(found.check, keys.check(found.checked)):
            raise FormatDamaged(f"{what} is damaged: it was altered after the store was made; restore it from a copy")


def parse_config(data: bytes, what: str) -> StoreConfig:
    """Raises FormatDamaged or FormatTooNew."""
    body: dict[str, Any] = framed.parse(data, "config", what)
    try:
        store_id = bytes.fromhex(body["store_id"])
        if len(store_id) != 16:
            raise ValueError("store_id")
        encryption = _parse_encryption(body, what) if "encryption" in body else None
        if set(body["chunks"]) != {size.name for size in fields(ChunkSizes)}:
            raise ValueError("chunks")  # a size that is left out must not become today's default
        return StoreConfig(
            store_id, ChunkSizes(**body["chunks"]), body["zstd_level"], encryption, str(body.get("made_by", ""))
        )
    except (KeyError, TypeError, ValueError, BadInput) as error:
        raise FormatDamaged(f"{what} is damaged: {error}") from None


def _parse_encryption(config: dict[str, Any], what: str) -> Encryption:
    body = config["encryption"]
    if body["cipher"] != CIPHER or body["kdf"] != KDF:
        raise FormatTooNew(f"{what} asks for cipher {body['cipher']!r} and kdf {body['kdf']!r}: upgrade LeptonStore")
    rest = {name: value for name, value in body.items() if name != "check"}
    checked = framed.canonical_json({**config, "encryption": rest})
    return Encryption(bytes.fromhex(body["check"]), checked=checked)
