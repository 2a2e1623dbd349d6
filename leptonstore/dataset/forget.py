"""Forget the history of a version line before a point: the boundary at which garbage collection stops to follow parents.

The point is a property of commits: what lies before them is followed from no ref. So history is never cut at a version that another ref
leads to: all that came before that version stays, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from leptonstore import limits
from leptonstore.dataset.graph import ancestry, parents_of
from leptonstore.dataset.reflog import publications
from leptonstore.dataset.refs import ref_name_or_none, resolve_ref
from leptonstore.errors import BadInput, Conflict
from leptonstore.store import Store
from leptonstore.store.gc import forget


class Forgotten(NamedTuple):
    """Versions of a line that were kept, and that were forgotten. held: refs (KIND/NAME/BRANCH) whose history begins before what was to
    be kept: their versions stay."""

    kept: int
    forgotten: int
    held: tuple[str, ...]


def forget_all_but(store: Store, kind: str, spec: str, keep: int) -> Forgotten:
    """Keep the newest `keep` versions of `spec`. Raises BadInput, RefMissing or Conflict."""
    if keep < 1:
        raise BadInput(f"cannot keep {keep} versions: the newest one always stays (--all removes the whole line)")
    return _forget(store, kind, spec, lambda line: line[:keep])


def forget_before(store: Store, kind: str, spec: str, time_s: float) -> Forgotten:
    """As `forget_all_but`: keep what of `spec` was published at `time_s` (seconds since the epoch) or later, and the newest."""
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


def _forget(store: Store, kind: str, spec: str, choose: Callable[[list[str]], list[str]]) -> Forgotten:
    for _ in range(limits.LOG_APPEND_TRIES_MAX):
        name, ref, head = resolve_ref(store, kind, spec)
        own = ref_name_or_none(kind, name, re.split("[~^]", ref)[0])
        heads = {ref: record.commit for ref, record in store.state.refs.items()}
        line = ancestry(store, head)
        kept = set(choose(line))
        led = _led_to(store, {ref: commit for ref, commit in heads.items() if ref != own})
        held = set()
        while cut := {commit for commit in _boundary(store, line, kept) if commit in led}:
            held |= {led[commit] for commit in cut}
            kept |= {older for commit in cut for older in ancestry(store, commit)}
        if forget(store, _boundary(store, line, kept), heads):
            left = len(ancestry(store, head))
            return Forgotten(left, len(line) - left, tuple(sorted(held)))
    raise Conflict(
        f"{store.url} is too busy: its refs moved {limits.LOG_APPEND_TRIES_MAX} times meanwhile; run it again"
    )


def _led_to(store: Store, heads: Mapping[str, str]) -> dict[str, str]:
    """The commits that refs lead to, each with one of these refs."""
    out: dict[str, str] = {}
    for ref, head in sorted(heads.items()):
        queue = [head]
        while queue:
            commit = queue.pop()
            if commit not in out:
                out[commit] = ref
                queue.extend(parents_of(store, commit))
    return out


def _boundary(store: Store, line: list[str], kept: set[str]) -> set[str]:
    """The commits whose parents are followed no more, so that all of `kept` stays.

    A merge of which one parent is kept and one is not keeps both: then the boundary lies behind the other one.
    """
    out = set()
    for commit in line:
        if commit not in kept:
            continue
        parents = set(parents_of(store, commit))  # none where history was forgotten already
        if parents and not parents & kept:
            out.add(commit)
        elif parents - kept:
            out |= parents - kept
    return out
