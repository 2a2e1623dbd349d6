"""Names of versions, accepted wherever a version is asked for.

    NAME                          the head of branch main
    NAME@REF                      a branch, a tag, or the first six or more digits of a commit (all 64: also of a forgotten one)
    NAME@2026-11-01               what branch main pointed to when that day was over (today: now)
    NAME@2026-11-01T12:00         what it pointed to then, local time; an offset may follow (Z, +02:00)
    NAME@BRANCH@2026-11-01        the same of another branch or tag
    any of these and ~N or ^N     N versions back by first parents; the N-th parent (^ and ~ alone: the first)

A version that was erased is read as the one that stands for it (LogState.replaced), with a LeptonWarning.

A ref is called <kind>/<name>/<branch> in the log; kinds are dataset, checkpoint and model. Branches and tags share one space of names:
a tag is a ref that never moves, which its entry in the log says. `resolve_ref` is the one place that reads such names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from leptonstore import limits
from leptonstore.dataset.graph import ancestry, parents_of, read_commit
from leptonstore.dataset.reflog import commit_at, is_date
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput, LeptonWarning, RefMissing, listed
from leptonstore.format.commit import KINDS
from leptonstore.store import RefUpdate, Store
from leptonstore.store.log import RefRecord
from leptonstore.store.reach import protected

MAIN = "main"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]{6,64}")
_SPEC = re.compile(r"(?P<name>[^@~^]*)(@(?P<ref>[^@~^]*))?(@(?P<date>[^@~^]*))?(?P<steps>([~^][0-9]{0,9})*)")
_STEP = re.compile(r"([~^])([0-9]*)")


@dataclass(frozen=True)
class RefInfo:
    """A ref and what the log says of it. `time_s` is seconds since the epoch; a tag never moves."""

    kind: str
    name: str
    branch: str
    commit: str
    sequence: int
    time_s: float
    author: str
    metrics: dict[str, Any]
    tag: bool = False


def check_name(name: str, what: str = "name") -> str:
    """`name`, when it may be one. Raises BadInput."""
    if len(name) > limits.NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise BadInput(f"{what} {name!r}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def split_spec(spec: str) -> tuple[str, str]:
    """ "NAME@REF" -> (name, ref) of a ref itself; "main" when none is named. Raises BadInput.

    For what is written or removed: a place in history (~, ^, a date) is no ref.
    """
    name, _, ref = spec.partition("@")
    if set(spec) & set("~^") or "@" in ref or is_date(ref):
        raise BadInput(f"{spec!r} is a place in history; name the branch (NAME@BRANCH)")
    return check_name(name, "dataset name"), check_name(ref, "version") if ref else MAIN


def ref_name(kind: str, name: str, branch: str) -> str:
    """The log's name of a ref."""
    if kind not in KINDS:
        raise BadInput(f"kind {kind!r}: one of {', '.join(KINDS)}")
    return f"{kind}/{check_name(name)}/{check_name(branch, 'branch')}"


def writable_ref(store: Store, kind: str, name: str, branch: str) -> tuple[str, RefRecord | None]:
    """(the log's name of a branch, what it points to, None for a new one). Raises BadInput for a tag, which never moves,
    and for a new name that would hide a date or a commit."""
    full = ref_name(kind, name, branch)
    record = store.state.refs.get(full)
    if record is not None and record.tag:
        raise BadInput(
            f"{name}@{branch} is a tag, which never moves: write to a branch (`lepton branch {name}@BRANCH`)"
        )
    if record is None:
        check_new(branch)
    return full, record


def check_new(branch: str) -> None:
    """Raises BadInput when a branch or tag of this name would hide something else."""
    if is_date(branch) or re.fullmatch("[0-9a-f]{64}", branch):
        raise BadInput(f"{branch!r} reads as a date or a commit: choose another name for a branch or tag")


def list_refs(store: Store, kind: str | None = None, name: str | None = None) -> list[RefInfo]:
    """All refs of a kind and name, sorted by name and branch."""
    out = []
    for full, record in sorted(store.state.refs.items()):
        ref_kind, ref_of, branch = full.split("/", 2)
        if (kind is None or ref_kind == kind) and (name is None or ref_of == name):
            out.append(
                RefInfo(
                    ref_kind,
                    ref_of,
                    branch,
                    record.commit,
                    record.sequence,
                    record.time_ns / 1e9,
                    record.author,
                    record.metrics,
                    record.tag,
                )
            )
    return out


def resolve_ref(store: Store, kind: str, spec: str) -> tuple[str, str, str]:
    """(name, what follows the name, commit hex) of a version as above. What is not there is looked for once more after a refresh: another
    process may have published it. Raises BadInput, or RefMissing that names what there is."""
    try:
        return _resolved(store, kind, spec)
    except RefMissing:
        before = store.state.sequence
        store.refresh()
        if store.state.sequence == before:
            raise
    return _resolved(store, kind, spec)


def _resolved(store: Store, kind: str, spec: str) -> tuple[str, str, str]:
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise BadInput(f"{spec!r} is no version: write NAME, NAME@REF, NAME@REF~2 or NAME@2026-11-01")
    name, ref = check_name(parts["name"], "dataset name"), parts["ref"] or MAIN
    date, steps = parts["date"], parts["steps"]
    if date is None and is_date(ref) and ref_name_or_none(kind, name, ref) not in store.state.refs:
        ref, date = MAIN, ref
    known = list_refs(store, kind, name)
    if not known and date is None:
        there = sorted({info.name for info in list_refs(store, kind)})
        raise RefMissing(f"no {kind} {name!r} in {store.url}; there is: {listed(there)}{meant(store, name, there)}")
    commit = (
        _commit_of_ref(store, kind, spec, name, ref, known)
        if date is None
        else _commit_then(store, kind, name, ref, date)
    )
    if commit in store.state.replaced:
        standing = store.state.stands_for(commit)
        warnings.warn(
            f"version {commit[:12]} ({spec}) was erased; {standing[:12]} stands for it, without the rows",
            LeptonWarning,
            stacklevel=4,
        )
        commit = standing
    for kind_of_step, count in _STEP.findall(steps):
        commit = _step(store, spec, commit, kind_of_step, count)
    return name, spec[len(name) + 1 :] if "@" in spec and parts["ref"] else MAIN + steps, commit


def meant(store: Store, name: str, there: Sequence[str]) -> str:
    """What a name that is not there may stand for: one that is nearly the same, or something of another kind."""
    near = get_close_matches(name, there, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    kinds = {info.kind for info in list_refs(store, None, name)}
    told = {
        "dataset": "a dataset",
        "model": "a model (--kind model)",
        "checkpoint": f"a run, whose checkpoints are checkpoint/{name}",
    }
    return f"; {name!r} is {' and '.join(told[kind] for kind in sorted(kinds))}" if kinds else ""


def ref_name_or_none(kind: str, name: str, branch: str) -> str | None:
    """`ref_name`, None for what can be no ref (a time of day has a colon)."""
    return ref_name(kind, name, branch) if _NAME.fullmatch(branch) else None


def _commit_of_ref(store: Store, kind: str, spec: str, name: str, ref: str, known: list[RefInfo]) -> str:
    found = store.state.refs.get(ref_name(kind, name, check_name(ref, "version")))
    if found is not None:
        return found.commit
    if _HEX.fullmatch(ref):
        commits = sorted(
            {commit for info in known for commit in ancestry(store, info.commit) if commit.startswith(ref)}
        ) or sorted(commit for commit in store.state.replaced if commit.startswith(ref))
        if len(commits) == 1:
            return commits[0]
        if commits:
            raise RefMissing(f"{spec} fits {len(commits)} versions; give more digits of the one that you mean")
        if len(ref) == 64 and store.has(parse_hex(ref)) and read_commit(store, ref).kind == kind:
            return ref  # nothing leads to it any more: a branch that is made from it saves it
    raise RefMissing(f"{kind} {name!r} has no version {ref!r}; its refs: {', '.join(info.branch for info in known)}")


def _commit_then(store: Store, kind: str, name: str, ref: str, date: str) -> str:
    full = ref_name(kind, name, check_name(ref, "branch"))
    try:
        commit = commit_at(store, full, date)
    except RefMissing as error:
        known = ", ".join(info.branch for info in list_refs(store, kind, name))
        raise RefMissing(f"{error}; refs of {kind} {name!r} now: {known or 'none'}") from None
    state = store.state
    standing = state.stands_for(commit)
    if not protected(store, {record.commit for record in state.refs.values()}, state.forgotten, {standing}):
        raise RefMissing(
            f"what {full} was at {date} ({commit}) was forgotten: no branch or tag leads to it. As long as gc has not taken it, its whole "
            "digest names it"
        )
    return commit


def _step(store: Store, spec: str, commit: str, kind: str, count: str) -> str:
    """Some parents back (~), or to one of several parents (^)."""
    number = int(count) if count else 1
    if kind == "^" and number == 0:
        return commit
    for _ in range(number if kind == "~" else 1):
        parents = parents_of(store, commit)
        wanted = number - 1 if kind == "^" else 0
        if len(parents) <= wanted:
            _raise_at_end(store, spec, commit, wanted, len(parents))
        commit = parents[wanted]
    return commit


def _raise_at_end(store: Store, spec: str, commit: str, wanted: int, parents: int) -> NoReturn:
    if commit in store.state.forgotten:
        raise RefMissing(f"{spec}: the history before version {commit[:12]} was forgotten")
    if parents:
        raise RefMissing(f"{spec}: version {commit[:12]} has {parents} parent{'s' * (parents > 1)}, no {wanted + 1}.")
    raise RefMissing(f"{spec} goes back too far: version {commit[:12]} is the first")


def delete_ref(store: Store, kind: str, name: str, branch: str) -> None:
    """Remove a ref; its bytes stay until garbage collection. Raises RefMissing or Conflict."""
    full = ref_name(kind, name, branch)
    record = store.state.refs.get(full)
    if record is None:
        raise RefMissing(f"no {full} in {store.url}; there is: {listed(sorted(store.state.refs))}")
    store.publish("delete-ref", lambda state: (RefUpdate(full, record.commit, None),))
