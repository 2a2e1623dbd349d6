"""Files of a bucket, and of any filesystem that fsspec knows, behind one small interface (see places).

Errors are OSErrors (no such file) and LeptonErrors (all else). A file that is written appears as a whole, or never was: on a
bucket by one PUT or a multipart upload, elsewhere under another name that is moved into place.
"""

from __future__ import annotations

import io
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, LeptonError, MissingExtra, TierUnavailable

if TYPE_CHECKING:
    from leptonstore.tiers.object_client import Client


class Named(NamedTuple):
    """An entry of a folder. size: bytes of a file, -1 when nobody says. tag: what changes when the file does, "" when nobody says."""

    name: str
    is_folder: bool
    size: int
    tag: str = ""


class Files(Protocol):
    """Files of one filesystem or bucket, by the path below it. Errors are OSErrors and LeptonErrors."""

    def kind(self, path: str) -> tuple[str, int]:
        """("file", bytes; -1 when nobody knows) or ("directory", 0). Raises FileNotFoundError."""

    def names(self, path: str) -> list[Named]:
        """What lies right below `path`, in no order."""

    def open(self, path: str) -> tuple[io.RawIOBase, int]:
        """The file, to be read, and how large a buffer suits it. Seekable where the server answers ranges."""

    def create(self, path: str) -> NewFile:
        """A file that appears when it is committed."""

    def remove(self, path: str) -> None:
        """No error when it is not there."""


class NewFile(Protocol):
    """A file that nobody sees until it is committed."""

    def write(self, data: Buffer) -> int:
        """Append all of it."""

    def commit(self) -> None:
        """It is there, whole."""

    def abort(self) -> None:
        """It never was."""


# -- buckets -----------------------------------------------------------------------------------------------------


class BucketFiles:
    """Objects of a bucket. Any thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def kind(self, path: str) -> tuple[str, int]:
        if path:
            with suppress(FileNotFoundError):
                return "file", self._client.size(path)
        objects, folders = self._client.list_folder(path)
        if not objects and not folders:
            raise FileNotFoundError(2, "no such object", f"{self._client.url}/{path}")
        return "directory", 0

    def names(self, path: str) -> list[Named]:
        objects, folders = self._client.list_folder(path)
        found = [
            Named(entry.path.rpartition("/")[2], False, entry.size, entry.etag or f"{entry.size}-{entry.modified}")
            for entry in objects
        ]
        return found + [Named(folder.rstrip("/").rpartition("/")[2], True, 0) for folder in folders]

    def open(self, path: str) -> tuple[io.RawIOBase, int]:
        return Ranges(self._client, path, self._client.size(path)), limits.PLACE_READ_BYTES

    def create(self, path: str) -> NewFile:
        return _NewObject(self._client, path)

    def remove(self, path: str) -> None:
        self._client.delete(path)


class _Source(Protocol):
    """What `Ranges` reads: a Client of the object tier."""

    def get_range(self, path: str, offset: int, length: int) -> Buffer:
        """At most `length` bytes from `offset` on."""


class Ranges(io.RawIOBase):
    """An object as a seekable stream of ranges.

    When two reads of a whole window (limits.PLACE_READ_BYTES) follow each other, the next limits.PLACE_WINDOWS_AHEAD windows are
    fetched by threads: else a stream would wait for each answer. Not for several threads.
    """

    def __init__(self, source: _Source, path: str, size: int) -> None:
        self._source, self._path, self._size = source, path, size
        self._at = 0
        self._end = -1  # of what was fetched last
        self._left: tuple[int, memoryview] = (0, memoryview(b""))  # fetched, not given out yet: where it begins, and it
        self._ahead: deque[tuple[int, Future[Buffer]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        count = min(len(view), self._size - self._at)
        if count <= 0:
            return 0
        start, left = self._left
        data = left if left and start == self._at else memoryview(self._fetch(count)).cast("B")
        count = min(count, len(data))
        view[:count] = data[:count]
        self._at += count
        self._left = (self._at, data[count:])
        return count

    def readall(self) -> bytes:
        """What is left, not in the small pieces of the base class."""
        parts = []
        while part := self.read(limits.PLACE_READ_BYTES):
            parts.append(part)
        return b"".join(parts)

    def _fetch(self, count: int) -> Buffer:
        start, window = self._at, limits.PLACE_READ_BYTES
        if self._ahead and self._ahead[0][0] == start:
            future = self._ahead.popleft()[1]
            self._fetch_ahead(start + window * (len(self._ahead) + 1))
            data = future.result()
        else:
            self._drop()
            if start == self._end and count >= window:
                self._fetch_ahead(start + count)
            data = self._source.get_range(self._path, start, count)
        self._end = start + len(data)
        return data

    def _fetch_ahead(self, start: int) -> None:
        """Windows from `start` on, behind those that are under way."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(limits.PLACE_WINDOWS_AHEAD, "lepton-range")
        while len(self._ahead) < limits.PLACE_WINDOWS_AHEAD and start < self._size:
            length = min(limits.PLACE_READ_BYTES, self._size - start)
            self._ahead.append((start, self._pool.submit(self._source.get_range, self._path, start, length)))
            start += limits.PLACE_READ_BYTES

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def close(self) -> None:
        if not self.closed and self._pool is not None:
            self._drop()
            self._pool.shutdown(wait=True, cancel_futures=True)
        super().close()


class _NewObject:
    """One PUT for a small object, a multipart upload for a larger one: both appear as a whole."""

    def __init__(self, client: Client, path: str) -> None:
        self._client, self._path = client, path
        self._start = bytearray()
        self._writer: Any = None

    def write(self, data: Buffer) -> int:
        if self._writer is None and len(self._start) + len(data) <= limits.OBJECT_PART_BYTES:
            self._start += data
            return len(data)
        try:
            if self._writer is None:
                self._writer = self._client.open_writer(
                    self._path, limits.OBJECT_PART_BYTES, limits.OBJECT_PARTS_IN_FLIGHT
                )
                self._writer.write(bytes(self._start))
                self._start.clear()
            self._writer.write(bytes(data))
        except Exception as error:
            raise self._client.error(error, self._path) from None
        return len(data)

    def commit(self) -> None:
        if self._writer is None:
            self._client.put(self._path, bytes(self._start))
            return
        try:
            self._writer.close()
        except Exception as error:
            raise self._client.error(error, self._path) from None

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.__exit__(RuntimeError, RuntimeError("aborted"), None)


# -- fsspec ------------------------------------------------------------------------------------------------------


def fsspec_files(scheme: str, url: str) -> tuple[Files, str]:
    import fsspec

    shown = url.partition("?")[0].rpartition("@")[2] if "@" in url else url.partition("?")[0]
    if scheme not in fsspec.available_protocols():
        raise BadInput(
            f"{shown}: nobody knows {scheme}://; give a path, s3://, gs://, az:// or a URL that fsspec knows"
        )
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtra(f"{scheme}://", "object", error.name or str(error)) from None
    except Exception as error:  # each filesystem has errors of its own
        raise BadInput(f"{shown} cannot be opened: {_line(error)}; check the URL") from None
    return FsspecFiles(filesystem, shown), path


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """Inside, what a filesystem of fsspec raises is an OSError or a TierUnavailable."""
    try:
        yield
    except FileNotFoundError as error:  # what HTTP says of a server that cannot be reached, too
        if error.__cause__ is None or "Connect" not in type(error.__cause__).__name__:
            raise
        raise TierUnavailable(f"{shown} cannot be reached ({_line(error.__cause__)}); try again", shown) from None
    except (LeptonError, NotADirectoryError, IsADirectoryError, PermissionError):
        raise
    except ImportError as error:
        raise MissingExtra(f"reading {shown}", "object", error.name or str(error)) from None
    except NotImplementedError:
        raise BadInput(f"{shown}: this kind of place cannot do that; copy the files to a path or a bucket") from None
    except Exception as error:
        raise TierUnavailable(f"{shown} does not answer as it should ({_line(error)}); try again", shown) from None


class FsspecFiles:
    """Files of a filesystem of fsspec."""

    def __init__(self, filesystem: Any, shown: str) -> None:
        self._files, self._shown = filesystem, shown

    def kind(self, path: str) -> tuple[str, int]:
        with _told(self._shown):
            self._files.invalidate_cache()
            info = self._files.info(path)
        size = info.get("size")
        return ("directory", 0) if info.get("type") == "directory" else ("file", -1 if size is None else int(size))

    def names(self, path: str) -> list[Named]:
        with _told(self._shown):
            entries = self._files.ls(path, detail=True)
        found = []
        for entry in entries:
            size, is_folder = entry.get("size"), entry.get("type") == "directory"
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            # A time alone would miss a change within its tick; an ETag, where there is one, says it.
            tag = next((str(entry[key]) for key in ("ETag", "etag", "md5", "md5Hash") if entry.get(key)), "")
            found.append(Named(name, is_folder, 0 if is_folder else -1 if size is None else int(size), tag))
        return found

    def open(self, path: str) -> tuple[io.RawIOBase, int]:
        with _told(self._shown):
            file = self._files.open(path, "rb", block_size=limits.PLACE_READ_BYTES, cache_type="readahead")
        return _Told(file, self._shown), limits.MIB

    def create(self, path: str) -> NewFile:
        return _NewFsspec(self._files, path, self._shown)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError), _told(self._shown):
            self._files.rm_file(path)


class _Told(io.RawIOBase):
    """A file of fsspec with typed errors."""

    def __init__(self, file: Any, shown: str) -> None:
        self._file, self._shown = file, shown

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self.seekable():
            raise io.UnsupportedOperation(f"{self._shown} can only be read from beginning to end; download it first")
        with _told(self._shown):
            return int(self._file.seek(offset, whence))

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        with _told(self._shown):
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with suppress(Exception):
                self._file.close()
        super().close()


class _NewFsspec:
    """A file under another name that is moved into place, as far as the filesystem moves files as a whole."""

    def __init__(self, filesystem: Any, path: str, shown: str) -> None:
        self._files, self._path, self._shown = filesystem, path, shown
        folder, _, name = path.rpartition("/")
        self._temporary = f"{folder}/.{name}-{secrets.token_hex(8)}.partial"
        with _told(shown):
            if folder:
                filesystem.makedirs(folder, exist_ok=True)
            self._file = filesystem.open(self._temporary, "wb")

    def write(self, data: Buffer) -> int:
        with _told(self._shown):
            self._file.write(bytes(data))
        return len(data)

    def commit(self) -> None:
        with _told(self._shown):
            self._file.close()
            if self._files.exists(self._path):
                self._files.rm_file(self._path)
            self._files.mv(self._temporary, self._path)

    def abort(self) -> None:
        with suppress(Exception):
            self._file.close()
        with suppress(Exception):
            self._files.rm_file(self._temporary)
