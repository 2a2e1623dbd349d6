"""Where files for import and export lie: a path, or a URL of an object store or of whatever else fsspec knows.

    s3://, gs://, az://   obstore, as the object tier reads and writes (extra `object`); credentials from the environment
    file://               a path
    all others            fsspec: memory://, http(s):// (reading), sftp://, hf://, ... with the package that each needs

A `UrlPlace` has the part of `pathlib.Path` that importers use, so that one code reads both. A file is read in pieces of
limits.PLACE_READ_BYTES as it is asked for, never as a whole. A URL's user, password and query (a signature may stand
there) are shown in no message and no lineage.
"""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, cast
from urllib.parse import unquote, urlsplit

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, LeptonError, MissingExtra, SourceError, TierUnavailable

if TYPE_CHECKING:
    from leptonstore.tiers.object_client import Client

_BUCKETS = ("s3", "gs", "az")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


class Named(NamedTuple):
    """An entry of a folder. size: bytes of a file, -1 when nobody says."""

    name: str
    is_folder: bool
    size: int


class _Files(Protocol):
    """Files of one filesystem or bucket, by the path below it. Errors are OSErrors and LeptonErrors."""

    def kind(self, path: str) -> tuple[str, int]:
        """("file", bytes; -1 when nobody knows) or ("directory", 0). Raises FileNotFoundError."""

    def names(self, path: str) -> list[Named]:
        """What lies right below `path`, in no order."""

    def open(self, path: str) -> tuple[io.RawIOBase, int]:
        """The file, to be read, and how large a buffer suits it. Seekable where the server answers ranges."""

    def create(self, path: str) -> _NewFile:
        """A file that appears when it is committed."""

    def remove(self, path: str) -> None:
        """No error when it is not there."""


class _NewFile(Protocol):
    """A file that nobody sees until it is committed."""

    def write(self, data: Buffer) -> int:
        """Append all of it."""

    def commit(self) -> None:
        """It is there, whole."""

    def abort(self) -> None:
        """It never was."""


@dataclass(frozen=True)
class PlaceStatus:
    """As much of os.stat_result as a URL has. st_size: bytes, -1 when the server does not say."""

    st_size: int
    st_mtime_ns: int = 0


class UrlPlace:
    """A file or folder behind a URL. Immutable; any thread."""

    def __init__(self, url: str) -> None:
        """Raises BadInput for a URL that is none. No request is made."""
        parts = urlsplit(url)
        self._scheme, self._host, self._query = parts.scheme.lower(), parts.netloc, parts.query
        self._path = parts.path.removeprefix("/")
        if self._scheme in _BUCKETS:
            self._path = self._path.strip("/")
            if "@" in parts.netloc or parts.query or parts.fragment or not parts.netloc:
                raise BadInput(
                    f"{self}: give {self._scheme}://BUCKET/PATH and nothing else; credentials and endpoints come from the environment"
                )
        if any(part in (".", "..") for part in self._path.split("/")):
            raise BadInput(f"{self}: a URL has no parts . and ..; write it out")
        self._shared: list[_Bucket] = []  # the connection, of this place and of all that are made from it

    def __str__(self) -> str:
        host = self._host.rpartition("@")[2]
        return f"{self._scheme}://{host}/{self._path}" if host or self._path else f"{self._scheme}://"

    __repr__ = __str__

    def __truediv__(self, name: str) -> UrlPlace:
        return self._at(f"{self._path.rstrip('/')}/{name}".lstrip("/"))

    def _at(self, path: str) -> UrlPlace:
        made = object.__new__(UrlPlace)
        made._scheme, made._host, made._query, made._shared = self._scheme, self._host, self._query, self._shared
        made._path = path
        return made

    @property
    def name(self) -> str:
        """The last component."""
        return unquote(self._path.rstrip("/").rpartition("/")[2]) or self._host.rpartition("@")[2]

    @property
    def suffix(self) -> str:
        """The last ending, with its dot."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its last ending."""
        return Path(self.name).stem

    @property
    def parent(self) -> UrlPlace:
        """The folder that it lies in."""
        return self._at(self._path.rstrip("/").rpartition("/")[0])

    @cached_property
    def _where(self) -> tuple[_Files, str]:
        if self._scheme in _BUCKETS:
            if not self._shared:
                from leptonstore.tiers.object_open import open_client

                self._shared.append(_Bucket(open_client(f"{self._scheme}://{self._host}")))
            return self._shared[0], self._path
        return _fsspec_files(self._scheme, self.url)

    @property
    def url(self) -> str:
        """As it was given, with what is secret in it: not to be shown."""
        query = f"?{self._query}" if self._query else ""
        return f"{self._scheme}://{self._host}{'/' if self._host and self._path else ''}{self._path}{query}"

    def _kind(self) -> tuple[str, int]:
        files, path = self._where
        return files.kind(path)

    def stat(self) -> PlaceStatus:
        """Raises FileNotFoundError, and what the connection raises."""
        return PlaceStatus(self._kind()[1])

    def exists(self) -> bool:
        """Whether there is a file or a folder with something in it."""
        try:
            self._kind()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_dir(self) -> bool:
        """Whether it is a folder with something in it: object stores know no empty ones."""
        try:
            return self._kind()[0] == "directory"
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_file(self) -> bool:
        """Whether it is a file or an object."""
        try:
            return self._kind()[0] == "file"
        except (FileNotFoundError, NotADirectoryError):
            return False

    def entries(self) -> list[Named]:
        """What lies right in it, in the order of names."""
        files, path = self._where
        return sorted(entry for entry in files.names(path) if entry.name not in ("", ".", ".."))

    def iterdir(self) -> Iterator[UrlPlace]:
        """What lies right in it, in the order of names."""
        return (self / entry.name for entry in self.entries())

    def open(self, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
        """The file, to be read. buffering=0: for reads here and there, each of which is a request."""
        assert mode == "rb"
        files, path = self._where
        raw, buffer_bytes = files.open(path)
        return cast(IO[bytes], raw if buffering == 0 else io.BufferedReader(raw, buffer_bytes))

    def read_bytes(self) -> bytes:
        """All of it: for what is known to be small."""
        with self.open() as file:
            return file.read()

    @contextmanager
    def creating(self) -> Iterator[IO[bytes]]:
        """A new file that is there when the block ends, whole; nothing of it when the block fails. Replaces an older one."""
        files, path = self._where
        made = files.create(path)
        try:
            with cast(IO[bytes], io.BufferedWriter(_Writing(made), limits.MIB)) as out:
                yield out
            made.commit()
        except BaseException:
            with suppress(Exception):
                made.abort()
            raise

    def unlink(self, missing_ok: bool = True) -> None:
        """Remove it; no error when it is not there."""
        files, path = self._where
        files.remove(path)


Place: TypeAlias = Path | UrlPlace


def place_of(path: Any) -> Place:
    """The place that a user named by a path or a URL. Raises BadInput."""
    if isinstance(path, (Path, UrlPlace)):
        return path
    text = str(path)
    if not _URL.match(text):
        return Path(path)
    if text.lower().startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return UrlPlace(text)


class _Writing(io.RawIOBase):
    """A new file as a raw stream; closing it commits nothing."""

    def __init__(self, made: _NewFile) -> None:
        self._made = made

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._made.write(view)
        return len(view)


# -- buckets -----------------------------------------------------------------------------------------------------


class _Bucket:
    """Objects of a bucket."""

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
        found = [Named(entry.path.rpartition("/")[2], False, entry.size) for entry in objects]
        return found + [Named(folder.rstrip("/").rpartition("/")[2], True, 0) for folder in folders]

    def open(self, path: str) -> tuple[io.RawIOBase, int]:
        return _Ranges(self._client, path, self._client.size(path)), limits.PLACE_READ_BYTES

    def create(self, path: str) -> _NewFile:
        return _NewObject(self._client, path)

    def remove(self, path: str) -> None:
        self._client.delete(path)


class _Ranges(io.RawIOBase):
    """An object as a seekable stream of ranges."""

    def __init__(self, client: Client, path: str, size: int) -> None:
        self._client, self._path, self._size, self._at = client, path, size, 0

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
        data = self._client.get_range(self._path, self._at, count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """What is left, not in the small pieces of the base class."""
        parts = []
        while part := self.read(limits.PLACE_READ_BYTES):
            parts.append(part)
        return b"".join(parts)


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


def _fsspec_files(scheme: str, url: str) -> tuple[_Files, str]:
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
    return _Fsspec(filesystem, shown), path


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """Inside, what a filesystem of fsspec raises is an OSError or a TierUnavailable."""
    try:
        yield
    except (LeptonError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        raise
    except ImportError as error:
        raise MissingExtra(f"reading {shown}", "object", error.name or str(error)) from None
    except NotImplementedError:
        raise BadInput(f"{shown}: this kind of place cannot do that; copy the files to a path or a bucket") from None
    except Exception as error:
        raise TierUnavailable(f"{shown} does not answer as it should ({_line(error)}); try again", shown) from None


class _Fsspec:
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
            found.append(Named(name, is_folder, 0 if is_folder else -1 if size is None else int(size)))
        return found

    def open(self, path: str) -> tuple[io.RawIOBase, int]:
        with _told(self._shown):
            file = self._files.open(path, "rb", block_size=limits.PLACE_READ_BYTES, cache_type="readahead")
        return _Told(file, self._shown), limits.MIB

    def create(self, path: str) -> _NewFile:
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


def confined(root: Place, name: str) -> Place:
    """A file that an index names, below `root`. Raises SourceError for a name that climbs out, or a link that leads out."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise SourceError(
            f"{root} names the file {name!r}, which is not one inside of it; correct its index", str(root)
        )
    place: Place = root
    for part in parts:
        place = place / part
    if isinstance(place, Path) and isinstance(root, Path):
        require_inside(place, root)
    return place


def require_inside(path: Path, root: Path) -> None:
    """Raises SourceError for a link that leads out of `root`."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise SourceError(f"{path} is a link that leads outside of {root}; replace it by a copy", str(path))
