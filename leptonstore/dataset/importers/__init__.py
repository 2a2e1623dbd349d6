"""Import: foreign files as a `Source` that `write_dataset` streams into a dataset.

Each format is one module with `open_source(path, **options) -> Source`, imported when it is asked for. What a path
holds decides the format where none is given: names first, then the first bytes of a file.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leptonstore.dataset.importers.reading import reading
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, SourceError


@dataclass(frozen=True)
class Format:
    """An import format: the module that reads it, and what it is in a line."""

    module: str
    description: str


_HERE = __name__
FORMATS: dict[str, Format] = {
    "idx": Format(f"{_HERE}.idx", "IDX files (MNIST), plain or .gz: a directory of them, or one file of images"),
    "image-folder": Format(f"{_HERE}.image_folder", "a folder of images; class = folder, train/ val/ test/ = split"),
    "digits": Format(f"{_HERE}.digits", "scikit-learn's handwritten digits; the word digits stands for the path"),
    "parquet": Format(f"{_HERE}.parquet", "a Parquet file, or a directory of Parquet files"),
    "files": Format(f"{_HERE}.files", "a directory, byte for byte, with modes and times"),
    "csv": Format(f"{_HERE}.csv", "a CSV file with a header line, plain or .gz"),
}


def open_source(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Source:
    """Open what lies at `path` for import. Cheap: headers and listings are read and checked, rows are not.

    format: a name of FORMATS; by default found from what the path holds. options: those of the format's module. With `key`, columns that
    name a row, the dataset becomes a keyed table; with `identity` instead, rows keep their order, and these columns say where row groups
    are cut.
    Raises SourceError (nothing there, not recognised, malformed), SchemaError (types or keys that do not fit), BadInput
    (no such format or option) and MissingExtra.
    """
    place = Path(path)
    name = format if format is not None else detect_format(path)
    if name not in FORMATS:
        raise BadInput(f"no import format {name!r}; there are {', '.join(FORMATS)}")
    opener: Callable[..., Source] = importlib.import_module(FORMATS[name].module).open_source
    accepted = list(inspect.signature(opener).parameters)[1:]
    accepted += ["identity"] if "key" in accepted else []
    unknown = [option for option in options if option not in accepted]
    if unknown:
        listed = ", ".join(accepted) or "none"
        raise BadInput(f"the format {name} has no option {unknown[0]!r}; its options: {listed}")
    if name != "digits":
        _require_existing(place)
    if "identity" in options:
        return opener(place, **{"key" if name == "identity" else name: value for name, value in options.items()})
    source = opener(place, **options)
    return source if options.get("key") is None else replace(source, keyed=True)


def detect_format(path: str | os.PathLike[str]) -> str:
    """The name of the format of what lies at `path`. The word "digits" is the digits; "./digits" is a path.

    Raises SourceError: no such file or directory, or nothing that is recognised (all formats are listed).
    """
    if os.fspath(path) == "digits":
        return "digits"
    place = Path(path)
    _require_existing(place)
    with reading(place):
        found = _detect_directory(place) if place.is_dir() else _detect_file(place)
    if found is None:
        listed = "; ".join(f"{name}: {entry.description}" for name, entry in FORMATS.items())
        raise SourceError(f"cannot tell the format of {place}; name one of these ({listed})", str(place))
    return found


def _require_existing(path: Path) -> None:
    with reading(path):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(f"no such file or directory: {path}; check the path", str(path)) from None


def _detect_directory(path: Path) -> str | None:
    from leptonstore.dataset.importers import idx, parquet

    with os.scandir(path) as scan:
        names = [entry.name for entry in scan if entry.is_file()]
    if any(idx.is_idx_name(name) for name in names):
        return "idx"
    if any(name.lower().endswith(parquet.SUFFIXES) for name in names):
        return "parquet"
    return "image-folder" if any(_image_names(path)) else None


def _image_names(path: Path) -> Iterator[str]:
    from leptonstore.dataset.importers import image_folder

    names: Iterable[str] = (name for _, _, files in os.walk(path) for name in files)
    return (name for name in names if image_folder.codec_of(name) is not None)


def _detect_file(path: Path) -> str | None:
    from leptonstore.dataset.importers import csv, idx, parquet

    name = path.name.lower()
    if idx.is_idx_name(name):
        return "idx"
    if name.endswith(parquet.SUFFIXES):
        return "parquet"
    if name.endswith(csv.SUFFIXES):
        return "csv"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        return "parquet"
    is_idx = len(head) == 4 and head[:2] == b"\0\0" and head[2] in range(0x08, 0x0F) and head[3] > 0
    return "idx" if is_idx else None
