"""Import of a folder of images: the name of a folder is the class of the images in it.

    root/cat/1.jpg                 columns path, image, label
    root/train/cat/1.jpg           columns path, image, label, split: every top folder is train, val (valid, validation)
    root/test/cat/2.jpg            or test, in any case of letters

image holds the file's bytes; nothing is decoded here (cleaning reports what cannot be). Rows stand in the order of
their paths' bytes, on every machine. Files without an image's extension, hidden files (macOS leaves "._1.jpg") and
hidden folders are left out; the lineage counts such files.

Behind a URL, images are read ahead by several threads: each is a request. There are no links there.

The tree is walked twice, once to check and count it and once to read it, so that memory does not grow with it: only
the names of one directory per level are held.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.importers.reading import name_of, read_up_to, reading, root_of_place
from leptonstore.dataset.places import Place, UrlPlace
from leptonstore.dataset.schema import class_label_field, class_names, image_field, path_field
from leptonstore.dataset.source import Referred, Source
from leptonstore.errors import SourceError
from leptonstore.store.references import Spot
from leptonstore.tiers.external import open_external

CODECS = {
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "png": "png",
    "bmp": "bmp",
    "gif": "gif",
    "webp": "webp",
    "tif": "tiff",
    "tiff": "tiff",
}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_ORDER = ["train", "val", "test"]


@dataclass(frozen=True)
class _Image:
    """One image file. path: relative to the root, forward slashes. real: where to read it, links resolved."""

    path: str
    real: str | UrlPlace
    bytes: int


@dataclass
class _Survey:
    """What the first walk found. ignored: files left out. folders: (top folder, next folder or None) of every image."""

    files: int = 0
    bytes: int = 0
    ignored: int = 0
    codecs: set[str] = field(default_factory=set)
    folders: set[tuple[str, str | None]] = field(default_factory=set)


def codec_of(name: str) -> str | None:
    """The image codec that a file's extension names, None when it is no image's."""
    return CODECS.get(os.path.splitext(name)[1][1:].lower())


def open_source(path: Place, splits: bool | None = None, reference: bool = False) -> Source:
    """path, image (encoded), label and, where the top folders are splits, split.

    splits: True or False says whether the top folders are splits (default: they are when all have a split's name).
    reference: images stay where they are, and the store keeps where that is.
    Lists the tree. Raises SourceError: no image in it, an image outside of a class folder, an empty file or one above
    limits.IMAGE_FILE_BYTES_MAX, a link that leaves the folder, a name that is not UTF-8, or folders that are partly
    splits and partly classes.
    """
    with reading(path):
        if not path.is_dir():
            raise SourceError(f"{path} is not a folder; give the folder that holds the class folders", str(path))
    survey = _survey(path)
    split_names = _split_names(path, survey, splits)
    schema = _schema_of(survey, split_names)
    classes = class_names(schema.field("label")) or []
    if len(classes) > limits.CLASSES_MAX:
        raise SourceError(
            f"{path} has {len(classes)} class folders; at most {limits.CLASSES_MAX} are accepted", str(path)
        )
    lineage = {
        "format": "image-folder",
        "root": name_of(path),
        "files": survey.files,
        "bytes": survey.bytes,
        "ignored": survey.ignored,
        "classes": len(classes),
    }
    referred = None
    if reference:
        root = root_of_place(path)
        objects = open_external(root)

        def stamped(image: _Image) -> Spot:
            return Spot(_below(path, image), 0, objects.stamp(_below(path, image)))

        referred = Referred(root, lambda: _spotted(path, schema, survey, stamped))

    def batches() -> Iterator[pa.RecordBatch]:
        return (batch for batch, _ in _spotted(path, schema, survey))

    return Source(schema, ("path",), batches, survey.files, lineage, referred=referred)


def _below(root: Place, image: _Image) -> str:
    """The path of an image's file below the root, links resolved."""
    return image.path if isinstance(root, UrlPlace) else os.path.relpath(str(image.real), os.path.realpath(root))


# -- the first walk ----------------------------------------------------------------------------------------------


def _survey(root: Place) -> _Survey:
    survey = _Survey()
    for image in _walk(root, survey):
        parts = image.path.split("/")
        if len(parts) == 1:
            raise SourceError(f"{root / image.path} lies in no class folder; move it into {root}/<class>/", str(root))
        survey.files += 1
        survey.bytes += image.bytes
        survey.codecs.add(codec_of(image.path) or "")
        survey.folders.add((parts[0], parts[1] if len(parts) > 2 else None))
    if not survey.files:
        extensions = " ".join(CODECS)
        raise SourceError(f"{root} holds no image ({extensions}); check the path or name its format", str(root))
    return survey


def _split_names(root: Place, survey: _Survey, wanted: bool | None) -> list[str]:
    """The splits that the top folders are, in their usual order; empty when they are classes."""
    tops = {top for top, _ in survey.folders}
    named = {top for top in tops if top.lower() in _SPLITS}
    if wanted is False or not (named or wanted):
        return []
    if named != tops:
        raise SourceError(
            f"{root} holds {sorted(tops - named)[0]!r} beside {', '.join(sorted(named)) or 'no split folder'}: "
            "are these splits or classes? rename the folders, or set splits to true or false",
            str(root),
        )
    for top, folder in sorted(survey.folders, key=str):
        if folder is None:
            raise SourceError(f"{root / top} holds images outside of a class folder; move them", str(root / top))
    found = {_SPLITS[top.lower()] for top in tops}
    return [split for split in _SPLIT_ORDER if split in found]


def _schema_of(survey: _Survey, split_names: list[str]) -> pa.Schema:
    classes = {(folder if split_names else top) or "" for top, folder in survey.folders}
    codec = next(iter(survey.codecs)) if len(survey.codecs) == 1 else "mixed"
    fields = [path_field("path"), image_field("image", codec), class_label_field("label", sorted(classes, key=_bytes))]
    if split_names:
        fields.append(class_label_field("split", split_names))
    return pa.schema(fields)


def _bytes(name: str) -> bytes:
    return name.encode()


def _walk(root: Place, survey: _Survey | None = None) -> Iterator[_Image]:
    """Every image below `root`, in the order of the bytes of its path; counts other files into `survey`."""
    if isinstance(root, UrlPlace):
        for image in walk_url(root, survey):
            _check_size(str(image.real), image.bytes)
            yield image
        return
    real_root = os.path.realpath(root)
    yield from _walk_directory(real_root, "", (real_root,), survey or _Survey())


def _walk_directory(directory: str, prefix: str, above: tuple[str, ...], survey: _Survey) -> Iterator[_Image]:
    """`directory` is a real path, `prefix` its path below the root with a slash, `above` the real paths down to it."""
    if len(above) > limits.FOLDER_DEPTH_MAX:
        raise SourceError(f"{prefix} lies more than {limits.FOLDER_DEPTH_MAX} folders deep; import a folder below it")
    with reading(Path(directory)), os.scandir(directory) as scan:
        entries = [(entry.name, entry.is_dir(), entry.is_symlink()) for entry in scan]
    # a folder sorts as "name/": so the order of a walk is the order of whole paths
    for name, is_directory, is_link in sorted(entries, key=lambda entry: os.fsencode(entry[0] + "/" * entry[1])):
        hidden = name.startswith(".")
        if hidden or (not is_directory and codec_of(name) is None):
            survey.ignored += not is_directory
            continue
        path = prefix + _checked_name(name, directory)
        real = _resolve(os.path.join(directory, name), above[0]) if is_link else os.path.join(directory, name)
        if not is_directory:
            yield _checked_image(path, real)
        elif real in above:
            raise SourceError(f"{path} is a link to a folder that it lies in; remove the link", path)
        else:
            yield from _walk_directory(real, path + "/", (*above, real), survey)


def walk_url(folder: UrlPlace, survey: _Survey | None = None, prefix: str = "", depth: int = 0) -> Iterator[_Image]:
    """The images below a URL, in the same order; sizes are those of the listings, and not checked."""
    survey = survey or _Survey()
    if depth >= limits.FOLDER_DEPTH_MAX:
        raise SourceError(f"{prefix} lies more than {limits.FOLDER_DEPTH_MAX} folders deep; import a folder below it")
    with reading(folder):
        entries = folder.entries()
    for entry in sorted(entries, key=lambda entry: (entry.name + "/" * entry.is_folder).encode()):
        if entry.name.startswith(".") or (not entry.is_folder and codec_of(entry.name) is None):
            survey.ignored += not entry.is_folder
        elif entry.is_folder:
            yield from walk_url(folder / entry.name, survey, f"{prefix}{entry.name}/", depth + 1)
        else:
            yield _Image(prefix + entry.name, folder / entry.name, entry.size)


def _checked_name(name: str, directory: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(
            f"{directory} holds the name {os.fsencode(name)!r}, not UTF-8; rename it", directory
        ) from None
    return name


def _resolve(link: str, real_root: str) -> str:
    """Where a link leads. Raises SourceError when that is outside of the root, or nowhere."""
    real = os.path.realpath(link)
    if os.path.commonpath([real, real_root]) != real_root:
        raise SourceError(f"{link} is a link that leads outside of the folder; replace it by a copy", link)
    return real


def _checked_image(path: str, real: str) -> _Image:
    with reading(Path(real)):
        status = os.stat(real, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{real} is not a regular file; remove it", real)
    _check_size(real, status.st_size)
    return _Image(path, real, status.st_size)


def _check_size(real: str, size: int) -> None:
    if size == 0:
        raise SourceError(f"{real} is empty; copy it again or remove it", real)
    if size > limits.IMAGE_FILE_BYTES_MAX:
        raise SourceError(
            f"{real} is larger than {limits.IMAGE_FILE_BYTES_MAX} bytes, the largest image accepted; remove it", real
        )


# -- the second walk ---------------------------------------------------------------------------------------------


_Stamped = Callable[[_Image], "Spot | None"]


def _spotted(
    root: Place, schema: pa.Schema, survey: _Survey, stamped: _Stamped = lambda image: None
) -> Iterator[tuple[pa.RecordBatch, dict[str, list[Spot | None]]]]:
    """Files in the order of their paths, and where their contents stand. Raises SourceError when the tree is not what the survey saw."""
    batch: list[tuple[str, bytes]] = []
    spots: list[Spot | None] = []
    files, size = 0, 0
    for image, (data, spot) in _contents(root, stamped):
        if batch and (len(batch) >= limits.IMPORT_BATCH_ROWS_MAX or size + len(data) > limits.IMPORT_BATCH_BYTES_MAX):
            yield _to_arrow(root, schema, batch), {"image": spots}
            batch, spots, size = [], [], 0
        batch.append((image.path, data))
        spots.append(spot)
        files += 1
        size += len(data)
    if files != survey.files:
        raise _changed(root)
    yield _to_arrow(root, schema, batch), {"image": spots}


_Content = tuple[bytes, "Spot | None"]


def _contents(root: Place, stamped: _Stamped) -> Iterator[tuple[_Image, _Content]]:
    if not isinstance(root, UrlPlace):
        yield from ((image, _read(image, stamped)) for image in _walk(root))
        return
    with ThreadPoolExecutor(limits.OBJECT_THREADS, "lepton-image") as pool:
        ahead: deque[tuple[_Image, Future[_Content]]] = deque()
        size = 0
        try:
            for image in _walk(root):
                while ahead and (len(ahead) >= 4 * limits.OBJECT_THREADS or size > limits.IMPORT_BATCH_BYTES_MAX):
                    first, future = ahead.popleft()
                    size -= first.bytes
                    yield first, future.result()
                ahead.append((image, pool.submit(_read, image, stamped)))
                size += image.bytes
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(image: _Image, stamped: _Stamped) -> _Content:
    place = image.real if isinstance(image.real, UrlPlace) else Path(image.real)
    with reading(place):
        spot = stamped(image)  # before it is read: what is written to it meanwhile shows later
        with place.open("rb") as file:
            data = bytes(read_up_to(file, limits.IMAGE_FILE_BYTES_MAX + 1))
    _check_size(str(image.real), len(data))
    if spot is not None and spot.stamp.bytes != len(data):
        raise SourceError(f"{place} changed while it was read; run the import again", str(place))
    return data, spot


def _to_arrow(root: Place, schema: pa.Schema, batch: list[tuple[str, bytes]]) -> pa.RecordBatch:
    parts = [path.split("/") for path, _ in batch]
    has_split = "split" in schema.names
    columns = {
        "path": [path for path, _ in batch],
        "image": [data for _, data in batch],
        "label": _codes(root, schema.field("label"), [part[1 if has_split else 0] for part in parts]),
    }
    if has_split:
        columns["split"] = _codes(root, schema.field("split"), [_SPLITS.get(part[0].lower(), "") for part in parts])
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def _codes(root: Place, column: pa.Field, names: list[str]) -> list[int]:
    codes = {name: code for code, name in enumerate(class_names(column) or [])}
    try:
        return [codes[name] for name in names]
    except KeyError:
        raise _changed(root) from None


def _changed(root: Place) -> SourceError:
    return SourceError(f"{root} changed while it was read; run the import again", str(root))
