"""Objects outside of the store whose bytes it refers to: read-only, below one root, by range.

    file:///ABSOLUTE/FOLDER      files of this machine; links are followed only where they stay in the folder
    s3://, gs://, az://          objects of a bucket, through the object tier's client: its retries, typed errors, forks

Nothing is believed of what is read: whoever asked checks the digest. A root holds no secret: credentials come from the environment.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

from leptonstore.digest import Buffer
from leptonstore.errors import BadInput

BUCKETS = ("s3", "gs", "az")
Wanted = tuple[str, int, int]  # path below the root, offset, length (> 0)


class Stamp(NamedTuple):
    """What an object's keeper says of it: bytes, and a text that changes when it is written anew."""

    bytes: int
    version: str


def stamp_of(status: os.stat_result) -> Stamp:
    """Of a file."""
    return Stamp(status.st_size, f"mtime_ns {status.st_mtime_ns}")


class ExternalReader(Protocol):
    """Reads objects below a root. Any thread; also a child of a fork. The caller has checked that paths lead downwards."""

    url: str

    def stamp(self, path: str) -> Stamp:
        """Raises FileNotFoundError, OSError, and what the object tier raises (NotPermitted, TierUnavailable)."""

    def read_many(self, wanted: Sequence[Wanted]) -> Iterator[Buffer | OSError]:
        """The bytes of each range, in order: fewer where the object ends, the error where it cannot be read (FileNotFoundError where
        there is none). Near ranges of an object are one request, and requests run at a time where each takes long; then they are
        begun now. Raises NotPermitted, TierUnavailable."""


def root_of(url: str | Path) -> str:
    """The one way to write a root down: an absolute file:// URL without links, or s3://BUCKET[/PREFIX]. Raises BadInput."""
    text = str(url)
    parsed = urlsplit(text)
    if isinstance(url, Path) or "://" not in text:
        return "file://" + quote(os.path.realpath(text))
    if parsed.scheme == "file":
        path = unquote(parsed.path)
        parts = path.split("/")[1:]
        if parsed.netloc or parsed.query or parsed.fragment or not path.startswith("/") or {".", ".."} & set(parts):
            raise BadInput(f"{text}: give file:///ABSOLUTE/FOLDER and nothing else")
        return "file://" + quote("/" + "/".join(filter(None, parts)))
    if parsed.scheme not in BUCKETS:
        listed = ", ".join(f"{scheme}://" for scheme in ("file", *BUCKETS))
        raise BadInput(f"{parsed.scheme}://… cannot be referred to; only {listed}: import it without --reference")
    from leptonstore.tiers.object_open import open_client

    return open_client(text).url  # says what is wrong with it; no request is made


def open_external(root: str) -> ExternalReader:
    """The objects below `root`, as `root_of` writes it. No request is made. Raises BadInput, MissingExtra."""
    if root.startswith("file://"):
        return FolderObjects(root)
    from leptonstore.tiers.external_bucket import BucketObjects
    from leptonstore.tiers.object_open import open_client

    return BucketObjects(open_client(root))


def is_local(root: str) -> bool:
    """Whether it is a folder of this machine."""
    return root.startswith("file://")


class FolderObjects:
    """Files below a folder."""

    def __init__(self, root: str) -> None:
        self.url, self._folder = root, unquote(urlsplit(root).path).rstrip("/") + "/"
        self._real = os.path.realpath(self._folder).rstrip("/") + "/"

    def _open(self, path: str) -> int:
        full = self._folder + path
        # First only its place is opened, which waits for no pipe and wakes no device. Then that very file, wherever links lead by now.
        place = os.open(full, os.O_PATH | os.O_CLOEXEC)
        try:
            here = f"/proc/self/fd/{place}"
            if not os.readlink(here).startswith(self._real):
                raise FileNotFoundError(2, "it is a link that leads out of its folder", full)
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise FileNotFoundError(2, "it is no regular file any more", full)
            return os.open(here, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)

    def stamp(self, path: str) -> Stamp:
        """As ExternalReader."""
        fd = self._open(path)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return stamp_of(status)

    def read_many(self, wanted: Sequence[Wanted]) -> Iterator[Buffer | OSError]:
        """As ExternalReader. A file that is asked for again and again in a row is opened once."""
        fd, opened = -1, ""
        try:
            for path, offset, length in wanted:
                try:
                    if path != opened:
                        if fd >= 0:
                            os.close(fd)
                            fd, opened = -1, ""
                        fd = self._open(path)
                        opened = path
                    data: Buffer | OSError = _read_at(fd, offset, length)
                except OSError as error:
                    data = error
                yield data
        finally:
            if fd >= 0:
                os.close(fd)


def _read_at(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while data and len(data) < length:  # a signal, or a network filesystem
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
