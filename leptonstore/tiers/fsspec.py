"""Any place that fsspec knows (webdav, sftp, hdfs, a zip file, ...), as a tier to read from, or for one writer alone.

fsspec has no "create if absent" that two writers could agree by: its `mode="create"` looks first and writes then. So this tier refuses to
create documents, and with them every publication, unless whoever opened it answers for being the only writer (`single_writer`). Packs
and documents are written under another name and moved into place, as far as the filesystem moves files as a whole.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged, MissingExtra, NotPermitted, TierUnavailable

_PACK = re.compile(r"([0-9a-f]{32})\.pack")


def open_fsspec(url: str, single_writer: bool = False) -> FsspecTier:
    """The tier at `url`. Raises BadInput for a scheme that fsspec does not know, MissingExtra for one that lacks its package."""
    import fsspec

    scheme = urlparse(url).scheme
    if scheme not in fsspec.available_protocols():
        raise BadInput(
            f"{url}: no tier for {scheme}://; give a path, s3://, gs://, az://, memory:// or a URL that fsspec knows"
        )
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        lacking = error.name or getattr(error.__cause__, "name", None) or str(error)  # fsspec wraps it without its name
        raise MissingExtra(f"{scheme}://", "", lacking) from None
    except Exception as error:  # each filesystem has errors of its own
        raise TierUnavailable(f"{url} cannot be opened: {error}") from None
    return FsspecTier(url.rstrip("/"), filesystem, root.rstrip("/"), single_writer)


class FsspecTier:
    """PackPruner, HomePruner and LockHome over a filesystem of fsspec. Any thread, as far as that filesystem allows it."""

    def __init__(self, url: str, filesystem: Any, root: str, single_writer: bool = False) -> None:
        self.url, self._files, self._root, self._single_writer = url, filesystem, root, single_writer

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _require_writer(self) -> None:
        if not self._single_writer:
            raise NotPermitted(
                f"{self.url} is read-only: this kind of place cannot create a file only if it is absent, which is how writers agree; "
                "write to a directory, s3://, gs:// or az://, or open it with single_writer=True if nobody else writes there"
            )

    # -- documents -----------------------------------------------------------------------------------------------

    def read_document(self, name: str, bytes_max: int) -> bytes | None:
        """The document, None when there is none. Raises FormatDamaged when it is longer than `bytes_max`."""
        data = self._read(self._at(name), 0, bytes_max + 1, missing_ok=True)
        if data is not None and len(data) > bytes_max:
            raise FormatDamaged(f"{self.url}/{name} has more than {bytes_max} bytes")
        return data

    def _read(self, path: str, offset: int, length: int, missing_ok: bool = False) -> bytes | None:
        try:
            with self._files.open(path, "rb", cache_type="none") as file:
                file.seek(offset)
                return bytes(file.read(length))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if missing_ok:
                return None
            raise FileNotFoundError(2, "no such file", path) from None

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(
                entry.rstrip("/").rpartition("/")[2] for entry in self._files.ls(self._at(folder), detail=False)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def documents(self, folder: str) -> list[str]:
        """Names of the documents in `folder`, sorted."""
        self._files.invalidate_cache()
        return self._names(folder)

    def create_document(self, name: str, data: bytes) -> bool:
        """Create if absent, for the only writer there is. Raises NotPermitted unless opened as that."""
        self._require_writer()
        if self._files.exists(self._at(name)):
            return False
        self._write(name, data)
        return True

    def replace_document(self, name: str, data: bytes) -> None:
        """Create or replace a hint."""
        self._require_writer()
        self._write(name, data)

    def _write(self, name: str, data: Buffer) -> None:
        temporary = self._at(f"tmp/{secrets.token_hex(8)}.tmp")
        self._files.makedirs(self._at("tmp"), exist_ok=True)
        self._files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(temporary, bytes(data))
        self._files.mv(temporary, self._at(name))

    def confirm_documents(self, folder: str) -> None:
        """Nothing that fsspec could do."""

    def delete_document(self, name: str) -> None:
        """Remove a document; no error when it is not there."""
        self._require_writer()
        try:
            self._files.rm_file(self._at(name))
        except FileNotFoundError:
            return

    def contents(self) -> list[str] | None:
        """Names right below it, None when it does not exist."""
        return self._names("") or None

    # -- packs ---------------------------------------------------------------------------------------------------

    def _path(self, pack: str) -> str:
        return self._at(f"packs/{pack[:2]}/{pack}.pack")

    def pack_bytes(self, pack: str) -> int | None:
        """Size of a pack in bytes, None when it is not here."""
        try:
            return int(self._files.size(self._path(pack)))
        except FileNotFoundError:
            return None

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer only where the pack ends."""
        return self._read(self._path(pack), offset, length) or b""

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """As `read`."""
        return self.read(pack, offset, length)

    def packs(self) -> Iterator[str]:
        """Ids of all sealed packs, in no order."""
        self._files.invalidate_cache()
        for folder in self._names("packs"):
            for name in self._names(f"packs/{folder}"):
                match = _PACK.fullmatch(name)
                if match:
                    yield match[1]

    def create_pack(self, pack: str) -> FsspecPackSink:
        """Begin a pack, which is written when it is sealed."""
        self._require_writer()
        return FsspecPackSink(self, f"packs/{pack[:2]}/{pack}.pack")

    def delete_pack(self, pack: str) -> None:
        """Remove a pack; no error when it is not there."""
        self.delete_document(f"packs/{pack[:2]}/{pack}.pack")

    def set_aside(self, pack: str) -> str | None:
        """Move a pack to damaged/; where it is now, None when it is not there."""
        self._require_writer()
        if self.pack_bytes(pack) is None:
            return None
        self._files.makedirs(self._at("damaged"), exist_ok=True)
        self._files.mv(self._path(pack), self._at(f"damaged/{pack}.pack"))
        return f"{self.url}/damaged/{pack}.pack"

    # -- the rest of a home --------------------------------------------------------------------------------------

    def hold_lock(self, folder: str, data: bytes) -> NoLock:
        """Nobody can be told here: the only writer must not collect garbage while others read."""
        return NoLock()

    def live_locks(self, folder: str, bytes_max: int) -> dict[str, bytes]:
        """None that anybody knows of."""
        return {}

    def has_reserve(self) -> bool:
        """None is kept."""
        return True

    def release_reserve(self) -> None:
        """Nothing to release."""

    def restore_reserve(self) -> bool:
        """None is kept."""
        return True

    def remove_dead_temporaries(self, young_too: bool = False) -> int:
        """Remove what a crash of the only writer left under tmp/."""
        names = self._names("tmp")
        for name in names:
            self.delete_document(f"tmp/{name}")
        return len(names)

    def after_fork(self) -> None:
        """Left to the filesystem."""

    def close(self) -> None:
        """Left to the filesystem."""


class FsspecPackSink:
    """A pack that is kept in memory until it is sealed."""

    def __init__(self, tier: FsspecTier, name: str) -> None:
        self._tier, self._name, self._data = tier, name, bytearray()

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`."""
        for part in parts:
            self._data += part

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written."""
        return bytes(self._data[offset : offset + length])

    def seal(self) -> None:
        """Write the pack and move it into place."""
        self._tier._write(self._name, self._data)

    def abort(self) -> None:
        """Nothing was written yet."""


class NoLock:
    """A HeldLock that nobody sees."""

    name = ""

    def append(self, data: bytes) -> None:
        """Nothing to add to."""

    def release(self) -> None:
        """Nothing to release."""

    def forget(self) -> None:
        """Nothing to forget."""
