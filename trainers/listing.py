"""Which checkpoints there are, and what each takes. Needs no torch.

A run is a line of checkpoints; names of one of them beside step-<9 digits> are tags (`lepton tag --kind checkpoint`), which keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leptonstore.dataset import RefInfo, delete_ref, list_refs
from leptonstore.dataset.lineage import checkpoint_spec
from leptonstore.dataset.refs import resolve_ref
from leptonstore.errors import BadInput, RefMissing, listed
from leptonstore.store import Store
from leptonstore.store.usage import among
from trainers.checkpoint.saved import step_of


@dataclass(frozen=True)
class Listed:
    """A checkpoint under its own name. `stored` bytes, of which `own` are shared with no other of those that are listed with it."""

    run: str
    branch: str
    step: int | None
    commit: str
    time_s: float
    author: str
    metrics: dict[str, Any]
    tags: tuple[str, ...]
    stored: int
    own: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "tags": list(self.tags), "shared": self.stored - self.own}


def list_checkpoints(store: Store, run: str | None = None) -> list[Listed]:
    """All, or those of a run: by run, then the oldest first. Raises RefMissing for a run without any."""
    store.refresh()
    refs = list_refs(store, "checkpoint", run)
    if run is not None and not refs:
        runs = sorted({ref.name for ref in list_refs(store, "checkpoint")})
        raise RefMissing(f"there is no checkpoint of run {run!r}; runs with checkpoints: {listed(runs, 'none')}")
    sizes = among(store, [ref.commit for ref in refs])
    tags: dict[str, list[str]] = {}
    for ref in refs:
        if ref.tag:
            tags.setdefault(ref.commit, []).append(ref.branch)
    named = {ref.commit for ref in refs if not ref.tag}
    shown = [
        ref for ref in refs if not ref.tag or ref.commit not in named
    ]  # one whose step let go of it has its tag only
    return [
        Listed(
            run=ref.name,
            branch=ref.branch,
            step=step_of(ref.branch),
            commit=ref.commit,
            time_s=ref.time_s,
            author=ref.author,
            metrics=ref.metrics,
            tags=tuple(tags.get(ref.commit, ())),
            stored=sizes[ref.commit][0],
            own=sizes[ref.commit][1],
        )
        for ref in sorted(shown, key=lambda ref: (ref.name, ref.sequence))
    ]


def to_remove(
    store: Store, specs: Sequence[str], keep_last: int = 0
) -> tuple[list[RefInfo], list[tuple[RefInfo, str]]]:
    """(refs to remove, refs that stay and the tag that keeps each): of runs (RUN: all of them but the newest `keep_last`) and of single
    checkpoints (RUN@STEP). Raises RefMissing; BadInput for a tag."""
    store.refresh()
    chosen: dict[tuple[str, str], RefInfo] = {}
    for spec in specs:
        run, at, _ = spec.partition("@")
        refs = [ref for ref in list_refs(store, "checkpoint", run) if not ref.tag]
        if not at:
            if not refs:
                checkpoint_spec(store, spec)
            ordered = sorted(refs, key=lambda ref: ref.sequence)
            if keep_last:  # a branch of somebody's own is none of the newest, and stays
                ordered = [ref for ref in ordered if step_of(ref.branch) is not None][:-keep_last]
            found = ordered
        else:
            _, label, commit = resolve_ref(store, "checkpoint", checkpoint_spec(store, spec))
            if any(ref.tag and ref.branch == label for ref in list_refs(store, "checkpoint", run)):
                raise BadInput(f"{spec} is a tag: remove it with `lepton tag -d {spec} --kind checkpoint`")
            found = [ref for ref in refs if ref.branch == label or (ref.commit == commit and label not in _names(refs))]
        chosen.update({(ref.name, ref.branch): ref for ref in found})
    tags = {ref.commit: ref.branch for ref in list_refs(store, "checkpoint") if ref.tag}
    kept = [(ref, tags[ref.commit]) for ref in chosen.values() if ref.commit in tags]
    return [ref for ref in chosen.values() if ref.commit not in tags], kept


def remove(store: Store, refs: Sequence[RefInfo]) -> None:
    """Take the names away; `lepton gc` frees what nothing else needs. Raises Conflict."""
    for ref in refs:
        delete_ref(store, "checkpoint", ref.name, ref.branch)


def _names(refs: Sequence[RefInfo]) -> set[str]:
    return {ref.branch for ref in refs}
