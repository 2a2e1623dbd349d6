"""Quotas of datasets: the most bytes that all versions of one may take in the store. A setting in the log, which binds every writer.

    settings["quota/NAME"] = {"bytes": the quota, "used": what counts as used, "charged": what publications added ever since it was set,
                              "since": the log entry that set it}

What counts are stored bytes (compressed, with what a record costs beside its payload) of every chunk that a ref of NAME reaches, each
once: all kinds, branches and tags, and what came before them up to a `forget` boundary. Chunks that other datasets reach as well count
for each of them.

`used` is measured when a quota is set (`measure`), and then grows with each log entry that moves a ref of NAME to a new commit, by what
that commit reaches and the versions before it did not (`charge`): so a publication costs a walk of what it changes, not of the dataset,
and writers that race cannot exceed a quota together, because the entry that moves the ref also says the new `used`. It is an upper
bound: a chunk that only a much older version had, or that moved to another page, counts again, and what a deleted ref or `forget` freed
counts until it is measured anew (after each collection of a daemon; `lepton quota NAME --measure`). Where nothing is charged (a branch, a
tag, a step back, a removal) an entry passes also over the quota, and so do erasures, which must not fail for want of space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES, Digest, parse_hex
from leptonstore.errors import BadInput, ChunkMissing, Conflict, FormatTooNew
from leptonstore.format import pack as lpk
from leptonstore.format.commit import parse_commit
from leptonstore.quantities import human_bytes
from leptonstore.store.log import LogState, Proposal, RefUpdate
from leptonstore.store.quota import OverQuota
from leptonstore.store.reach import Reach, protected
from leptonstore.store.runs import Keys, SortedRuns, iter_keys, positions

if TYPE_CHECKING:
    from leptonstore.store.store import Store

FEATURE = "quotas"  # format.framed.NAMED_FEATURES: who does not know them must not write to such a store
PREFIX = "quota/"
_KEYS = ("bytes", "used", "charged", "since")


@dataclass(frozen=True)
class DatasetQuota:
    """Of one dataset, in bytes. charged: what publications added since the quota was set, in log entry `since`; it never falls."""

    bytes: int
    used: int
    charged: int
    since: int


class Unmeasured(Exception):
    """Before it can be published: measure what these commits (name of the dataset, hex) add."""

    def __init__(self, wanted: Set[tuple[str, str]]) -> None:
        super().__init__()
        self.wanted = wanted


class Measured(NamedTuple):
    """What a commit adds to a dataset, as long as refs of that still protect the commits `leaning_on`."""

    bytes: int
    leaning_on: set[str]

    def holds(self, store: Store, state: LogState, name: str) -> bool:
        """Whether it is so in `state`."""
        return protected(store, heads_of(state, name), state.forgotten, self.leaning_on) == self.leaning_on


def quota_of(state: LogState, name: str) -> DatasetQuota | None:
    """The quota of dataset `name`, None when there is none. Raises FormatTooNew when it is something that we do not understand."""
    value = state.settings.get(PREFIX + name)
    if value is None:
        return None
    numbers = [value.get(key) for key in _KEYS] if isinstance(value, dict) else [None]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers):
        raise FormatTooNew(f"the quota of dataset {name!r} is {str(value)[:80]}: upgrade LeptonStore")
    return DatasetQuota(*numbers)


def _setting(name: str, quota: DatasetQuota) -> dict[str, dict[str, int]]:
    return {PREFIX + name: {key: getattr(quota, key) for key in _KEYS}}


def quotas(state: LogState) -> dict[str, DatasetQuota]:
    """Name -> quota, of the datasets that have one. Raises FormatTooNew."""
    names = [name.removeprefix(PREFIX) for name in state.settings if name.startswith(PREFIX)]
    return {name: quota for name in sorted(names) if (quota := quota_of(state, name)) is not None}


def dataset_of(ref: str) -> str:
    """The dataset that a ref of the log (<kind>/<name>/<branch>) is of."""
    return ref.split("/", 2)[1] if ref.count("/") >= 2 else ref


def heads_of(state: LogState, name: str) -> set[str]:
    """The commits that refs of a dataset lead to."""
    return {record.commit for ref, record in state.refs.items() if dataset_of(ref) == name}


# -- publishing ----------------------------------------------------------------------------------------------------


def charge(
    store: Store, state: LogState, updates: Iterable[RefUpdate], measured: Mapping[tuple[str, str], Measured]
) -> dict[str, dict[str, int]]:
    """The settings that the entry with `updates`, after `state`, must carry. Raises Unmeasured, or OverQuota: nothing may be published."""
    if not any(name.startswith(PREFIX) for name in state.settings):
        return {}
    wanted = set()
    for update in updates:
        name = dataset_of(update.name)
        if update.new is not None and PREFIX + name in state.settings and update.new not in heads_of(state, name):
            wanted.add((name, update.new))
    if not all(one in measured and measured[one].holds(store, state, one[0]) for one in wanted):
        raise Unmeasured(wanted)
    settings: dict[str, dict[str, int]] = {}
    for name in sorted({name for name, _ in wanted}):
        quota = quota_of(state, name)
        assert quota is not None
        added = sum(measured[one].bytes for one in wanted if one[0] == name)
        used = quota.used + added
        if added and used > quota.bytes:
            raise OverQuota(
                f"the quota of dataset {name!r} is {human_bytes(quota.bytes)}; its versions have {human_bytes(quota.used)} and "
                f"{human_bytes(added)} more would be added: nothing was published; raise it (`lepton quota {name} --set SIZE`), or remove "
                f"versions (`lepton forget`, `lepton branch --delete`) and measure again (`lepton quota {name} --measure`)"
            )
        if added:
            settings |= _setting(name, replace(quota, used=used, charged=quota.charged + added))
    return settings


def measure_new(
    store: Store, wanted: Set[tuple[str, str]], ends: Set[str] = frozenset()
) -> dict[tuple[str, str], Measured]:
    """Stored bytes that each of `wanted` reaches and the versions before it, as far as refs of the dataset protect those, do not.

    ends: commits (hex) at which history ends. Raises ChunkMissing or ChunkCorrupt.
    """
    with store._lock:
        store.refresh()
        heads = {name: heads_of(store.state, name) for name, _ in wanted}
        forgotten = set(store.state.forgotten)
    return {(name, commit): _added(store, commit, heads[name], forgotten | ends) for name, commit in wanted}


def _added(store: Store, commit: str, heads: set[str], forgotten: Set[str]) -> Measured:
    parents = {parent.hex() for parent in parse_commit(store.get(parse_hex(commit))).parents}
    safe = protected(store, heads, forgotten, {commit, *parents})
    if commit in safe:
        return Measured(0, {commit})
    folder, known = store.cache_path("quota"), safe & parents
    new, old = SortedRuns(DIGEST_BYTES, folder), SortedRuns(DIGEST_BYTES, folder)
    walk = Reach(store, new.add, folder)
    walk.walk([commit], forgotten, heads | safe, known=known)
    # A page that changed names its values anew: those that the page before it named were there already.
    Reach(store, old.add, folder).walk(known, history=False, known=[commit])
    reached = new.finish()
    reached = reached[~positions(old.finish(), reached)[1]]
    return Measured(_stored(store, reached), walk.stopped | known)


def _stored(store: Store, keys: Keys) -> int:
    """Stored bytes of some chunks, and of their pieces, each once. Memory is bounded."""
    pieces = SortedRuns(DIGEST_BYTES, store.cache_path("quota"))
    total = sum(_shares(store, keys, pieces))
    return total + sum(_shares(store, pieces.finish(), None))


def _shares(store: Store, keys: Keys, pieces: SortedRuns | None) -> Iterator[int]:
    """What each takes; pieces: gets the pieces of those that are chunk lists."""
    for first in range(0, len(keys), limits.QUOTA_LOOK_UPS):
        batch: list[Digest] = list(iter_keys(keys[first : first + limits.QUOTA_LOOK_UPS]))
        for digest, place in zip(batch, store.locate_many(batch), strict=True):
            row = store._writer.row(digest) if place is None else place.row
            if row is None:
                raise ChunkMissing(digest.hex())
            yield row.share
            if pieces is not None and row.kind == lpk.KIND_CHUNK_LIST:
                pieces.add_all(piece for piece, _ in lpk.parse_chunk_list(store.record(digest)[1]).pieces)


# -- settings ------------------------------------------------------------------------------------------------------


def set_quota(store: Store, name: str, count: int | None, now: bool = True) -> DatasetQuota | None:
    """Set the quota of dataset `name` to `count` bytes, or (None) take it away; returns it with what is used, measured now.

    now=False leaves measuring to somebody else: behind a daemon, to a job of that. It binds whoever publishes from then on. Raises
    BadInput, StoreFull, and as `measure`.
    """
    if count is None:
        store.configure({PREFIX + name: None})
        return None
    if not 0 <= count <= limits.QUOTA_BYTES_MAX:
        raise BadInput(f"quota is {count} bytes: it must be from 0 to {limits.QUOTA_BYTES_MAX}")

    def decide(state: LogState) -> Proposal:
        before = quota_of(state, name)
        quota = replace(before, bytes=count) if before else DatasetQuota(count, 0, 0, state.sequence + 1)
        requires = () if FEATURE in state.requires else (FEATURE,)
        return Proposal("settings", settings=_setting(name, quota), requires=requires)

    store.append(decide)  # first: what is published while it is measured is charged
    return measure(store, name) if now else quota_of(store.state, name)


def measure(store: Store, name: str) -> DatasetQuota | None:
    """Measure what dataset `name` takes, and let its quota say so; None when it has none.

    Reads the trees of all of its versions once. Raises Conflict (garbage collection removed versions meanwhile: run it again),
    ChunkCorrupt, StoreFull.
    """
    with store._lock:
        store.refresh()
        before, heads, forgotten = quota_of(store.state, name), heads_of(store.state, name), set(store.state.forgotten)
    if before is None:
        return None
    try:
        folder = store.cache_path("quota")
        reached = SortedRuns(DIGEST_BYTES, folder)
        Reach(store, reached.add, folder).walk(heads, forgotten)
        found = _stored(store, reached.finish())
    except ChunkMissing as error:
        store.refresh()
        if heads == heads_of(store.state, name):
            raise
        raise Conflict(f"versions of {name!r} were removed while it was measured: run it again ({error})") from None

    def decide(state: LogState) -> Proposal:
        now = quota_of(state, name)
        if now is None or now.since != before.since:
            raise Conflict(f"the quota of {name!r} was taken away while it was measured: run it again")
        # What was charged since then stands beside what was measured.
        return Proposal("settings", settings=_setting(name, replace(now, used=found + now.charged - before.charged)))

    store.append(decide)
    return quota_of(store.state, name)


def to_json(quota: DatasetQuota | None) -> dict[str, Any]:
    """For --json."""
    return (
        {"quota_bytes": None, "used_bytes": None}
        if quota is None
        else {"quota_bytes": quota.bytes, "used_bytes": quota.used}
    )
