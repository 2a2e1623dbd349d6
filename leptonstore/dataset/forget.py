"""Forget the history of a version line before a point: the boundary at which garbage collection stops to follow parents.

The point is a property of commits: what lies before them is followed from no ref. A version that is itself the head of a ref stays, with
its own history.
"""

from __future__ import annotations

from collections.abc import Callable

from leptonstore.dataset.graph import ancestry
from leptonstore.dataset.reflog import publications
from leptonstore.dataset.refs import resolve_ref
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput
from leptonstore.format.commit import parse_commit
from leptonstore.store import Store
from leptonstore.store.gc import forget


def forget_all_but(store: Store, kind: str, spec: str, keep: int) -> tuple[int, int]:
    """Keep the newest `keep` versions of `spec`: (versions kept, versions forgotten). Raises BadInput or RefMissing."""
    if keep < 1:
        raise BadInput(f"cannot keep {keep} versions: the newest one always stays (--all removes the whole line)")
    return _forget(store, kind, spec, lambda line: line[:keep])


def forget_before(store: Store, kind: str, spec: str, time_s: float) -> tuple[int, int]:
    """Keep the versions of `spec` that were published at `time_s` (seconds since the epoch) or later, and the newest."""
    published = publications(store)

    def choose(line: list[str]) -> list[str]:
        # A version that no entry published by itself came with the next one that has a time.
        kept: list[str] = []
        newer = time_s
        for commit in line:
            newer = published[commit].time_s if commit in published else newer
            if newer >= time_s or not kept:
                kept.append(commit)
        return kept

    return _forget(store, kind, spec, choose)


def _forget(store: Store, kind: str, spec: str, choose: Callable[[list[str]], list[str]]) -> tuple[int, int]:
    _, _, head = resolve_ref(store, kind, spec)
    line = ancestry(store, head)
    kept = set(choose(line))
    forget(store, _boundary(store, line, kept))
    left = len(ancestry(store, head))
    return left, len(line) - left


def _boundary(store: Store, line: list[str], kept: set[str]) -> set[str]:
    """The commits whose parents are followed no more, so that all of `kept` stays.

    A merge of which one parent is kept and one is not keeps both: then the boundary lies behind the other one.
    """
    out = set()
    for commit in line:
        if commit not in kept:
            continue
        parents = {parent.hex() for parent in parse_commit(store.get(parse_hex(commit))).parents}
        if parents and not parents & kept:
            out.add(commit)
        elif parents - kept:
            out |= parents - kept
    return out
