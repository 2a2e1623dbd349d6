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
from typing import Any

from leptonstore.dataset.importers.reading import reading
from leptonstore.dataset.places import Place, UrlPlace, place_of
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
    "csv": Format(f"{_HERE}.csv", "a CSV file with a header line (.tsv: with tabs), plain or .gz"),
    "jsonl": Format(f"{_HERE}.jsonl", "JSON lines, one object a line, plain or .gz; a file, or a directory of them"),
    "arrow": Format(f"{_HERE}.arrow", "an Arrow IPC file or stream, or a directory of them"),
    "webdataset": Format(
        f"{_HERE}.webdataset", "tar shards: one, a directory, or a pattern shard-{000000..000004}.tar"
    ),
    "mds": Format(f"{_HERE}.mds", "MDS shards of mosaicml-streaming: the folder of index.json"),
    "numpy": Format(f"{_HERE}.numpy", "an array of numpy (.npy), or several (.npz); the first dimension counts rows"),
    "safetensors": Format(f"{_HERE}.safetensors", "tensors of one first dimension, which counts rows"),
    "huggingface": Format(f"{_HERE}.huggingface", "a dataset of Hugging Face that save_to_disk wrote"),
}

_TARS = (".tar", ".tar.gz", ".tgz")
# By the end of a name. (The modules say them again for whom it concerns; importing all of them here would take long.)
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "arrow": (".arrow", ".arrows", ".ipc", ".feather"),
    "webdataset": _TARS,
    "numpy": (".npy", ".npz"),
    "safetensors": (".safetensors",),
}
_DIRECTORIES = ("parquet", "arrow", "webdataset", "jsonl")  # formats that may be a directory of files
_PATHS_ONLY = ("files", "digits")
_MAGICS = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),  # a stream: the mark before each message
    (b"\x93NUMPY", "numpy"),
    (b"PK\x03\x04", "numpy"),
)
_HEAD_BYTES = 512


def open_source(path: str | os.PathLike[str] | Place, format: str | None = None, **options: Any) -> Source:
    """Open what lies at `path` (a path, or a URL that leptonstore.dataset.places knows) for import.

    Cheap: headers and listings are read and checked, rows are not. format: a name of FORMATS; by default found from what
    the path holds. options: those of the format's module. With `key`, columns that name a row, the dataset becomes a keyed
    table; with `identity` instead, rows keep their order, and these columns say where row groups are cut.
    Raises SourceError (nothing there, not recognised, malformed), SchemaError (types or keys that do not fit), BadInput (no
    such format or option), MissingExtra, and for URLs what the object tier raises (NotPermitted, TierUnavailable).
    """
    place = place_of(path)
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
    if isinstance(place, UrlPlace) and name in _PATHS_ONLY:
        raise BadInput(f"{place}: the format {name} reads directories of this machine; copy it to one first")
    if name != "digits" and not (name == "webdataset" and _is_pattern(place)):
        _require_existing(place)
    if "identity" in options:
        return opener(place, **{"key" if name == "identity" else name: value for name, value in options.items()})
    source = opener(place, **options)
    return source if options.get("key") is None else replace(source, keyed=True)


def detect_format(path: str | os.PathLike[str] | Place) -> str:
    """The name of the format of what lies at `path`. The word "digits" is the digits; "./digits" is a path.

    Raises SourceError: no such file or directory, or nothing that is recognised (all formats are listed).
    """
    if not isinstance(path, UrlPlace) and os.fspath(path) == "digits":
        return "digits"
    place = place_of(path)
    if _is_pattern(place) and place.name.lower().endswith(_TARS):
        return "webdataset"
    _require_existing(place)
    with reading(place):
        found = _detect_directory(place) if place.is_dir() else _detect_file(place)
    if found is None:
        raise SourceError(f"cannot tell the format of {place}; name it (--format): {', '.join(FORMATS)}", str(place))
    return found


def _is_pattern(place: Place) -> bool:
    return "{" in place.name or "{" in str(place)


def _require_existing(path: Place) -> None:
    with reading(path):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(f"no such file or directory: {path}; check the path", str(path)) from None


def _detect_directory(path: Place) -> str | None:
    from leptonstore.dataset.importers import huggingface, idx
    from leptonstore.dataset.mds_format import INDEX

    if isinstance(path, UrlPlace):
        names = [entry.name for entry in path.entries() if not entry.is_folder]
    else:
        with os.scandir(path) as scan:
            names = [entry.name for entry in scan if entry.is_file()]
    if huggingface.is_saved(names):
        return "huggingface"
    if INDEX in names and any(name.startswith("shard.") or ".mds" in name for name in names):
        return "mds"
    if any(idx.is_idx_name(name) for name in names):
        return "idx"
    for format, suffixes in _SUFFIXES.items():
        if format in _DIRECTORIES and any(name.lower().endswith(suffixes) for name in names):
            return format
    return "image-folder" if any(_image_names(path)) else None


def _image_names(path: Place) -> Iterator[str]:
    from leptonstore.dataset.importers import image_folder

    names: Iterable[str]
    if isinstance(path, UrlPlace):
        names = (image.path for image in image_folder.walk_url(path))
    else:
        names = (name for _, _, files in os.walk(path) for name in files)
    return (name for name in names if image_folder.codec_of(name) is not None)


def _detect_file(path: Place) -> str | None:
    from leptonstore.dataset.importers import idx
    from leptonstore.dataset.mds_format import INDEX

    name = path.name.lower()
    if idx.is_idx_name(name):
        return "idx"
    for format, suffixes in _SUFFIXES.items():
        if name.endswith(suffixes):
            return format
    if not path.is_file():
        return None
    if name == INDEX:
        return "mds"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for magic, format in _MAGICS:
        if head.startswith(magic):
            return format
    if head[257:262] == b"ustar":
        return "webdataset"
    is_idx = len(head) >= 4 and head[:2] == b"\0\0" and head[2] in range(0x08, 0x0F) and head[3] > 0
    return "idx" if is_idx else None
