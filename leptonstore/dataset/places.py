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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeAlias, cast
from urllib.parse import unquote, urlsplit

from leptonstore import limits
from leptonstore.dataset.place_files import BucketFiles, Files, Named, NewFile, fsspec_files
from leptonstore.errors import BadInput, SourceError

_BUCKETS = ("s3", "gs", "az")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclass(frozen=True)
class PlaceStatus:
    """As much of os.stat_result as a URL has. st_size: bytes, -1 when the server does not say."""

    st_size: int
    st_mtime_ns: int = 0


class UrlPlace:
    """A file or folder behind a URL. Immutable; any thread."""

    def __init__(self, url: str) -> None:
        """Raises BadInput for a URL that is none. No request is made."""
        first, chain, rest = url.partition("::")  # fsspec's way to say "in": zip://table.csv::s3://bucket/archive.zip
        self._chain = chain + rest
        try:
            parts = urlsplit(first)
        except ValueError as error:
            raise BadInput(f"{url.partition('?')[0]!r} is no URL ({error})") from None
        self._scheme, self._host, self._query = parts.scheme.lower(), parts.netloc, parts.query
        self._path = parts.path.removeprefix("/") if parts.netloc else parts.path
        if self._scheme in _BUCKETS and not self._chain:
            self._path = self._path.strip("/")
            if "@" in parts.netloc or parts.query or parts.fragment or not parts.netloc:
                raise BadInput(
                    f"{self}: give {self._scheme}://BUCKET/PATH and nothing else; credentials and endpoints come from the environment"
                )
        if any(part in (".", "..") for part in self._path.split("/")):
            raise BadInput(f"{self}: a URL has no parts . and ..; write it out")
        self._shared: list[BucketFiles] = []  # the connection, of this place and of all that are made from it

    def __str__(self) -> str:
        host = self._host.rpartition("@")[2]
        chained = f"::{self._chain.rpartition('@')[2].removeprefix('::').partition('?')[0]}" if self._chain else ""
        return f"{self._scheme}://{host}{'/' if host and self._path else ''}{self._path}{chained}"

    __repr__ = __str__

    def __truediv__(self, name: str) -> UrlPlace:
        return self._at(f"{self._path.rstrip('/')}/{name}" if self._path else name)

    def _at(self, path: str) -> UrlPlace:
        made = object.__new__(UrlPlace)
        made._scheme, made._host, made._query, made._shared = self._scheme, self._host, self._query, self._shared
        made._path, made._chain = path, self._chain
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
    def _where(self) -> tuple[Files, str]:
        if self._scheme in _BUCKETS and not self._chain:
            if not self._shared:
                from leptonstore.tiers.object_open import open_client

                self._shared.append(BucketFiles(open_client(f"{self._scheme}://{self._host}")))
            return self._shared[0], self._path
        return fsspec_files(self._scheme, self.url)

    @property
    def url(self) -> str:
        """As it was given, with what is secret in it: not to be shown."""
        query = f"?{self._query}" if self._query else ""
        return (
            f"{self._scheme}://{self._host}{'/' if self._host and self._path else ''}{self._path}{query}{self._chain}"
        )

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

    def __init__(self, made: NewFile) -> None:
        self._made = made

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._made.write(view)
        return len(view)


def is_below(name: str) -> bool:
    """Whether a path is one of a file below some folder: relative, and without parts that climb or that a system reads otherwise."""
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in name.split("/"))


def confined(root: Place, name: str) -> Place:
    """A file that an index names, below `root`. Raises SourceError for a name that climbs out, or a link that leads out."""
    if not is_below(name):
        raise SourceError(
            f"{root} names the file {name!r}, which is not one inside of it; correct its index", str(root)
        )
    place: Place = root
    for part in name.split("/"):
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
