"""The settings of a store: written once by `lepton init`, read by everybody, never guessed again."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.format import framed

DOCUMENT = "config"


@dataclass(frozen=True)
class StoreConfig:
    """`store_id` is 16 random bytes; packs carry it, so that a pack from elsewhere is not taken for ours."""

    store_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    chunks: ChunkSizes = field(default_factory=ChunkSizes)
    zstd_level: int = limits.ZSTD_LEVEL

    def __post_init__(self) -> None:
        least, most = limits.ZSTD_LEVEL_RANGE
        if not isinstance(self.zstd_level, int) or not least <= self.zstd_level <= most:
            raise BadInput(f"zstd level is {self.zstd_level!r}; it must be from {least} to {most}")

    def encode(self) -> bytes:
        """The document."""
        body = {"store_id": self.store_id.hex(), "chunks": asdict(self.chunks), "zstd_level": self.zstd_level}
        return framed.encode("config", body)


def parse_config(data: bytes, what: str) -> StoreConfig:
    """Raises FormatDamaged or FormatTooNew."""
    body: dict[str, Any] = framed.parse(data, "config", what)
    try:
        store_id = bytes.fromhex(body["store_id"])
        if len(store_id) != 16:
            raise ValueError("store_id")
        return StoreConfig(store_id, ChunkSizes(**body["chunks"]), body["zstd_level"])
    except (KeyError, TypeError, ValueError, BadInput) as error:
        raise FormatDamaged(f"{what} is damaged: {error}") from None
