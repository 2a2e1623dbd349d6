"""What every importer of files needs: the machine's refusals as `SourceError`, unpacking, and the path as the user wrote it."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from leptonstore import limits
from leptonstore.dataset.places import Place, UrlPlace, require_inside
from leptonstore.digest import digest_of_parts
from leptonstore.errors import SourceError
from leptonstore.tiers.external import root_of

_GZIP_MAGIC = b"\x1f\x8b"
_READ_BYTES = 4 * limits.MIB  # one read; larger ones grow piece by piece


def rows_per_batch(row_bytes: int) -> int:
    """How many rows of `row_bytes` bytes go into one batch (at least one)."""
    return max(1, min(limits.IMPORT_BATCH_ROWS_MAX, limits.IMPORT_BATCH_BYTES_MAX // max(1, row_bytes)))


@contextmanager
def reading(path: Place) -> Iterator[None]:
    """Inside, an OSError about `path` (no permission, a dead mount, a bad sector) is a SourceError that names it."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SourceError(f"cannot read {path}: {why}; check the path and its permissions", str(path)) from error


@contextmanager
def unpacking(path: Place) -> Iterator[None]:
    """Inside, a damaged gzip stream and a file that cannot be read are SourceErrors."""
    with reading(path):
        try:
            yield
        except EOFError as error:
            raise SourceError(f"{path} is a truncated gzip file; download it again", str(path)) from error
        except (gzip.BadGzipFile, zlib.error) as error:  # BadGzipFile is an OSError: told apart before `reading`
            raise SourceError(f"{path} is a damaged gzip file ({error}); download it again", str(path)) from error


@contextmanager
def open_unpacked(path: Place) -> Iterator[IO[bytes]]:
    """The plain bytes of a file, unpacked on the way if it is a gzip file (its first bytes say so). Read it in `unpacking`."""
    with path.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic != _GZIP_MAGIC:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield cast(IO[bytes], unpacked)


def read_up_to(stream: Any, size: int) -> bytes | bytearray:
    """Up to `size` bytes, in pieces: memory follows what is there, not what a header announces."""
    data = bytearray()
    while len(data) < size:
        piece: bytes = stream.read(min(_READ_BYTES, size - len(data)))
        if len(piece) == size:
            return piece
        if not piece:
            break
        data += piece
    return data


def size_of(path: Place) -> int:
    """Bytes of a file. Raises SourceError, also where a server does not say."""
    with reading(path):
        size = path.stat().st_size
    if size < 0:
        raise SourceError(f"the server does not say how long {path} is; download it first", str(path))
    return size


def require_regular_file(path: Place) -> None:
    """Refuse directories, pipes and devices: opening a pipe waits for ever. Raises SourceError."""
    with reading(path):
        path.stat()
        is_file = path.is_file()
    if not is_file:
        raise SourceError(f"{path} is not a regular file; give a file, or name its format", str(path))


def files_of(path: Place, suffixes: tuple[str, ...]) -> list[Place]:
    """The file itself, or `files_in` of a folder. Raises SourceError, also when there is none; the first suffix names the kind."""
    with reading(path):
        if not path.is_dir():
            return [path]
    found = files_in(path, suffixes)
    if not found:
        raise SourceError(f"{path} holds no *{suffixes[0]} file; check the path", str(path))
    return found


def files_in(path: Place, suffixes: tuple[str, ...]) -> list[Place]:
    """The files right in a folder whose names end so, in the order of their names' bytes; hidden ones are left out.

    Raises SourceError, also for a link that leads out of the folder.
    """
    with reading(path):
        found: list[Place] = [
            entry for entry in path.iterdir() if entry.name.lower().endswith(suffixes) and entry.name[0] not in "._"
        ]
    for file in found:
        if isinstance(file, Path) and isinstance(path, Path):
            require_inside(file, path)
    return sorted(found, key=lambda file: os.fsencode(file.name))


def name_of(path: Place) -> str:
    """The last component of `path`, also for "." and "..": lineage holds names, never a machine's directories."""
    if isinstance(path, Path) and path.name in ("", ".", ".."):
        return os.path.basename(os.path.abspath(path))
    return path.name


def root_of_place(path: Place) -> str:
    """How a store that refers to objects below `path` writes it down. Raises BadInput: only folders of this machine and of buckets."""
    return root_of(path.url if isinstance(path, UrlPlace) else path)


def lineage_of(path: Place, **more: Any) -> dict[str, Any]:
    """What a lineage says of a file: name and size, and `more`."""
    return {"name": name_of(path), "bytes": max(0, path.stat().st_size), **more}


def lineages_of(files: Sequence[tuple[Place, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a lineage says of the files of one import: name, size, what is given with each, and their digests.

    Digests (BLAKE3 of the file as it is, packed or not) only of regular files of this machine, of at most SOURCE_DIGEST_BYTES_MAX together:
    all of them or none. Beyond that, and where reading twice costs a network, the rows bind what was read. Raises SourceError.
    """
    told = [lineage_of(path, **more) for path, more in files]
    paths = [path for path, _ in files]
    if sum(one["bytes"] for one in told) > limits.SOURCE_DIGEST_BYTES_MAX:
        return told
    if not all(isinstance(path, Path) and stat.S_ISREG(path.stat().st_mode) for path in paths):
        return told
    return [{**one, "digest": _file_digest(path)} for one, path in zip(told, paths, strict=True)]


def _file_digest(path: Place) -> str:
    with reading(path), path.open("rb") as file:
        return digest_of_parts(iter(lambda: file.read(_READ_BYTES), b"")).hex()
