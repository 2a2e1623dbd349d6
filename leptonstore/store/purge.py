"""Nothing is left of what no version reaches: the second half of an erasure, after the log entry that begins its epoch.

    [entry: refs lead to versions without the rows, epoch E] -> purge -> nothing left? caches cleared? -> [entry: purged E]

Garbage collection frees most of the space that garbage takes; this frees all of it, and does not trust what was learned from it:
- every pack that holds anything but what some version needs is rewritten without it, groups of small records too (their members are
  decoded and put together anew);
- every pack with a dictionary that was trained before the epoch is rewritten: a dictionary is made of pieces of the records that it was
  trained on, and nothing tells which those were;
- packs that no entry lists, files in damaged/ and tmp/, and the free space of block volumes go, in every tier.

It may be interrupted anywhere and run again, and may be run by several. While it runs, live writers keep what they put in this epoch; those
that began before cannot publish (store/fences.py), and must end before the erasure counts as complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.errors import Conflict, Damaged, StoreFull
from leptonstore.format import pack as lpk
from leptonstore.store.gc import FEATURE as FENCES
from leptonstore.store.gc import Collector, Progress
from leptonstore.store.leases import claimed_packs, readers, writers
from leptonstore.store.log import Proposal
from leptonstore.store.store import Store
from leptonstore.tiers.roles import FreeSpace, HomePruner, PackPruner, PackReader

FEATURE = "epochs"  # format.framed.NAMED_FEATURES
FEATURES = (FEATURE, FENCES)


@dataclass
class PurgeReport:
    """What was removed. Sizes are bytes. epoch: that of the store when it began."""

    epoch: int = 0
    packs_removed: int = 0
    bytes_freed: int = 0
    repacked: int = 0
    repacked_bytes: int = 0
    set_aside: int = 0  # files that repair had kept in damaged/
    temporaries: int = 0
    wiped_bytes: int = 0  # of block volumes, that were in no pack and not zero
    left: list[str] = field(default_factory=list)  # what could not be removed, for people

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))


def require_alone(store: Store, commits: set[str]) -> None:
    """Raise Conflict while a reader holds one of `commits`, or a writer has work of an epoch before that which is to be purged."""
    own = store._writer.claim
    holding = readers(store.home, store.documents)
    for commit in sorted(commits & holding.keys()):
        raise Conflict(f"version {commit[:12]} is being read by {holding[commit]}: stop it or wait, and run it again")
    at_work = sorted(name for name, epoch in writers(store.home).items() if name != own and epoch < store._writer.epoch)
    if at_work:
        raise Conflict(
            f"{len(at_work)} writers are at work ({store.url}/writers/{at_work[0]} is the first): what they put may hold the rows; "
            "stop them or wait, and run it again"
        )


def purge(store: Store, progress: Progress = lambda what, done, total: None) -> PurgeReport:
    """Remove everything that no version needs. Then clear what else may hold it, and `finish`.

    Raises Conflict (readers, writers: what is to be done stays pending, and is done by the next run), Damaged (a pack that cannot be
    read may hold anything: repair first), StoreFull, TierUnavailable.
    """
    store.refresh()
    require_alone(store, set(store.state.replaced))
    report = PurgeReport(store.state.epoch)
    for _ in range(limits.PURGE_ROUNDS_MAX):
        old = {pack for pack in store.state.packs if has_old_dictionary(store, pack)}
        done = Collector(store, heed_claims=False, progress=progress, retire=old, repack_share=1.0).run()
        report.packs_removed += done.packs_removed
        report.bytes_freed += done.bytes_freed
        report.repacked += done.repacked
        report.repacked_bytes += done.repacked_bytes
        if done.repack_stopped:
            raise StoreFull(
                f"{done.repack_stopped}; the erasure is not complete: run it again (`lepton erase --resume`)"
            )
        if not unclean_packs(store):
            break
    _remove_leftovers(store, report)
    report.left = leftovers(store)
    return report


def finish(store: Store, epoch: int) -> None:
    """Say in the log that nothing is left of what was unreachable when `epoch` began.

    Raises Conflict while somebody is at work who may still bring it back.
    """
    require_alone(store, set(store.state.replaced))
    if store.state.purged < epoch:
        store.append(lambda state: Proposal("erase", purged=max(epoch, state.purged)))


def has_old_dictionary(store: Store, pack: str) -> bool:
    """Whether a pack has a dictionary, and was begun before the epoch. Raises Damaged."""
    try:
        header = lpk.parse_header(store.tier.read(pack, 0, lpk.HEADER_BYTES))
    except OSError as error:
        raise Damaged(
            f"pack {pack} cannot be read ({error.strerror}): run `lepton repair`, then run it again"
        ) from None
    if header.epoch >= store.state.epoch:
        return False
    return any(row.kind == lpk.KIND_DICTIONARY for row in store._footer_rows(pack))


def unclean_packs(store: Store) -> dict[str, str]:
    """Listed packs that hold more than versions need, or dictionaries of an earlier epoch, and why. Raises Damaged, TierUnavailable."""
    view, keepers = Collector(store, dry_run=True, heed_claims=False).judge()
    if keepers.damaged:
        pack = sorted(keepers.damaged)[0]
        raise Damaged(
            f"{len(keepers.damaged)} packs are damaged (the first is {pack}), and what they hold cannot be told: run `lepton repair`, "
            "then run it again"
        )
    found = dict.fromkeys(view.condemned, "it is condemned")
    for pack in view.packs:
        if keepers.kept[pack] != keepers.held[pack]:
            found[pack] = "it holds what no version needs"
        elif has_old_dictionary(store, pack):
            found[pack] = "its dictionary was trained before"
    return found


def _remove_leftovers(store: Store, report: PurgeReport) -> None:
    for tier in store.tier.tiers:
        if isinstance(tier, HomePruner):
            for name in tier.documents("damaged"):
                tier.delete_document(f"damaged/{name}")
                report.set_aside += 1
        if hasattr(tier, "remove_dead_temporaries"):
            report.temporaries += tier.remove_dead_temporaries(young_too=True)
        if isinstance(tier, FreeSpace):
            report.wiped_bytes += tier.wipe_free()


def leftovers(store: Store) -> list[str]:
    """What there is beside what versions need, tier by tier, for people; nothing when the erasure is complete."""
    store.refresh()
    found = [f"pack {pack}: {why}" for pack, why in sorted(unclean_packs(store).items())]
    spared = claimed_packs(store.home)
    for name, tier in zip(store.placement.names, store.tier.tiers, strict=True):
        found += [f"tier {name} ({tier.url}): {what}" for what in _left_in(tier, store, spared)]
    return found


def _left_in(tier: PackReader, store: Store, spared: set[str]) -> list[str]:
    found = []
    unlisted = set(tier.packs()) - store.state.packs.keys() - spared
    if unlisted:
        why = "" if isinstance(tier, PackPruner) else "; it can only be read from here: remove them there"
        found.append(f"{len(unlisted)} packs that no entry of the log lists ({sorted(unlisted)[0]} is the first){why}")
    if isinstance(tier, HomePruner) and (aside := tier.documents("damaged")):
        found.append(f"{len(aside)} files in damaged/")
    at_work = any(name != store._writer.claim for name in writers(store.home))
    if not at_work and isinstance(tier, HomePruner) and (files := tier.documents("tmp")):
        found.append(f"{len(files)} files in tmp/, which a process is writing")
    if isinstance(tier, FreeSpace) and (size := tier.free_not_zero()):
        found.append(f"{size} bytes of free space that are not zero")
    return found
