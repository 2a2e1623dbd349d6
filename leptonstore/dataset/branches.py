"""Branches and tags: other names that lead to versions. Making one writes a line of the log; no row is copied."""

from __future__ import annotations

from leptonstore.dataset.graph import ancestry, read_commit
from leptonstore.dataset.refs import RefInfo, check_new, delete_ref, list_refs, ref_name
from leptonstore.errors import BadInput, RefMissing, listed
from leptonstore.store import RefUpdate, Store


def create_ref(store: Store, kind: str, name: str, branch: str, commit: str, tag: bool = False) -> RefInfo:
    """A new branch, or a tag, which never moves, at version `commit` (hex). Asking for what is there already changes nothing.

    Raises BadInput (the name is taken, or is none), RefMissing (no such version), Conflict, CommitExpired or StoreFull.
    """
    full = ref_name(kind, name, branch)
    check_new(branch)
    store.refresh()
    found = read_commit(store, commit)
    if found.kind != kind:
        raise BadInput(f"version {commit[:12]} is a {found.kind}, no {kind}")
    record = store.state.refs.get(full)
    if record is None:
        update = RefUpdate(full, None, commit, tag=tag)
        store.publish("tag" if tag else "branch", lambda state: (update,))
    elif (record.commit, record.tag) != (commit, tag):
        what = "tag" if record.tag else "branch"
        raise BadInput(
            f"{name}@{branch} is a {what} already, at {record.commit[:12]}: choose another name, or remove it first"
        )
    return next(info for info in list_refs(store, kind, name) if info.branch == branch)


def remove_ref(store: Store, kind: str, name: str, branch: str, tag: bool, force: bool = False) -> list[str]:
    """Remove a tag or a branch; returns the versions that no ref leads to any more (gc takes them).

    Raises RefMissing, or BadInput: it is the other of the two, or (without `force`) removing a branch would lose versions.
    """
    store.refresh()
    record = store.state.refs.get(ref_name(kind, name, branch))
    if record is None:
        known = [info.branch for info in list_refs(store, kind, name) if info.tag == tag]
        raise RefMissing(
            f"{kind} {name!r} has no {'tag' if tag else 'branch'} {branch!r}; there is: {listed(known, 'none')}"
        )
    if record.tag != tag:
        other = "tag" if record.tag else "branch"
        raise BadInput(f"{name}@{branch} is a {other}: remove it with `lepton {other} -d {name}@{branch}`")
    others = {info.commit for info in list_refs(store) if (info.kind, info.name, info.branch) != (kind, name, branch)}
    kept = {commit for head in others for commit in ancestry(store, head)}
    lost = [commit for commit in ancestry(store, record.commit) if commit not in kept]
    if lost and not tag and not force:
        raise BadInput(
            f"{name}@{branch} has {len(lost)} versions that no other branch or tag leads to ({lost[0][:12]} is the newest): "
            "merge or tag them, or remove it with --force"
        )
    delete_ref(store, kind, name, branch)
    return lost
