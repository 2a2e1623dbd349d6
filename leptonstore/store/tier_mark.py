"""Whose a tier is: a document in it names the store, so that two stores never take each other's packs for garbage."""

from __future__ import annotations

from leptonstore import limits
from leptonstore.errors import BadInput
from leptonstore.format import framed
from leptonstore.store.config import DOCUMENT
from leptonstore.store.placement import TIER_MARK
from leptonstore.store.store import Store
from leptonstore.tiers.block import BlockTier
from leptonstore.tiers.open import open_packs
from leptonstore.tiers.roles import HomeWriter


def claim_tier(url: str, store: Store) -> None:
    """Make the place at `url` a tier of `store`. Raises BadInput when it is a store itself or another one's tier."""
    tier = open_packs(url)
    if isinstance(tier, BlockTier):
        if not tier.claim(store.config.store_id):
            raise BadInput(f"{url} is a tier of another store: give another volume")
        return
    if not isinstance(tier, HomeWriter):
        return
    if tier.read_document(DOCUMENT, limits.CONFIG_BYTES_MAX) is not None:
        raise BadInput(f"{url} is a store itself: give another place for the packs")
    mine = framed.encode(TIER_MARK, {"store_id": store.config.store_id.hex()})
    if tier.create_document(TIER_MARK, mine):
        return
    found = tier.read_document(TIER_MARK, limits.CONFIG_BYTES_MAX)
    if found is None or framed.parse(found, TIER_MARK, f"mark of {url}") != framed.parse(mine, TIER_MARK, "mark"):
        raise BadInput(f"{url} is a tier of another store: give another place")
