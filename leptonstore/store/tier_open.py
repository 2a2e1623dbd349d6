"""Opens a tier beside the home. Where its disk, device or library is not there, or it is another store's, it is absent: what lies in it
must not look lost."""

from __future__ import annotations

from contextlib import suppress

from leptonstore import limits
from leptonstore.errors import Damaged, FormatTooNew, LeptonError
from leptonstore.format import framed
from leptonstore.store.placement import TIER_MARK
from leptonstore.tiers.block import BlockTier
from leptonstore.tiers.local import LocalTier
from leptonstore.tiers.mounted import MountedTier
from leptonstore.tiers.open import open_packs
from leptonstore.tiers.roles import PackReader
from leptonstore.tiers.tiered import AbsentTier


def open_beside(url: str, store_id: bytes) -> PackReader:
    """The tier at `url` of the store `store_id`; AbsentTier when it cannot be opened here, which must not keep the others from being
    read. No request is made."""
    try:
        return _opened(url, store_id)
    except (LeptonError, OSError) as error:
        return AbsentTier(url, str(error))


def _opened(url: str, store_id: bytes) -> PackReader:
    tier = open_packs(url)
    if isinstance(tier, LocalTier):
        mark = tier.read_document(TIER_MARK, limits.CONFIG_BYTES_MAX)
        if mark is None:
            return AbsentTier(url, "it is empty; is its disk mounted?")
        if not _is_marked(mark, store_id, url):
            return AbsentTier(url, "it is a tier of another store; is another disk mounted there?")
        return MountedTier(tier.root, TIER_MARK)
    if isinstance(tier, BlockTier) and tier.store_id not in (store_id, bytes(16)):
        return AbsentTier(url, "it is a volume of another store; is it another device?")
    return tier


def _is_marked(mark: bytes, store_id: bytes, url: str) -> bool:
    with suppress(Damaged, FormatTooNew):
        return framed.parse(mark, TIER_MARK, f"mark of {url}").get("store_id") == store_id.hex()
    return True  # that it says nothing does not mean that the packs are gone
