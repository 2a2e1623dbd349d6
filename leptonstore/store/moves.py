"""Which packs should be in another tier, and bringing them there: copy, read back, publish in the log, then delete.

    pins and copies that are missing -> tiers over their watermark, the nearest first -> hot packs, where there is room

`plan_moves` is a pure function of what it is told; `apply_moves` may be interrupted anywhere and run by several processes at once: what
the log says of a pack only moves outward (store/placement.py), each move is held against the newest state before it is published, and a
copy is deleted only where the log does not count on it, after a look that those it counts on are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from leptonstore import limits
from leptonstore.errors import LeptonError, TierUnavailable
from leptonstore.format.pack import CONTENT_META
from leptonstore.store.log import LogState, Proposal
from leptonstore.store.placement import FEATURE, Placement, TierSetting, placement_of, places_of
from leptonstore.store.store import Store
from leptonstore.store.usage import placed_once
from leptonstore.tiers.moving import copy_pack
from leptonstore.tiers.roles import PackPruner, PackReader


@dataclass(frozen=True)
class Move:
    """One step: `pack` is copied from `source` to `target` (no target: nothing is copied) and deleted from `leaves` (or from
    nowhere). `before` and `after` are what the log says of it; equal for extras."""

    pack: str
    bytes: int
    why: str  # watermark, copies, pin, hot
    source: str
    target: str | None
    leaves: str | None
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass
class MovePlan:
    """What is to be done, and the bytes in each tier before and after it. `notes` says what cannot be done."""

    moves: list[Move] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Planner:
    """The state as it will be when the moves so far are done."""

    def __init__(
        self, state: LogState, placement: Placement, held: Mapping[str, Set[str]], reads: Mapping[str, int]
    ) -> None:
        self.placement, self.reads = placement, reads
        self.content = {pack: record.content for pack, record in state.packs.items()}
        self.packs = {pack: record.bytes for pack, record in state.packs.items() if pack not in state.condemned}
        self.places = {pack: places_of(state, pack) for pack in self.packs}
        self.held = {name: set(held.get(name, ())) & self.packs.keys() for name in placement.names}
        self.plan = MovePlan(before=self._used())

    def _used(self) -> dict[str, int]:
        return {name: sum(self.packs[pack] for pack in packs) for name, packs in self.held.items()}

    def add(self, pack: str, why: str, target: str | None, leaves: str | None, after: tuple[str, ...]) -> None:
        after = tuple(sorted(after, key=self.placement.position))
        before = self.places[pack]
        self.plan.moves.append(Move(pack, self.packs[pack], why, self._source(pack), target, leaves, before, after))
        self.places[pack] = after
        if target is not None:
            self.held[target].add(pack)
        if leaves is not None:
            self.held[leaves].discard(pack)

    def _source(self, pack: str) -> str:
        """The nearest tier that the log counts on."""
        return min(self.places[pack], key=self.placement.position)

    def farther(self, pack: str) -> str | None:
        """The next tier to which the places of a pack may move: beyond the nearest of them, and none that it is in."""
        nearest = self.placement.position(self._source(pack))
        return next((name for name in self.placement.names[nearest + 1 :] if name not in self.places[pack]), None)

    def coldest(self, packs: Set[str]) -> list[str]:
        """What was read least, and of that what is oldest, first; metadata, which is little and always needed, last."""
        # Stable: `packs` is in the log's order.
        return sorted(packs, key=lambda pack: (self.content[pack] == CONTENT_META, self.reads.get(pack, 0)))

    def bring_copies(self) -> None:
        for pack in self.packs:
            while len(self.places[pack]) < self.placement.copies:
                target = self.farther(pack)
                if target is None:
                    self.plan.notes.append(
                        f"pack {pack} cannot have {self.placement.copies} copies: there is no farther tier"
                    )
                    break
                self.add(pack, "copies", target, None, (*self.places[pack], target))

    def bring_pinned(self, pinned: Mapping[str, Set[str]]) -> None:
        for name, packs in pinned.items():
            for pack in self.packs:
                if pack in packs and pack not in self.held[name]:
                    self.add(pack, "pin", name, None, self.places[pack])

    def empty(self, tier: TierSetting, pinned: Set[str]) -> None:
        """Down to the low mark, when it is over its watermark."""
        used = sum(self.packs[pack] for pack in self.held[tier.name])
        if tier.watermark is None or used <= tier.watermark:
            return
        movable = {pack: None for pack in self.packs if pack in self.held[tier.name] and pack not in pinned}
        extras = [pack for pack in self.coldest(movable.keys()) if tier.name not in self.places[pack]]
        listed = [pack for pack in self.coldest(movable.keys()) if tier.name in self.places[pack]]
        for pack in (*extras, *listed):
            if used <= limits.WATERMARK_LOW * tier.watermark:
                return
            if self._take_from(tier.name, pack):
                used -= self.packs[pack]
        if used > tier.watermark:
            self.plan.notes.append(
                f"tier {tier.name} stays over its watermark: the rest is pinned, or there is no farther tier"
            )

    def _take_from(self, name: str, pack: str) -> bool:
        places = self.places[pack]
        rest = tuple(place for place in places if place != name)
        if name not in places:
            self.add(pack, "watermark", None, name, places)
        elif len(rest) >= self.placement.copies and min(map(self.placement.position, rest)) > self.placement.position(
            name
        ):
            self.add(pack, "watermark", None, name, rest)
        else:
            target = self.farther(pack)
            if target is None:
                return False
            self.add(pack, "watermark", target, name, (*rest, target))
        return True

    def bring_hot(self) -> None:
        nearest = self.placement.tiers[0]
        room = float("inf") if nearest.watermark is None else limits.WATERMARK_LOW * nearest.watermark
        used = sum(self.packs[pack] for pack in self.held[nearest.name])
        moving = {move.pack for move in self.plan.moves}  # one plan does not move a pack out and back in
        for pack in sorted(self.reads, key=lambda pack: -self.reads[pack]):
            size = self.packs.get(pack, 0)
            hot = size and self.reads[pack] >= limits.HOT_READS * size and pack not in self.held[nearest.name]
            if hot and pack not in moving and used + size <= room:
                self.add(pack, "hot", nearest.name, None, self.places[pack])
                used += size


def plan_moves(
    state: LogState,
    placement: Placement,
    held: Mapping[str, Set[str]],
    reads: Mapping[str, int] | None = None,
    pinned: Mapping[str, Set[str]] | None = None,
) -> MovePlan:
    """What to move so that the settings hold.

    held: tier -> the packs that are there. reads: pack -> bytes that were read of it lately. pinned: tier -> packs that must be
    readable there. Pure; the same for the same arguments.
    """
    planner = _Planner(state, placement, held, reads or {})
    planner.bring_copies()
    planner.bring_pinned(pinned or {})
    for tier in placement.tiers:
        planner.empty(tier, set((pinned or {}).get(tier.name, ())))
    planner.bring_hot()
    planner.plan.after = planner._used()
    return planner.plan


def packs_in(store: Store) -> dict[str, set[str]]:
    """Tier -> the packs that are there. Raises TierUnavailable or OSError."""
    return {name: set(tier.packs()) for name, tier in zip(store.placement.names, store.tier.tiers, strict=True)}


def pinned_packs(store: Store) -> dict[str, set[str]]:
    """Tier -> the packs that hold what its pinned refs reach. Raises ChunkMissing or Damaged."""
    found: dict[str, set[str]] = {}
    for ref, name in store.placement.pins.items():
        record = store.state.refs.get(ref)
        if record is not None:
            reached = (store.locate(one.reached.digest) for one in placed_once(store, [record.commit]))
            found.setdefault(name, set()).update(place.pack for place in reached if place is not None)
    return found


def plan_for(store: Store, reads: Mapping[str, int] | None = None) -> MovePlan:
    """`plan_moves` of a store as it is. Raises TierUnavailable, ChunkMissing or Damaged."""
    store.refresh()
    return plan_moves(store.state, store.placement, packs_in(store), reads, pinned_packs(store))


@dataclass
class MoveReport:
    """What was done. `skipped`: moves that others made superfluous meanwhile."""

    moved: int = 0
    bytes_copied: int = 0
    deleted: int = 0
    skipped: int = 0
    why: dict[str, int] = field(default_factory=dict)  # reason -> moves


class _Superfluous(LeptonError):
    """Nothing of a batch is left to publish."""


def apply_moves(
    store: Store, moves: Sequence[Move], progress: Callable[[int], None] = lambda count: None
) -> MoveReport:
    """Do it; `progress` is told bytes. Raises StoreFull, TierUnavailable, FormatDamaged (a copy that reads back differently)."""
    report = MoveReport()
    for first in range(0, len(moves), limits.MOVES_PER_ENTRY_MAX):
        batch = list(moves[first : first + limits.MOVES_PER_ENTRY_MAX])
        for move in batch:
            if move.target is not None:
                source, target = _tier(store, move.source), _tier(store, move.target)
                if not isinstance(target, PackPruner):
                    raise TierUnavailable(
                        f"tier {move.target} can only be read: nothing can be moved there", target.url
                    )
                report.bytes_copied += copy_pack(source, target, move.pack)
            progress(move.bytes)
        done = _publish(store, batch)
        report.skipped += len(batch) - len(done)
        for move in done:
            report.moved += 1
            report.why[move.why] = report.why.get(move.why, 0) + 1
            report.deleted += _delete(store, move)
    return report


def _tier(store: Store, name: str) -> PackReader:
    return store.tier.tiers[store.placement.position(name)]


def _publish(store: Store, batch: list[Move]) -> list[Move]:
    """Let the log say where the packs are from now on; returns the moves that still made sense."""
    done: list[Move] = []

    def decide(state: LogState) -> Proposal:
        done[:] = _sensible(state, batch)
        placed = {move.pack: move.after for move in done if move.after != move.before}
        if not placed:
            raise _Superfluous("nothing to publish")
        return Proposal("tier", placed=placed, requires=() if FEATURE in state.requires else (FEATURE,))

    if any(move.after != move.before for move in batch):
        try:
            store.append(decide)
            return done
        except _Superfluous:
            return done
    store.refresh()
    return _sensible(store.state, batch)


def _sensible(state: LogState, batch: list[Move]) -> list[Move]:
    names = placement_of(state).names
    return [
        move
        for move in batch
        if state.present(move.pack) and places_of(state, move.pack) == move.before and set(move.after) <= set(names)
    ]


def _delete(store: Store, move: Move) -> int:
    """Remove the copy that is counted on no more, after a look that the others are there."""
    places = places_of(store.state, move.pack)
    if move.leaves is None or move.leaves in places or not store.state.present(move.pack):
        return 0
    for name in places:
        if _tier(store, name).pack_bytes(move.pack) != move.bytes:
            raise TierUnavailable(
                f"pack {move.pack} is not in tier {name}, where it was just copied to: nothing was deleted; check that tier",
                _tier(store, name).url,
            )
    tier = _tier(store, move.leaves)
    if isinstance(tier, PackPruner):
        tier.delete_pack(move.pack)
    return 1


def leaving(store: Store, name: str) -> Iterator[Move]:
    """The moves that take from tier `name` what may move outward; packs that it alone keeps, as the farthest one, stay."""
    placement = replace(store.placement, copies=1)
    planner = _Planner(store.state, placement, packs_in(store), {})
    for pack in list(planner.held[name]):
        planner._take_from(name, pack)
    yield from planner.plan.moves
