"""lepton:// for fsspec: pandas, pyarrow, DuckDB and whatever else opens fsspec URLs read a version in place.

    lepton://<store>/<NAME@REF>/<path>                      lepton:///data/store/mnist@main/data
                                                            lepton://s3://bucket/store/mnist@main/data
    lepton://<host>:<port>/<name>/<NAME@REF>/<path>         behind a daemon; lepton+tls://… over TLS (the port always stands there)
    lepton://<NAME@REF>/<path>, with store="…" among the storage options; then NAME alone is NAME@main

The dataset is the first name with an "@" in it. The store is a path or a URL; in it, "%" and "@" are written %25 and %40, and any other
character may be. REF is whatever names a version: a branch, a tag, digits of a commit. `checkpoint:NAME@REF` and `model:NAME@REF` are the
other kinds. Below it stands what mounted.py says: Parquet for tables, files for tables of files.

A branch is looked up anew by each call, so that a long-lived program sees new versions; the file that is open stays as it is, and the
names of parts say of which version they are. Name a commit where several calls must see one version. Nothing can be written.
Environment variables are not read (the command line alone does that): a path without a store is refused.
"""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from leptonstore import limits
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.mounted import Entry, Mounted, commit_of_part, mount
from leptonstore.dataset.refs import list_refs, resolve_ref, split_spec
from leptonstore.errors import BadInput, NotFound, NotPermitted, StoreMissing
from leptonstore.store import Store
from leptonstore.store.wire.address import SCHEME, is_served

_KINDS = ("dataset", "checkpoint", "model")
# What a path begins with that goes on a daemon's URL: hosts with their ports. A path without a ":7400" in it is never taken for one.
_HOSTS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}(?:,[^/]*)?/")


class LeptonFileSystem(AbstractFileSystem):
    """Read-only. Raises FileNotFoundError for what is not there, NotPermitted for writes, BadInput without a store. Any thread.

    store: where the store is, for paths that begin with a dataset. unlock: what opens an encrypted one, as in Store.open.
    """

    protocol = "lepton"  # of lepton+tls://… nothing is stripped: the path is the daemon's whole URL, so that TLS is never left out
    root_marker = ""

    def __init__(self, store: str | None = None, unlock: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self._store_url, self._unlock = None if store is None else str(store), unlock
        self._stores: dict[str, Store] = {}
        self._mounts: Kept[Mounted] = Kept(limits.MOUNTS_MAX)
        self._lock_stores = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """As fsspec's, but all of it where a daemon's URL stands in ours: names that are handed out begin as those that are asked for."""
        stripped = super()._strip_protocol(path)
        while isinstance(stripped, str) and stripped.startswith("lepton://"):
            stripped = super()._strip_protocol(stripped)
        return stripped

    # -- paths ---------------------------------------------------------------------------------------------------

    def _split(self, path: str) -> tuple[str, str, str]:
        """(store, KIND:NAME@REF or "", path below it)."""
        path = self._strip_protocol(path)
        if self._store_url is not None:
            spec, _, inner = path.partition("/")
            return self._store_url, spec, inner
        names = path.split("/")
        at = next((at for at, name in enumerate(names) if "@" in name), len(names))
        store = unquote("/".join(names[:at]))
        if _HOSTS.match(store):
            store = f"{SCHEME}://{store}"
        if not store:
            raise BadInput(
                f"lepton://{path} names no store: write lepton://STORE/NAME@REF, or give storage_options={{'store': …}}"
            )
        return store, "/".join(names[at : at + 1]), "/".join(names[at + 1 :])

    def _opened(self, url: str) -> Store:
        with self._lock_stores:
            if url not in self._stores:
                try:
                    self._stores[url] = Store.open(url, unlock=self._unlock)
                except BadInput as error:
                    if not is_served(url):
                        raise
                    raise StoreMissing(
                        str(error), url
                    ) from None  # a NAME without its @REF looks like a part of the store's
            return self._stores[url]

    def _resolved(self, url: str, spec: str, inner: str) -> tuple[Store, str, tuple[str, str, str]]:
        """(store, kind, (name, ref, commit)) of the version that a path leads into, looked up now."""
        store = self._opened(url)
        store.refresh()
        kind, _, name = spec.rpartition(":")
        if kind and kind not in _KINDS:
            raise BadInput(f"{spec!r} names no version: the kinds are {', '.join(_KINDS)}")
        kind = kind or "dataset"
        resolved = resolve_ref(store, kind, name)
        digits = commit_of_part(inner)
        if digits is not None and not resolved[2].startswith(digits):
            resolved = resolve_ref(store, kind, f"{split_spec(name)[0]}@{digits}")
        return store, kind, resolved

    def _found(self, path: str) -> tuple[Mounted, str, Entry]:
        """(version, path below it, what stands there). Raises FileNotFoundError."""
        url, spec, inner = self._split(path)
        try:
            store, kind, resolved = self._resolved(url, spec, inner)
        except NotFound as error:
            raise FileNotFoundError(str(error)) from error
        key = (url, kind, *resolved)
        mounted = self._mounts.get(key) or self._mounts.add(key, mount(Dataset(store, *resolved)), 1)
        entry = mounted.entry(inner)
        if entry is None:
            raise FileNotFoundError(f"{spec} has no {inner!r}")
        return mounted, inner, entry

    # -- what fsspec asks for ----------------------------------------------------------------------------------------

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Name, size and type of a file or directory."""
        path = self._strip_protocol(path)
        url, spec, _ = self._split(path)
        if not spec:
            try:
                self._listed(url)
            except FileNotFoundError as error:
                # pyarrow drops what a FileNotFoundError says, and the usual cause is a NAME without its @REF.
                raise OSError(
                    f"lepton://{path} names no version: write lepton://STORE/NAME@REF, such as {path}@main ({error})"
                ) from error
            return {"name": path, "size": 0, "type": "directory"}
        return _info(path, self._found(path)[2])

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What a store, a version or a directory in it holds; of a file, the file itself."""
        path = self._strip_protocol(path)
        url, spec, _ = self._split(path)
        if not spec:
            prefix = f"{path}/" if path else ""
            out = [{"name": prefix + name, "size": 0, "type": "directory"} for name in self._listed(url)]
        else:
            mounted, inner, entry = self._found(path)
            out = [_info(path, entry)]
            if not entry.is_file:
                out = [_info(f"{path}/{below.name}", below) for below in mounted.entries(inner)]
        return out if detail else [one["name"] for one in out]

    def _listed(self, url: str) -> list[str]:
        """The versions that refs of a store lead to."""
        try:
            store = self._opened(url)
        except NotFound as error:
            raise FileNotFoundError(str(error)) from error
        store.refresh()
        refs = sorted(list_refs(store), key=lambda ref: (_KINDS.index(ref.kind), ref.name, ref.branch))
        return [f"{'' if ref.kind == 'dataset' else ref.kind + ':'}{ref.name}@{ref.branch}" for ref in refs]

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, cache_options: Any = None, **options: Any
    ) -> LeptonFile:
        if mode != "rb":
            raise NotPermitted(f"lepton://{path}: a version never changes; write a new one with the store's own tools")
        mounted, inner, entry = self._found(path)
        if not entry.is_file:
            raise IsADirectoryError(f"lepton://{path} is a directory: open the files below it (data/*.parquet)")
        options.setdefault("cache_type", "none")  # pages are kept already; reading ahead would read other columns
        return LeptonFile(self, path, mounted.reader(inner), entry.size, block_size, cache_options, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Bytes [start, end) of a file; negative positions count from its end."""
        path = self._strip_protocol(path)
        mounted, inner, entry = self._found(path)
        if not entry.is_file:
            raise IsADirectoryError(f"lepton://{path} is a directory")
        first, last, _ = slice(start, end).indices(entry.size)
        return mounted.reader(inner)(first, max(first, last))

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        """Versions never change: raises NotPermitted."""
        raise NotPermitted("lepton:// can only be read; write a new version with the store's own tools")

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = mv = touch = pipe_file = put_file = _refuse

    def modified(self, path: str) -> datetime:
        """When the branch or tag that the path names came to this version; 1970 for a version that is named by its digits."""
        self._found(path)
        store, kind, (name, ref, commit) = self._resolved(*self._split(path))
        times = [info.time_s for info in list_refs(store, kind, name) if (info.branch, info.commit) == (ref, commit)]
        return datetime.fromtimestamp(times[0] if times else 0.0, UTC)


def _info(path: str, entry: Entry) -> dict[str, Any]:
    return {"name": path, "size": entry.size, "type": "file" if entry.is_file else "directory"}


class LeptonFile(AbstractBufferedFile):
    """An open file: of one version, whatever happens to the branch."""

    def __init__(
        self, fs: LeptonFileSystem, path: str, read: Any, size: int, block_size: Any, cache_options: Any, **options: Any
    ) -> None:
        self._read = read
        super().__init__(fs, path, "rb", block_size or "default", cache_options=cache_options, size=size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self._read(start, end)
        return data

    def __reduce__(self) -> Any:
        raise NotImplementedError("an open file does not pickle: open it again from its URL")
