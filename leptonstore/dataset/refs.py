"""Names: NAME, NAME@branch, NAME@tag, NAME@<commit digest or its first digits>.

A ref is called <kind>/<name>/<branch> in the log; kinds are dataset, checkpoint and model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from leptonstore import limits
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput, RefMissing
from leptonstore.format.commit import KINDS, parse_commit
from leptonstore.store import RefUpdate, Store

MAIN = "main"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class RefInfo:
    """A ref and what the log says of it. `time_s` is seconds since the epoch."""

    kind: str
    name: str
    branch: str
    commit: str
    sequence: int
    time_s: float
    author: str
    metrics: dict[str, Any]


def check_name(name: str, what: str = "name") -> str:
    """`name`, when it may be one. Raises BadInput."""
    if len(name) > limits.NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise BadInput(f"{what} {name!r}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def split_spec(spec: str) -> tuple[str, str]:
    """ "NAME@REF" -> (name, ref); the ref is "main" when there is none. Raises BadInput."""
    name, _, ref = spec.partition("@")
    return check_name(name, "dataset name"), check_name(ref, "version") if ref else MAIN


def ref_name(kind: str, name: str, branch: str) -> str:
    """The log's name of a ref."""
    if kind not in KINDS:
        raise BadInput(f"kind {kind!r}: one of {', '.join(KINDS)}")
    return f"{kind}/{check_name(name)}/{check_name(branch, 'branch')}"


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
                )
            )
    return out


def resolve_ref(store: Store, kind: str, spec: str) -> tuple[str, str, str]:
    """(name, ref, commit hex) of "NAME@REF". Raises RefMissing, naming what there is."""
    name, ref = split_spec(spec)
    found = store.state.refs.get(ref_name(kind, name, ref))
    if found is not None:
        return name, ref, found.commit
    known = list_refs(store, kind, name)
    if not known:
        there = sorted({info.name for info in list_refs(store, kind)})
        raise RefMissing(f"no {kind} {name!r} in {store.url}; there is: {', '.join(there) or 'none yet'}")
    if _HEX.fullmatch(ref):
        commits = sorted(
            {commit for info in known for commit in ancestry(store, info.commit) if commit.startswith(ref)}
        )
        if len(commits) == 1:
            return name, ref, commits[0]
        if commits:
            raise RefMissing(f"{spec} fits {len(commits)} versions; give more digits of the one that you mean")
    raise RefMissing(f"{kind} {name!r} has no version {ref!r}; its refs: {', '.join(info.branch for info in known)}")


def ancestry(store: Store, commit: str) -> list[str]:
    """The commit and all before it up to where history was forgotten, newest first, each once."""
    out, queue = [], [commit]
    while queue:
        current = queue.pop(0)
        if current in out:
            continue
        out.append(current)
        if current not in store.state.forgotten:
            queue += [parent.hex() for parent in parse_commit(store.get(parse_hex(current))).parents]
    return out


def delete_ref(store: Store, kind: str, name: str, branch: str) -> None:
    """Remove a ref; its bytes stay until garbage collection. Raises RefMissing or Conflict."""
    full = ref_name(kind, name, branch)
    record = store.state.refs.get(full)
    if record is None:
        raise RefMissing(f"no {full} in {store.url}")
    store.publish("delete-ref", lambda state: (RefUpdate(full, record.commit, None),))
