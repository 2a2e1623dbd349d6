"""What is to be collected: files of a place, or what a list names.

    items_of_place   all files below a path or URL (s3://, gs://, az://, file, and what else fsspec knows), by patterns
    items_of_list    a list: a text file with a URL or path a line, or a manifest (CSV, JSONL, Parquet) with a column `url` (or `path`), and
                     optionally path, bytes, sha256, sha1, md5, blake3, licence; other columns go into the dataset as they are

A list is data that somebody else may have written: paths of rows are taken apart and must be relative; paths in it lie below the list's own
folder; URLs are those of LIST_SCHEMES: fsspec's others lead to files of this machine, too. sha1 and md5 find damage, not forgery.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.importers.file_listing import RACY_COARSE_NS
from leptonstore.dataset.importers.reading import reading
from leptonstore.dataset.places import Place, UrlPlace, confined, is_below, place_of
from leptonstore.errors import BadInput, SourceError

LIST_SCHEMES = ("http", "https", "s3", "gs", "az")
CHECKSUMS = {"blake3": 64, "sha256": 64, "sha1": 40, "md5": 32}  # hexadecimal digits
_KNOWN = {"url", "path", "bytes", "licence", *CHECKSUMS}
_MANIFESTS = {".csv", ".jsonl", ".ndjson", ".json", ".parquet"}


@dataclass(frozen=True)
class Item:
    """A file to collect.

    path: its name in the dataset. place: where it is. size: bytes, -1 when nobody says. tag: what changes when it does (size and times, an
    ETag); "": nobody says, so it is fetched to find out. checksums: algorithm -> hexadecimal digits. columns: more values of its row.
    found: it was met in a folder, not named, and so may go before it is fetched. later: it is there, and is to be left as it is for now.
    """

    path: str
    place: Place
    size: int = -1
    tag: str = ""
    checksums: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    found: bool = False
    later: bool = False

    @property
    def source(self) -> str:
        """Where it is, without a URL's secrets. A path is told by its name alone: where a machine keeps files is nobody's business."""
        return str(self.place) if isinstance(self.place, UrlPlace) else f"file:{self.path}"


def items_of_place(url: str | Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Iterator[Item]:
    """The files below a path or URL (or the one file that it is), in the order of their paths.

    include, exclude: patterns of paths (`*.jpg`, `raw/*`); without `include` all files. Passed over are hidden files, links, what is no
    file (pipes, sockets: reading them waits for ever), and what goes while it is listed. Raises SourceError, TierUnavailable.
    """
    root = place_of(url)
    with reading(root):
        if root.is_file():
            yield _item(root.name, root, root.stat().st_size)
            return
        if not root.is_dir():
            raise SourceError(f"there is nothing at {root}; check the path", str(root))
    for path, item in _walk(root, ""):
        wanted = not include or any(_fits(path, pattern) for pattern in include)
        if wanted and not any(_fits(path, pattern) for pattern in exclude):
            yield item


def _fits(path: str, pattern: str) -> bool:
    """A pattern without a slash is one of names, as in .gitignore."""
    return fnmatch.fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _walk(folder: Place, prefix: str) -> Iterator[tuple[str, Item]]:
    with reading(folder):
        if isinstance(folder, UrlPlace):
            entries = [(one.name, one.is_folder, one.size, one.tag) for one in folder.entries()]
        else:
            entries = _entries(folder)
    for name, is_folder, size, tag in entries:
        if name.startswith("."):
            continue
        place = folder / name
        if is_folder:
            yield from _walk(place, f"{prefix}{name}/")
        elif isinstance(place, UrlPlace) or place.is_file():
            with reading(place), suppress(FileNotFoundError):
                yield prefix + name, replace(_item(prefix + name, place, size, tag), found=True)


def _entries(folder: Path) -> list[tuple[str, bool, int, str]]:
    """What lies in a directory; nothing when that went since it was met."""
    with suppress(FileNotFoundError):
        return [(one.name, one.is_dir(), -1, "") for one in sorted(folder.iterdir()) if not one.is_symlink()]
    return []


def _item(path: str, place: Place, size: int, tag: str = "") -> Item:
    if isinstance(place, Path):
        found = place.stat()
        # A file that changed a moment ago may change again within the same tick of its clock: it is looked at next time, too.
        settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > RACY_COARSE_NS
        size, tag = found.st_size, f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}" if settled else ""
    return Item(checked_path(path, str(place)), place, size, tag)


def items_of_list(url: str | Path) -> Iterator[Item]:
    """What a list names, in its order. Raises SourceError, naming the line or row."""
    place = place_of(url)
    if place.suffix.lower() in _MANIFESTS:
        yield from _manifest(url, place)
        return
    with reading(place), place.open("rb") as file:
        size = 0
        most = limits.COLLECT_LIST_LINE_BYTES_MAX
        for number, line in enumerate(iter(lambda: file.readline(most + 1), b""), 1):
            if len(line) > most:
                raise SourceError(f"{place} line {number} has over {most:,} bytes, which is no URL; is it a list?")
            size += len(line)
            if size > limits.COLLECT_LIST_BYTES_MAX:
                raise SourceError(
                    f"{place} has over {limits.COLLECT_LIST_BYTES_MAX:,} bytes; split it, or make it Parquet"
                )
            text = line.decode("utf-8", "replace").strip()
            if text and not text.startswith("#"):
                yield _named(place, f"{place} line {number}", {"url": text})


def _manifest(url: str | Path, place: Place) -> Iterator[Item]:
    source = open_source(str(url), None)
    names = source.schema.names
    if "url" not in names and "path" not in names:
        raise SourceError(f"{place} has no column `url` or `path`; it has {', '.join(names)}", str(place))
    row = 0
    for batch in source.batches():
        for values in batch.to_pylist():
            yield _named(place, f"{place} row {row}", values)
            row += 1


def extra_fields(url: str | Path) -> list[pa.Field]:
    """The columns of a manifest that go into the dataset as they are; none of a list of URLs."""
    place = place_of(url)
    if place.suffix.lower() not in _MANIFESTS:
        return []
    return [one.with_nullable(True) for one in open_source(str(url), None).schema if one.name not in _KNOWN]


def _named(manifest: Place, where: str, values: Mapping[str, Any]) -> Item:
    url = values.get("url") or values.get("path")
    if not isinstance(url, str) or not url:
        raise SourceError(f"{where} names nothing: give a url or a path", str(manifest))
    if "://" in url:
        place = place_of(url)
        if isinstance(place, Path):
            raise SourceError(f"{where}: {url} is a file of this machine; lists name those by paths below themselves")
        if url.partition(":")[0].lower() not in LIST_SCHEMES or "::" in url:
            raise SourceError(
                f"{where}: a list names URLs of {', '.join(LIST_SCHEMES)}, not {place}; collect it by its own URL "
                "(`lepton collect files`)"
            )
        host = urlsplit(url).netloc.rpartition("@")[2]
        default = f"{host}/{unquote(urlsplit(url).path).strip('/')}".rstrip("/")
    else:
        place, default = confined(manifest.parent, url), url
    path = values.get("path") or default
    sums = {name: str(values[name]).lower() for name in CHECKSUMS if values.get(name)}
    for name, text in sums.items():
        if len(text) != CHECKSUMS[name] or not set(text) <= set("0123456789abcdef"):
            raise SourceError(f"{where}: {text!r} is no {name}: it has {CHECKSUMS[name]} hexadecimal digits")
    size = values.get("bytes")
    # With a checksum the list itself says when something changes. (The strongest; `bytes` alone would miss too much.)
    tag = next((f"{name}:{sums[name]}" for name in CHECKSUMS if name in sums), "")
    more = {name: value for name, value in values.items() if name not in _KNOWN}
    size = int(size) if isinstance(size, int) and size >= 0 else -1
    return Item(checked_path(path, where), place, size, tag, sums, values.get("licence"), more)


def checked_path(path: str, where: str) -> str:
    """The name of a row. Raises BadInput for one that an export could not make a file of."""
    if not is_below(path) or len(path) > 1024:
        raise BadInput(
            f"{where}: {path[:80]!r} cannot name a row: give a relative `path` without . and .., at most 1,024 long"
        )
    return path
