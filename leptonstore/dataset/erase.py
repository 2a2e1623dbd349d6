"""Erase: a sample gone from every version, and from every byte that the store keeps.

    which rows of which versions -> every version that has them, written anew without -> one log entry moves all refs and begins an epoch
      -> purge: garbage, dictionaries, tiers -> caches of this host -> search of everything that is left

Until the entry nothing is visible; from it on, no ref leads to the rows, and names of erased versions lead to those that stand for
them. What comes after may be interrupted anywhere: `resume` (or the same call) goes on, and `ErasureReport.complete` is true only
when it is done.
docs/decisions/0024-erase.md says why each step is needed, and what no program can do from here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.erase_rows import Asked, Rows, Rowsets, fits
from leptonstore.dataset.erase_values import Erased, Shared, erased_values, holders, redacted
from leptonstore.dataset.graph import in_order, read_commit
from leptonstore.dataset.refs import MAIN, list_refs, resolve_ref
from leptonstore.dataset.rows_in import RowsIn
from leptonstore.dataset.splice import Splice, splice
from leptonstore.digest import digest_of, parse_hex
from leptonstore.errors import BadInput, ChunkMissing, Conflict, RefMissing
from leptonstore.format.commit import Commit, encode_commit
from leptonstore.format.pack import CONTENT_META, KIND_DICTIONARY
from leptonstore.store import RefUpdate, Store
from leptonstore.store.environment import delete_environment
from leptonstore.store.log import LogState, Proposal
from leptonstore.store.purge import FEATURES, PurgeReport, finish, purge, require_alone
from leptonstore.store.search import Needles, Searched, search, search_files

Progress = Callable[[str, int, int], None]
# Of a store, in the user's cache directory, beside the index, which is filled anew: what names rows; results that were made of them.
_HOST_CACHES = ("trees", "memo")


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass
class ErasePlan:
    """What an erasure would do. `rows`: version -> its rows that go; `order`: all versions that change, parents first."""

    names: tuple[str, ...]
    rows: dict[str, Rows]
    order: list[str]
    commits: dict[str, Commit]
    heads: dict[str, str]  # every ref of the store -> the version that it led to when this was planned
    refs: dict[str, str]  # of these, the ones that move
    erased: Erased
    shared: list[Shared] = field(default_factory=list)

    @property
    def row_count(self) -> int:
        """The most rows that one version loses."""
        return max((len(rows) for rows in self.rows.values()), default=0)


@dataclass
class ErasureReport:
    """What was done, or with dry_run would be, and the proof.

    complete: nothing is left of what no version needs. absent: and no value that was searched for was found, but in `shared`.
    """

    dry_run: bool
    epoch: int = 0
    rows: dict[str, int] = field(default_factory=dict)  # version before -> rows that it lost
    replaced: dict[str, str] = field(default_factory=dict)  # version before -> version now
    refs: list[str] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    purged: PurgeReport = field(default_factory=PurgeReport)
    searched: Searched | None = None
    short: int = 0  # values too short to be searched for
    found: list[str] = field(default_factory=list)  # where values were found that no version which stays accounts for
    caches: list[str] = field(default_factory=list)  # what became of caches of this host
    remotes: list[str] = field(default_factory=list)  # other stores that this one remembers: they may have the rows
    complete: bool = False

    @property
    def absent(self) -> bool:
        """Whether the proof holds."""
        searched = self.searched
        return self.complete and searched is not None and not self.found and not searched.unreadable

    def to_json(self) -> dict[str, Any]:
        """For --json. No erased value is in it."""
        searched = self.searched
        return {
            **vars(self),
            "shared": [one.to_json() for one in self.shared],
            "purged": self.purged.to_json(),
            "searched": searched
            and {name: value for name, value in vars(searched).items() if name not in ("hits", "log_hits")},
            "absent": self.absent,
        }


def erase(
    store: Store,
    name: str | Sequence[str],
    where: Any = None,
    keys: RowsIn = None,
    rows: Sequence[int] | None = None,
    everywhere: bool = False,
    same_identity: bool | None = None,
    dry_run: bool = False,
    caches: Sequence[HotCache] = (),
    author: str = "",
    progress: Progress = _silent,
    confirm: Callable[[ErasePlan], bool] = lambda plan: True,
) -> ErasureReport:
    """Erase the samples of dataset `name` (several: of each) for which `where` holds, with these `keys` (a table with the key columns), or
    of these row numbers of version `name` (NAME@REF), from every version of it.

    everywhere: in all datasets in which the same can be told. same_identity: without a key, whether rows go, too, that have the identity
    of one that is meant but do not fit the condition (None: BadInput when there are any). caches: hot caches of this host to empty.
    confirm: is shown the plan, and says whether to go on. Raises BadInput, RefMissing, Conflict (readers or writers are at work, or
    somebody published meanwhile: nothing was erased, or what is pending is told), Damaged, StoreFull, TierUnavailable.
    """
    store.refresh()
    made = plan_erasure(store, name, where, keys, rows, everywhere, same_identity, progress)
    report = ErasureReport(dry_run, store.state.epoch, _counts(made), shared=made.shared, short=made.erased.short)
    report.refs = sorted(made.refs)
    report.remotes = _remotes(store)
    pending = store.state.purged < store.state.epoch
    if not made.order and not pending:
        report.complete = True
        return report
    if dry_run or not confirm(made):
        report.dry_run = True
        return report
    if pending:  # an earlier one was interrupted: both are finished and proven together
        made.erased.add(_values_of_pending(store, progress))
    if made.order:
        require_alone_for(store, made)
        report.replaced = _rewrite(store, made, author, progress)
        report.epoch = store.state.epoch
    return _complete(store, report, made.erased, caches, progress)


def resume(store: Store, caches: Sequence[HotCache] = (), progress: Progress = _silent) -> ErasureReport:
    """Finish an erasure that was interrupted after its log entry, and search again for what can still be told of its values.

    Raises as `erase`.
    """
    store.refresh()
    pending = store.state.purged < store.state.epoch
    report = ErasureReport(False, store.state.epoch, replaced=dict(store.state.replaced), remotes=_remotes(store))
    erased = _values_of_pending(store, progress) if pending else Erased(set(), set(), set())
    return _complete(store, report, erased, caches, progress)


def require_alone_for(store: Store, made: ErasePlan) -> None:
    """Raise Conflict while somebody reads what is to be erased, or writes."""
    with store.erasing():
        require_alone(store, set(made.order))


# -- the plan --------------------------------------------------------------------------------------------------------


def plan_erasure(
    store: Store,
    name: str | Sequence[str],
    where: Any = None,
    keys: RowsIn = None,
    rows: Sequence[int] | None = None,
    everywhere: bool = False,
    same_identity: bool | None = None,
    progress: Progress = _silent,
) -> ErasePlan:
    """Which rows of which versions are meant, and which versions change with them. Raises as `erase`; nothing is written."""
    if sum(one is not None for one in (where, keys, rows)) != 1:
        raise BadInput("say which rows to erase: by a condition, by keys, or by row numbers, and by one of these only")
    specs = [name] if isinstance(name, str) else list(name)
    if rows is not None and (len(specs) > 1 or everywhere):
        raise BadInput("row numbers are those of one version: erase by a condition or by keys in several datasets")
    heads = _heads(store.state)
    newest_first = in_order(store, sorted(set(heads.values())))
    commits = {commit: read_commit(store, commit) for commit in reversed(newest_first)}  # parents first
    parents = {commit: _kept_parents(store, commit, commits) for commit in commits}
    found: dict[str, Rows] = {}
    names = []
    for number, spec in enumerate([*specs, *(_others(store, specs) if everywhere else [])]):
        own, _, start = resolve_ref(store, "dataset", spec)
        names.append(own)
        mine = _before({head for full, head in heads.items() if full.startswith(f"dataset/{own}/")}, parents)
        versions = {commit: commits[commit] for commit in commits if commit in mine}
        if start not in versions:
            raise BadInput(
                f"no branch or tag leads to {spec} any more: whatever is in it goes with any erasure; name another version"
            )
        asked = Asked(where, keys, rows, start)
        if number >= len(specs) and not fits(versions[start], asked):
            continue  # what was named has to fit; of the others, those that do
        looker = Rowsets(store, versions, lambda done: progress("look", done, 0))
        for commit, some in looker.find(asked, same_identity).items():
            found[commit] = np.union1d(found.get(commit, some), some)
    order: dict[str, None] = {}
    for commit in commits:
        if commit in found or any(parent in order for parent in parents[commit]):
            order[commit] = None
    refs = {full: head for full, head in heads.items() if head in order}
    if len(order) > limits.ERASE_VERSIONS_MAX or len(refs) > limits.ERASE_REFS_MAX:
        raise BadInput(
            f"{len(order)} versions and {len(refs)} branches and tags would change, more than one log entry can tell "
            f"({limits.ERASE_VERSIONS_MAX} and {limits.ERASE_REFS_MAX}): forget old history first (`lepton forget --keep N`)"
        )
    erased = erased_values(store, commits, found, lambda done: progress("values", done, 0))
    shared = holders(store, {digest: set() for digest in erased.large}, erased=found) if erased.large else []
    return ErasePlan(tuple(names), found, list(order), commits, heads, refs, erased, shared)


def _heads(state: LogState) -> dict[str, str]:
    return {full: record.commit for full, record in state.refs.items()}


def _others(store: Store, specs: list[str]) -> list[str]:
    named = {spec.partition("@")[0] for spec in specs}
    branches: dict[str, list[str]] = {}
    for info in list_refs(store, "dataset"):
        branches.setdefault(info.name, []).append(info.branch)
    return [f"{name}@{MAIN if MAIN in some else some[0]}" for name, some in branches.items() if name not in named]


def _kept_parents(store: Store, commit: str, commits: Mapping[str, Commit]) -> list[str]:
    if commit in store.state.forgotten:
        return []
    return [parent.hex() for parent in commits[commit].parents]


def _before(heads: set[str], parents: Mapping[str, list[str]]) -> set[str]:
    met: set[str] = set()
    queue = list(heads)
    while queue:
        commit = queue.pop()
        if commit not in met:
            met.add(commit)
            queue += parents[commit]
    return met


def _counts(made: ErasePlan) -> dict[str, int]:
    return {commit: len(rows) for commit, rows in made.rows.items()}


# -- the entry -------------------------------------------------------------------------------------------------------


def _rewrite(store: Store, made: ErasePlan, author: str, progress: Progress) -> dict[str, str]:
    """Write the versions anew and let every ref lead to them, in one entry. Returns old -> new."""
    mapping: dict[str, str] = {}
    with store.erasing():
        for done, commit in enumerate(made.order):
            progress("rewrite", done, len(made.order))
            mapping[commit] = _written_anew(store, commit, made, mapping)

        def decide(state: LogState) -> tuple[RefUpdate, ...]:
            if (
                _heads(state) != made.heads
            ):  # a version that is not planned for may have the rows, or lead to one that has
                raise Conflict("somebody published while this ran: nothing was erased; run it again")
            return tuple(
                RefUpdate(full, record.commit, mapping[record.commit], record.metrics, record.tag)
                for full, record in state.refs.items()
                if record.commit in mapping
            )

        def erasure(state: LogState, proposal: Proposal) -> Proposal:
            require_alone(store, set(mapping))  # who began since may have read the rows
            requires = tuple(feature for feature in FEATURES if feature not in state.requires)
            return replace(proposal, epoch=state.epoch + 1, replaced=mapping, requires=requires)

        store.publish_erasure(decide, erasure, author)
    return mapping


def _written_anew(store: Store, commit: str, made: ErasePlan, mapping: Mapping[str, str]) -> str:
    """A version without the rows, behind parents without them. What it says of itself does not quote them either."""
    old = made.commits[commit]
    new = old
    if commit in made.rows:
        version = Dataset(store, "erase", commit[:12], commit)
        tree = splice(version, (Splice(int(run[0]), len(run)) for run in _runs(made.rows[commit])))
        new = replace(new, root=tree.root, rows=tree.rows, plain_bytes=tree.plain_bytes)
    # Parents that were forgotten go altogether: nothing of them is kept, and no boundary need be told for the new commit.
    kept = [] if commit in store.state.forgotten else [parent.hex() for parent in old.parents]
    new = replace(
        new,
        parents=tuple(parse_hex(mapping.get(parent, parent)) for parent in kept),
        message=redacted(old.message, made.erased.texts),
        lineage=redacted(old.lineage, made.erased.texts),
    )
    data = encode_commit(new)
    store.put(data, CONTENT_META)
    return digest_of(data).hex()


def _runs(rows: Rows) -> list[Rows]:
    return np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []


# -- everything after it ---------------------------------------------------------------------------------------------


def _values_of_pending(store: Store, progress: Progress) -> Erased:
    """The values that versions lost to the erasure that is pending, as far as the erased versions can still be read."""
    total = Erased(set(), set(), set())
    for old, new in store.state.replaced.items():
        with suppress(RefMissing, ChunkMissing):
            commits = {old: read_commit(store, old)}
            lost = [block.removed for block in Diff(store, old, new).blocks()]
            total.add(erased_values(store, commits, {old: np.concatenate(lost)} if lost else {}))
        progress("values", 0, 0)
    return total


def _complete(
    store: Store, report: ErasureReport, erased: Erased, caches: Sequence[HotCache], progress: Progress
) -> ErasureReport:
    report.purged = purge(store, progress)
    needles = Needles(erased.patterns)
    report.caches = _clear_caches(store, caches, needles, report)
    store.reindex()
    if not report.purged.left:
        finish(store, report.purged.epoch)  # after the caches: who is killed before this does all of it again
        report.complete = True
    report.searched = search(store, needles, progress)
    report.short = report.short or erased.short
    _account_for(store, report, needles)
    return report


def _remotes(store: Store) -> list[str]:
    """Stores that this one pushes to or was cloned from (the setting `remotes`, {name: URL})."""
    known = store.state.settings.get("remotes")
    return [f"{name} ({url})" for name, url in sorted(known.items())] if isinstance(known, dict) else []


def _clear_caches(store: Store, caches: Sequence[HotCache], needles: Needles, report: ErasureReport) -> list[str]:
    """Empty what this host remembers. A hot cache knows keys only, so all of it goes."""
    told = []
    for name in _HOST_CACHES:
        folder = store.cache_path(name)
        if folder.is_dir():
            if (folder / "index").is_dir():  # LMDB: this process may have it open
                delete_environment(folder / "index")
            shutil.rmtree(folder, ignore_errors=True)
            told.append(f"{name} of this host's cache directory removed")
    for cache in caches:
        freed = cache.clear()
        held = cache.stats().get("pinned_bytes", 0)
        told.append(
            f"hot cache {cache.path}: emptied, {freed:,} bytes"
            + (f"; {held:,} bytes are still looked at" if held else "")
        )
        report.found += [f"{cache.path}/{file}" for file in search_files(Path(cache.path), needles, ".seg")]
    return told


def _account_for(store: Store, report: ErasureReport, needles: Needles) -> None:
    """Hits in records that some version needs are content that other rows share; all others must not be.

    A dictionary may have learned it from such rows, and from nothing else.
    """
    searched = report.searched
    assert searched is not None
    listed = store.state.packs
    hits: dict[bytes, set[int]] = {}
    for hit in searched.hits:
        if hit.pack not in listed:
            report.found.append(f"pack {hit.pack} of tier {hit.tier}, which no entry of the log lists")
        elif hit.kind != KIND_DICTIONARY:
            hits.setdefault(hit.name, set()).add(hit.pattern)
    in_rows = {pattern for patterns in hits.values() for pattern in patterns}
    report.found += [
        f"a dictionary of pack {hit.pack} of tier {hit.tier}"
        for hit in searched.hits
        if hit.kind == KIND_DICTIONARY and hit.pack in listed and hit.pattern not in in_rows
    ]
    if hits and not report.complete:
        report.found.append(f"{len(hits)} records, some of which no version may need: the erasure is not complete")
    elif hits:
        report.shared = holders(store, hits, needles, named=store.stored_name)
    report.found += [f"log entry {number}, which can never be changed" for number in searched.log_hits]
