"""The graph of commits: what came before a version, and where two lines of versions parted.

History ends where it was forgotten (dataset/forget.py): the parents of such a commit are named, but no longer kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput, ChunkMissing, RefMissing
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.store import Store


def read_commit(store: Store, commit: str) -> Commit:
    """The commit of this digest (hex). Raises RefMissing when the store does not have it, ChunkCorrupt or FormatDamaged."""
    try:
        return parse_commit(store.get(parse_hex(commit)))
    except ChunkMissing:
        raise RefMissing(
            f"version {commit[:12]} is not in {store.url}: it was forgotten, or never came here; `lepton log` shows what is left"
        ) from None


def parents_of(store: Store, commit: str) -> tuple[str, ...]:
    """The versions that came right before, the line's own first; none where history was forgotten."""
    if commit in store.state.forgotten:
        return ()
    return tuple(parent.hex() for parent in read_commit(store, commit).parents)


def ancestry(store: Store, commit: str) -> list[str]:
    """The commit and all before it up to where history was forgotten, newest first, each once."""
    out: dict[str, None] = {}
    queue = deque([commit])
    while queue:
        current = queue.popleft()
        if current not in out:
            out[current] = None
            queue.extend(parents_of(store, current))
    return list(out)


def in_order(store: Store, heads: Iterable[str]) -> list[str]:
    """All versions that `heads` lead to, none before one that came after it; one line of them at a time where lines parted."""
    parents = {commit: parents_of(store, commit) for head in heads for commit in ancestry(store, head)}
    children = dict.fromkeys(parents, 0)
    for above in parents.values():
        for parent in above:
            children[parent] += 1
    ready = [head for head in reversed(list(heads)) if not children[head]]
    out: dict[str, None] = {}
    while ready:
        current = ready.pop()
        if current in out:
            continue
        out[current] = None
        for parent in parents[current]:  # what was merged stands last, so it is shown first, next to its merge
            children[parent] -= 1
            if not children[parent]:
                ready.append(parent)
    return list(out)


def is_before(store: Store, earlier: str, later: str) -> bool:
    """Whether `earlier` is `later`, or came before it, as far as history is kept."""
    met, queue = set(), deque([later])
    while queue:
        current = queue.popleft()
        if current == earlier:
            return True
        if current not in met:
            met.add(current)
            queue.extend(parents_of(store, current))
    return False


def merge_bases(store: Store, one: str, other: str) -> list[str]:
    """The versions that both came from, without those that came before another of them. None when nothing is shared."""
    shared = set(ancestry(store, one))
    common = [commit for commit in ancestry(store, other) if commit in shared]
    older: set[str] = set()
    for commit in common:
        if commit not in older:
            older.update(ancestry(store, commit)[1:])
    return [commit for commit in common if commit not in older]


def merge_base(store: Store, ours: str, theirs: str) -> str:
    """The one version that two others parted from. Raises BadInput: they share none, or several."""
    found = merge_bases(store, ours, theirs)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(commit[:12] for commit in found)
        raise BadInput(
            f"{ours[:12]} and {theirs[:12]} parted from several versions ({names}): they were merged both ways; "
            "choose the one to compare with (--base)"
        )
    ends = [commit for head in (ours, theirs) for commit in ancestry(store, head) if commit in store.state.forgotten]
    hint = (
        f"history before {ends[0][:12]} was forgotten, and with it maybe what they share; name a version of both (--base)"
        if ends
        else "import or restore one of them on a branch of the other"
    )
    raise BadInput(f"{ours[:12]} and {theirs[:12]} have unrelated histories: {hint}")
