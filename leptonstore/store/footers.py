"""The footer of a pack that may lie in several tiers: of the nearest copy that is whole.

"Missing" is said only when every tier says so; a damaged copy counts only when no other is whole, and none is counted on in a tier
that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from leptonstore.digest import Digest
from leptonstore.errors import NotPermitted, PackDamaged, TierUnavailable
from leptonstore.store.log import LogState
from leptonstore.store.placement import Placement, places_of
from leptonstore.tiers.roles import PackReader
from leptonstore.tiers.tiered import TieredPacks

_T = TypeVar("_T")


def from_whole_copy(tiers: TieredPacks, counted_on: Collection[int], read: Callable[[PackReader], _T]) -> _T:
    """What `read` (of a PackReader, raising PackDamaged) says of the nearest copy that it can read.

    counted_on: positions of the tiers that keep the pack. Raises PackDamaged; TierUnavailable of a tier that may have a whole copy,
    also where this user may not read in it; NotPermitted when there is one tier.
    """
    damaged: PackDamaged | None = None
    silent: TierUnavailable | None = None
    counts = False  # whether one of those that do not answer keeps it
    for at in range(len(tiers.tiers)):
        try:
            return tiers.ask(at, read)
        except PackDamaged as error:
            if damaged is None or damaged.missing:
                damaged = error
        except (TierUnavailable, NotPermitted) as error:
            if len(tiers.tiers) == 1:
                raise
            counts = counts or at in counted_on
            named = error if isinstance(error, TierUnavailable) else TierUnavailable(str(error), tiers.tiers[at].url)
            silent = silent or named
    if silent is not None and (damaged is None or damaged.missing or counts):
        raise silent
    assert damaged is not None  # there is a tier, and it did not return
    raise damaged


def positions_of(state: LogState, placement: Placement, pack: str) -> tuple[int, ...]:
    """Positions of the tiers that keep a pack."""
    return tuple(placement.names.index(name) for name in places_of(state, pack) if name in placement.names)


@dataclass(frozen=True)
class Away:
    """Packs that are not indexed, because their tier does not answer."""

    packs: tuple[str, ...]
    told: str  # names and URLs of the tiers
    tier: str  # URL of the first
    said: str = ""  # what it said, if this process asked it

    def error(self, digest: Digest) -> TierUnavailable:
        """Of a chunk that is in no pack that is indexed."""
        count = f"{len(self.packs):,} packs" if len(self.packs) > 1 else "a pack"
        return TierUnavailable(
            f"chunk {digest.hex()[:16]}… may be in {count} of tier {self.told}, which did not answer when this host filled its index"
            f"{f' ({self.said})' if self.said else ''}: mount it or wait until it is back, and run it again; nothing is lost",
            self.tier,
        )


def away_of(packs: Sequence[str], state: LogState, placement: Placement, said: str) -> Away:
    """The tiers that keep these packs."""
    names = {name for pack in packs for name in places_of(state, pack)}
    tiers = [tier for tier in placement.tiers if tier.name in names]
    told = ", ".join(f"{tier.name} ({tier.url})" if tier.url else tier.name for tier in tiers)
    return Away(tuple(packs), told, tiers[0].url if tiers else "", said)
