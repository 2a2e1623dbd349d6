"""Chunks whose bytes stand in objects outside of the store: where these are, who may read them, and reading them.

    page -> digest -> index -> record "reference" (format/reference.py) -> root + path, offset, length -> bytes -> digest checked

Three things keep what a store says from leading a reader anywhere (decisions/0026):
- An object lies below a root, which is in the store's setting `references`, put there by an import that was asked for it.
- On every host, a root is read only after somebody there allowed that very root for this store: the import itself, `lepton references
  allow`, or `allow`. This is remembered beside the index, in the user's cache directory; when that is deleted, it is asked for again.
- A folder of this machine is a root only of a store that lies on this machine, too.

    setting references   {number: root URL}; a number is never given to another root

Invariant: nothing here writes to, or removes, what is referred to.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from leptonstore import limits
from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import BadInput, FormatTooNew, LeptonError, NotPermitted, ReferenceBroken
from leptonstore.format.reference import Reference, is_path
from leptonstore.store.environment import between_processes
from leptonstore.store.log import LogState, Proposal
from leptonstore.tiers.durable import replace_file
from leptonstore.tiers.external import ExternalReader, Stamp, is_local, open_external, root_of
from leptonstore.tiers.local import LocalTier

if TYPE_CHECKING:
    from leptonstore.store.store import Store

SETTING = FEATURE = "references"
_FILE_BYTES_MAX = 4 * limits.REMOTE_URL_CHARS_MAX * limits.REFERENCE_ROOTS_MAX


class Spot(NamedTuple):
    """Where bytes that are being imported stand: an object below the root of the import, and from which byte on."""

    path: str
    offset: int
    stamp: Stamp


def roots_of(state: LogState) -> dict[int, str]:
    """Number -> URL. Raises FormatTooNew when they are something that we do not understand."""
    found = state.settings.get(SETTING, {})
    with suppress(ValueError, AttributeError, BadInput, TypeError):
        made = {int(number): url for number, url in found.items()}
        if all(_is_root(number, url) for number, url in made.items()):
            return dict(sorted(made.items()))
    raise FormatTooNew("the store's roots of references are not understood: upgrade LeptonStore")


def _is_root(number: int, url: str) -> bool:
    """Only as we write one down ourselves: no secret, no "..", no other scheme. Raises BadInput, TypeError."""
    named = 0 < number < 1 << 32 and not _unfit(url) and "://" in url
    return named and root_of(url) == url


def _unfit(url: str) -> str:
    """Why a URL is not remembered, "" when it may be. It is shown on terminals."""
    if len(url) > limits.REMOTE_URL_CHARS_MAX:
        return f"its URL has more than {limits.REMOTE_URL_CHARS_MAX} characters"
    return "" if url.isprintable() else "its URL holds characters that cannot be shown"


class References:
    """The references of one store. Any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.after_fork()
        self._allowed: set[str] = set()
        self._read_file = False
        self._known: tuple[object, dict[int, str]] = ({}, {})  # the setting, and what it says

    def after_fork(self) -> None:
        """In a child process: connections are made anew."""
        self._lock = threading.Lock()
        self._open: dict[str, ExternalReader] = {}

    # -- roots -----------------------------------------------------------------------------------------------------

    @property
    def used(self) -> bool:
        """Whether this store may have any."""
        return FEATURE in self._store.state.requires

    @property
    def roots(self) -> dict[int, str]:
        """As `roots_of`."""
        setting = self._store.state.settings.get(SETTING, {})
        if self._known[0] != setting:
            self._known = setting, roots_of(self._store.state)
        return self._known[1]

    def add_root(self, url: str | Path) -> int:
        """The number of a root, which is added to the store's if it is new, and allowed here: who asks has named it. Raises BadInput."""
        root = root_of(url)
        why = self._refused(root) or _unfit(root)
        if why:
            raise BadInput(f"{root!r} cannot be referred to: {why}")
        if self._store.config.encryption is not None:
            raise BadInput(
                f"{self._store.url} is encrypted, and what it would refer to stands in the clear: import without --reference"
            )

        def propose(state: LogState) -> Proposal:
            known = roots_of(state)
            if len(known) >= limits.REFERENCE_ROOTS_MAX and root not in known.values():
                raise BadInput(
                    f"{len(known)} roots of references are as many as a store has: import a folder above them"
                )
            if root not in known.values():
                known[max(known, default=0) + 1] = root
            named = {str(number): url for number, url in known.items()}
            return Proposal("settings", settings={SETTING: named}, requires=(FEATURE,))

        if root not in self.roots.values():
            self._store.append(propose)
        self.allow(root)
        return next(number for number, known in self.roots.items() if known == root)

    def _refused(self, root: str) -> str:
        """Why no store like this one has such a root; "" when it may."""
        if is_local(root) and not isinstance(self._store.home, LocalTier):
            return f"it is a folder of one machine, and the store {self._store.url} is not; import without --reference"
        return ""

    # -- who may read them -----------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self._store.cache_path(f"references-{self._store._index.path.name}.json")

    def allow(self, url: str | Path) -> str:
        """Let this host read what this store refers to below a root; returns it as it is written down. Raises BadInput."""
        root = root_of(url)
        self._allowed = self.allowed | {root}
        # Where there is no cache directory, this process remembers it.
        with suppress(OSError, LeptonError), between_processes(self._file, "lock"):
            self._allowed |= self._load()
            replace_file(self._file, json.dumps(sorted(self._allowed)).encode(), self._file.parent)
        return root

    def disallow(self, url: str | Path) -> str:
        """Take it back. Raises OSError when it cannot be written down."""
        root = root_of(url)
        with between_processes(self._file, "lock"):
            self._allowed = (self.allowed | self._load()) - {root}
            replace_file(self._file, json.dumps(sorted(self._allowed)).encode(), self._file.parent)
        return root

    @property
    def allowed(self) -> set[str]:
        """The roots that this host reads for this store."""
        if not self._read_file:
            self._allowed |= self._load()
            self._read_file = True
        return self._allowed

    def _load(self) -> set[str]:
        with suppress(OSError, ValueError):
            if self._file.stat().st_size <= _FILE_BYTES_MAX:
                found = json.loads(self._file.read_bytes())
                return {url for url in found if isinstance(url, str)} if isinstance(found, list) else set()
        return set()

    def _root(self, number: int) -> str:
        """Raises NotPermitted."""
        root = self.roots.get(number)
        if root is None:
            raise NotPermitted(f"{self._store.url} refers to root {number} of objects, which its settings do not name")
        why = self._refused(root)
        if why:
            raise NotPermitted(f"{self._store.url} refers to objects below {root}: {why}")
        if root not in self.allowed:
            self._read_file = False  # somebody may have allowed it since
        if root not in self.allowed:
            raise NotPermitted(
                f"{self._store.url} refers to objects below {root}, which nobody allowed on this host: if you trust who wrote the "
                f"store, run `lepton references allow {root}`"
            )
        return root

    # -- reading ---------------------------------------------------------------------------------------------------

    def _reader(self, root: str) -> ExternalReader:
        with self._lock:
            if root not in self._open:
                self._open[root] = open_external(root)
            return self._open[root]

    def read_many(self, wanted: Sequence[tuple[Digest, Reference]]) -> Iterator[Buffer | ReferenceBroken]:
        """The bytes of each, checked against its digest, in order; the error where they cannot be had. Where requests take long, they
        are begun now. Raises NotPermitted (also of a root that was not allowed), TierUnavailable."""
        by_root: dict[int, list[tuple[str, int, int]]] = {}
        for _, reference in wanted:
            by_root.setdefault(reference.root, []).append((reference.path, reference.offset, reference.length))
        readers = {number: self._reader(self._root(number)) for number in by_root}
        return self._checked(wanted, {number: readers[number].read_many(ranges) for number, ranges in by_root.items()})

    def _checked(
        self, wanted: Sequence[tuple[Digest, Reference]], streams: dict[int, Iterator[Buffer | OSError]]
    ) -> Iterator[Buffer | ReferenceBroken]:
        for digest, reference in wanted:
            data = next(streams[reference.root])
            if isinstance(data, OSError):
                yield self._broken(digest, reference, _why(data))
            elif len(data) != reference.length or digest_of(data) != digest:
                yield self._broken(
                    digest, reference, self.changed(reference) or "its bytes are not those that were imported"
                )
            else:
                yield data

    def read(self, digest: Digest, reference: Reference) -> bytes:
        """The bytes of one. Raises ReferenceBroken, NotPermitted, TierUnavailable."""
        found = next(self.read_many([(digest, reference)]))
        if isinstance(found, ReferenceBroken):
            raise found
        return bytes(found)

    def name(self, reference: Reference) -> str:
        """For people: where it leads."""
        root = self.roots.get(reference.root, f"(root {reference.root})")
        path = "".join(char if char.isprintable() else "?" for char in reference.path)
        return f"{root.rstrip('/')}/{path} bytes {reference.offset}-{reference.offset + reference.length - 1}"

    def _broken(self, digest: Digest, reference: Reference, why: str) -> ReferenceBroken:
        return ReferenceBroken(digest.hex(), self.name(reference), why)

    def stamp(self, number: int, path: str) -> Stamp:
        """What the keeper of an object says of it now. Raises OSError, NotPermitted, TierUnavailable."""
        return self._reader(self._root(number)).stamp(path)

    def changed(self, reference: Reference, stamp: Callable[[int, str], Stamp] | None = None) -> str:
        """How its object differs from the one that was imported, as far as that shows without reading it; "" for not at all.

        stamp: as `self.stamp`, for those who ask often. Raises NotPermitted, TierUnavailable.
        """
        try:
            now = (stamp or self.stamp)(reference.root, reference.path)
        except OSError as error:
            return _why(error)
        if now.bytes < reference.offset + reference.length:
            return f"it has {now.bytes} bytes by now"
        if reference.object_bytes is not None and now.bytes != reference.object_bytes:
            return f"it has {now.bytes} bytes where it had {reference.object_bytes}"
        if reference.version and now.version != reference.version:
            return f"it was written anew ({now.version} where it was {reference.version})"
        return ""


def reference_to(root: int, spot: Spot, length: int) -> Reference:
    """`length` bytes from `spot` on. Raises BadInput for a name that cannot be referred to."""
    if not is_path(spot.path):
        raise BadInput(f"{spot.path!r} cannot be referred to: rename it, or import without --reference")
    return Reference(root, spot.path, spot.offset, length, spot.stamp.bytes, spot.stamp.version)


def _why(error: OSError) -> str:
    return "it is gone" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error.strerror})"
