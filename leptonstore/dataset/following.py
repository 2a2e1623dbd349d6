"""A dataset that grows while somebody reads it: the newest version of its branch, and whether it goes on from what was read.

Descent is told by the parents that commits name, also where history was forgotten, as far as the commits themselves are still there.
"""

from __future__ import annotations

from collections import deque

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.graph import read_commit
from leptonstore.dataset.refs import list_refs, ref_name
from leptonstore.errors import BadInput, RefMissing, listed
from leptonstore.store import Store


def branch_of(ds: Dataset, branch: str | None = None) -> str:
    """The branch to follow: the one given, or the one that `ds` was opened by. Raises BadInput when that is none."""
    wanted = ds.ref if branch is None else branch
    branches = [info.branch for info in list_refs(ds.store, "dataset", ds.name) if not info.tag]
    if wanted in branches:
        return wanted
    raise BadInput(
        f"{ds.name}@{wanted} is no branch, so it never grows; branches of {ds.name!r}: {listed(branches, 'none')}"
    )


def newest(ds: Dataset, branch: str) -> str:
    """The commit that `branch` is at now, this version or one that descends from it.

    Raises RefMissing when the branch is gone, BadInput when it leads to another line of versions.
    """
    ds.store.refresh()
    record = ds.store.state.refs.get(ref_name("dataset", ds.name, branch))
    if record is None:
        raise RefMissing(f"{ds.name}@{branch} is gone, which was followed from version {ds.commit[:12]}")
    require_descent(ds, ds.commit, record.commit, f"{ds.name}@{branch} is")
    return record.commit


def version(ds: Dataset, commit: str) -> Dataset:
    """Another version of the same dataset, read as this one is (through its hot cache). Raises RefMissing when it is not kept."""
    store = ds.store
    store.refresh()
    if commit in store.state.replaced:
        raise RefMissing(erased(ds, commit))
    if read_commit(store, commit).kind != "dataset":
        raise RefMissing(f"{commit[:12]} is no version of a dataset")
    made = ds.at(ds.ref, commit)
    return made if ds.cache is None else made.cached(ds.cache.path, ds.cache.budget_bytes)


def require_descent(ds: Dataset, earlier: str, later: str, what: str) -> None:
    """Raises BadInput unless `later` is `earlier` or came after it. what: "NAME@BRANCH is", for the message."""
    if earlier in ds.store.state.replaced:
        raise BadInput(erased(ds, earlier))
    if not descends(ds.store, earlier, later):
        raise BadInput(
            f"{what} at version {later[:12]}, which does not go on from {earlier[:12]}, as far as history is kept: "
            "the branch was reset, history was forgotten, or that is another dataset"
        )


def erased(ds: Dataset, commit: str) -> str:
    """What to say of a version that was erased."""
    standing = ds.store.state.stands_for(commit)
    return f"version {commit[:12]} of {ds.name!r} was erased; {standing[:12]} stands for it, without the rows"


def descends(store: Store, earlier: str, later: str) -> bool:
    """Whether `later` is `earlier` or came after it."""
    met, queue = {later}, deque([later])
    while queue:
        current = queue.popleft()
        if current == earlier:
            return True
        try:
            parents = [parent.hex() for parent in read_commit(store, current).parents]
        except RefMissing:  # forgotten and collected
            continue
        queue.extend(parent for parent in parents if parent not in met)
        met.update(parents)
    return False


def kept_rows(old: Dataset, new: Dataset) -> list[tuple[int, int, int]]:
    """Rows that both versions have in equal row groups: (first in `old`, first in `new`, how many), ascending in `new`.

    Reads internal nodes of both trees, no row group: 60 bytes each.
    """
    at = {digest: int(start) for start, digest in zip(old.leaves.starts, old.leaves.digests, strict=False)}
    out: list[tuple[int, int, int]] = []
    starts = new.leaves.starts.tolist()
    for digest, start, end in zip(new.leaves.digests, starts, starts[1:], strict=False):
        first = at.get(digest)
        if first is None:
            continue
        if out and out[-1][1] + out[-1][2] == start and out[-1][0] + out[-1][2] == first:
            out[-1] = (out[-1][0], out[-1][1], out[-1][2] + end - start)
        else:
            out.append((first, start, end - start))
    return out
