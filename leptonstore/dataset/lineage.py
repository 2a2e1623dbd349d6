"""Where something comes from: the chain from a model, a checkpoint or a version back to the files that were imported.

    model -> checkpoint (its configuration, code, environment, order) -> version of the data -> its parents … -> source files

Each link is a commit. What it was made from stands in its parents and in its lineage, where a commit is named by an object with the key
"commit", or by one of the keys that operations on datasets use ("parent", "version", "theirs"). A commit that is named and not in the
store (forgotten, removed by a retention, never brought here) is a link too, which says so: lineage is a weak reference, on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from leptonstore.dataset.graph import read_commit
from leptonstore.dataset.reflog import Published, publications
from leptonstore.dataset.refs import list_refs, resolve_ref
from leptonstore.errors import LeptonError, RefMissing, listed
from leptonstore.format.commit import KINDS, Commit
from leptonstore.store import Store

LINKS_MAX = 200  # by default: what a person reads; `lepton log` has the whole history of a dataset
_DEPTH_MAX = 8  # of objects in a lineage that are searched for commits: operations nest two or three
_DIGEST = re.compile("[0-9a-f]{64}")
_STEP = re.compile(r"\d{1,9}")
_KEYS = {"parent": "parent", "version": "restored from", "theirs": "merged"}


@dataclass(frozen=True)
class Origin:
    """What something was made from. role: "checkpoint", "data.training", "parent" … kind: what the commit should be."""

    role: str
    kind: str
    name: str
    commit: str

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))


@dataclass(frozen=True)
class Link:
    """One commit of the chain. missing: why it cannot be read; then only kind, name and digest are known.

    origins: what it was made from, the nearest first. refs: names that lead to it. metrics: what stands beside it in the log.
    """

    kind: str
    name: str
    digest: str
    commit: Commit | None = None
    origins: tuple[Origin, ...] = ()
    refs: tuple[str, ...] = ()
    published: Published | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    note: str = ""

    @property
    def lineage(self) -> dict[str, Any]:
        """As the commit has it."""
        return self.commit.lineage if self.commit else {}

    @property
    def operation(self) -> str:
        """ "deploy", "train", "prepare", "clean", "import of idx" …"""
        told = self.lineage
        if isinstance(told.get("operation"), str):
            return str(told["operation"])
        return f"import of {told['format']}" if isinstance(told.get("format"), str) else "written"

    @property
    def files(self) -> list[dict[str, Any]]:
        """The source files that its lineage names: name, bytes, and the digest where the import took it."""
        return list(_files_of(self.lineage))

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        told, found = self.published, self.commit
        return {
            "kind": self.kind,
            "name": self.name,
            "commit": self.digest,
            "missing": self.missing or None,
            "note": self.note or None,
            "operation": None if found is None else self.operation,
            "message": None if found is None else found.message,
            "rows": None if found is None else found.rows,
            "root": None if found is None or found.root is None else found.root.hex(),
            "refs": list(self.refs),
            "published": None if told is None else {"time_s": told.time_s, "author": told.author, "host": told.host},
            "metrics": dict(self.metrics),
            "from": [origin.to_json() for origin in self.origins],
            "files": self.files,
            "lineage": self.lineage,
        }


def find(store: Store, spec: str, kind: str | None = None) -> tuple[str, str, str]:
    """(kind, NAME@REF, commit) of a model, a checkpoint or a dataset; of that kind, or the first of these that there is.

    A checkpoint is RUN (its newest), RUN@STEP, or RUN@REF. "checkpoint/RUN", "model/NAME", "dataset/NAME" say what it is.
    Raises BadInput or RefMissing.
    """
    before, slash, rest = spec.partition("/")
    if slash and before in KINDS:
        kind, spec = before, rest
    name = re.split("[@~^]", spec, maxsplit=1)[0]
    for one in (kind,) if kind is not None else ("model", "checkpoint", "dataset"):
        if kind is None and not list_refs(store, one, name):
            continue
        if one == "checkpoint":
            spec = checkpoint_spec(store, spec)
        found, label, commit = resolve_ref(store, one, spec)
        return one, f"{found}@{label}", commit
    there = sorted({f"{info.kind} {info.name}" for info in list_refs(store)})
    raise RefMissing(
        f"no {', '.join(reversed(KINDS[1:]))} or dataset {name!r} in {store.url}; there is: {listed(there)}"
    )


def checkpoint_spec(store: Store, spec: str) -> str:
    """RUN -> RUN@ its newest checkpoint, RUN@120 -> RUN@step-000000120, also after "checkpoint/"; all else as it is. Raises RefMissing."""
    spec = spec.removeprefix("checkpoint/")
    run, at, ref = spec.partition("@")
    refs = list_refs(store, "checkpoint", run)
    if not refs:
        runs = sorted({info.name for info in list_refs(store, "checkpoint")})
        raise RefMissing(f"there is no checkpoint of run {run!r}; runs with checkpoints: {listed(runs, 'none')}")
    if not at:
        newest = max(refs, key=lambda info: (not info.tag, info.sequence))
        return f"{run}@{newest.branch}"
    return f"{run}@step-{int(ref):09d}" if _STEP.fullmatch(ref) else spec


def lineage(store: Store, spec: str, kind: str | None = None, limit: int = LINKS_MAX) -> tuple[list[Link], int]:
    """(the chain of `spec`, how many more commits are named and were not followed). What it was made from comes after each link.

    Raises as `find` does: a link that is missing behind the first is told in the chain.
    """
    found, name, digest = find(store, spec, kind)
    published, refs = publications(store), _refs_of(store)
    waiting = [Origin("", found, name, digest)]
    links: dict[str, Link] = {}
    while waiting and len(links) < limit:
        origin = waiting.pop()
        if origin.commit in links:
            continue
        link = _link(store, origin, published, refs)
        links[origin.commit] = link
        waiting += reversed([one for one in link.origins if one.commit not in links])
    return list(links.values()), len({one.commit for one in waiting} - set(links))


def _link(
    store: Store, origin: Origin, published: Mapping[str, Published], refs: Mapping[str, list[tuple[str, Any]]]
) -> Link:
    digest, note = origin.commit, ""
    standing = store.state.stands_for(digest)
    if standing != digest:
        note = f"{digest[:12]} was erased; {standing[:12]} stands for it, without the rows"
        digest = standing
    names = tuple(name for name, _ in refs.get(digest, ()))
    metrics: Mapping[str, Any] = next((told for _, told in refs.get(digest, ()) if told), {})
    try:
        commit = read_commit(store, digest)
    except RefMissing:
        return Link(
            origin.kind, origin.name, digest, missing="not in this store: forgotten, removed, or never brought here"
        )
    except LeptonError as error:
        return Link(origin.kind, origin.name, digest, missing=str(error))
    name = origin.name if "@" in origin.name or not names else next(iter(names))
    cut = digest in store.state.forgotten
    if cut:
        note = "; ".join(filter(None, [note, "the history before it was forgotten"]))
    origins = tuple(_origins(commit, name.partition("@")[0]))
    return Link(commit.kind, name, digest, commit, origins, names, published.get(digest), metrics, note=note)


def _refs_of(store: Store) -> dict[str, list[tuple[str, Any]]]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for info in list_refs(store):
        found.setdefault(info.commit, []).append((f"{info.name}@{info.branch}", info.metrics))
    return found


def _origins(commit: Commit, name: str) -> Iterator[Origin]:
    """What a commit was made from, each once: what its lineage names, then its parents."""
    seen: set[str] = set()
    named = list(_named(commit.lineage, "", name))
    parents = [Origin("parent", commit.kind, name, parent.hex()) for parent in commit.parents]
    for origin in [*named, *parents]:
        if origin.commit not in seen:
            seen.add(origin.commit)
            yield origin


def _named(tree: Any, path: str, name: str, depth: int = 0) -> Iterator[Origin]:
    if depth > _DEPTH_MAX or not isinstance(tree, Mapping):
        return
    commit = tree.get("commit")
    if isinstance(commit, str) and _DIGEST.fullmatch(commit) and path:
        yield Origin(path, *_name_of(tree, path), commit)
    for key, value in tree.items():
        if key in _KEYS and not path and isinstance(value, str) and _DIGEST.fullmatch(value):
            yield Origin(_KEYS[key], "dataset", name, value)
        elif isinstance(value, Mapping):
            yield from _named(value, f"{path}.{key}" if path else str(key), name, depth + 1)
        elif isinstance(value, list):
            for one in value:
                yield from _named(one, f"{path}.{key}" if path else str(key), name, depth + 1)


def _name_of(tree: Mapping[str, Any], path: str) -> tuple[str, str]:
    """(kind, name) of an object that names a commit: {"run", "branch"} is a checkpoint, {"name"} what its role says."""
    if isinstance(tree.get("run"), str):
        return "checkpoint", f"{tree['run']}@{tree.get('branch', '')}".rstrip("@")
    told = next((tree[key] for key in ("name", "dataset", "source") if key in tree), "")
    label, role = told if isinstance(told, str) else "", path.rpartition(".")[2]
    kind, slash, rest = label.partition("/")
    if slash and kind in KINDS:  # as `lepton predict checkpoint/RUN` names it
        return kind, rest
    return role if role in KINDS else "dataset", label


def _files_of(tree: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Every {"name", "bytes", …} in a list "files", and a single one under "file"."""
    if depth > _DEPTH_MAX or not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        listed_files = value if key == "files" and isinstance(value, list) else [value] if key == "file" else None
        if listed_files is not None:
            yield from (dict(one) for one in listed_files if isinstance(one, Mapping) and "name" in one)
        else:
            yield from _files_of(value, depth + 1)
