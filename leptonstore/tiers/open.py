"""URL or path -> tier.

a path, file://                 LocalTier
s3://, gs://, az://             ObjectTier over obstore (extra `object`)
memory://NAME                   ObjectTier in this process, for tests and notebooks
block:///path                   BlockTier: packs only (`open_packs`)
what else fsspec knows          FsspecTier: reading, and writing for a single writer
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

from leptonstore.errors import BadInput
from leptonstore.tiers.block import open_block
from leptonstore.tiers.local import LocalTier
from leptonstore.tiers.roles import PackReader, StoreHome


def open_tier(url: str | Path, single_writer: bool = False) -> StoreHome:
    """The tier at `url`, which need not exist yet. No request is made.

    single_writer: the caller answers for it that nobody else writes there meanwhile; only what lacks the primitive that writers
    agree by asks for it (fsspec URLs). Raises BadInput for a scheme that nobody knows, MissingExtra.
    """
    text = str(url)
    parsed = urlparse(text)
    if parsed.scheme == "file":
        text = unquote(parsed.path)
    elif text.startswith("block:"):
        raise BadInput(
            f"{text}: a block volume holds packs only: make the store elsewhere, and `lepton tier add NAME {text}`"
        )
    elif "://" in text:
        return _open_url(text, parsed.scheme, single_writer)
    if not text:
        raise BadInput("the store's path is empty; give a directory")
    return LocalTier(Path(text).expanduser().absolute())


def open_packs(url: str | Path) -> PackReader:
    """A tier that need not be a home: what `open_tier` opens, and block volumes. Raises as that, and what `open_block` does."""
    if str(url).startswith("block:"):
        return open_block(url)
    return open_tier(url)


def _open_url(url: str, scheme: str, single_writer: bool) -> StoreHome:
    if scheme in ("s3", "gs", "az"):
        from leptonstore.tiers.object_open import open_bucket

        return open_bucket(url)
    if scheme == "memory":
        from leptonstore.tiers.memory import memory_tier

        return memory_tier(url)
    from leptonstore.tiers.fsspec import open_fsspec

    return open_fsspec(url, single_writer)
