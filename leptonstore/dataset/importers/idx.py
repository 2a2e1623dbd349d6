"""Import of IDX files: a directory of MNIST's shape, or one file of images with the labels that stand next to it.

    train-images-idx3-ubyte.gz  train-labels-idx1-ubyte.gz  t10k-images-idx3-ubyte.gz  t10k-labels-idx1-ubyte.gz

gives the columns image (fixed-shape tensor), label (class label, names "0".."max") and split ("train" rows first, then
"test"). Files without such a prefix, or of one split only, give image and label; without labels, image alone. Where a
file lies both packed and unpacked (torchvision keeps both), the unpacked one is read.

The lineage names files, lengths, shapes and digests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.importers.arrays import label_column, tensor_column
from leptonstore.dataset.importers.idx_format import IdxFile, read_header
from leptonstore.dataset.importers.reading import lineages_of, reading, rows_per_batch
from leptonstore.dataset.places import Place, place_of
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.errors import SourceError

_SUFFIX = re.compile(r"([-.]idx\d+(-\w+)?|[-.]idx|[-.]ubyte)(\.gz)?$", re.IGNORECASE)
_ROLE = re.compile(r"(?:(?P<prefix>.+)[-_.])?(?P<role>images|labels)", re.IGNORECASE)
_PREFIX = re.compile(r"(?:(?P<base>.+)[-_.])?(?P<split>train|t10k|test)", re.IGNORECASE)
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
_SPLIT_NAMES = ["train", "test"]
_LABEL_ROWS_PER_BLOCK = 1 << 20  # labels are a few bytes each: a block of them is a few MiB


@dataclass(frozen=True)
class _Pair:
    """Images and, where there are any, their labels; `split` is None for a pair without one."""

    images: IdxFile
    labels: IdxFile | None
    split: str | None


def is_idx_name(name: str) -> bool:
    """Whether a file is called as IDX files are: *.idx, *-ubyte, *-idx3-ubyte, *.idx3-ubyte, each also with .gz."""
    return _SUFFIX.search(name) is not None


def open_source(path: Place, labels: str | Place | None = None) -> Source:
    """A directory of IDX files, or one file of images (`labels`: its labels, when they do not stand next to it).

    image: fixed-shape tensor of the file's value type, semantic "image" when it is uint8 and H x W or H x W x C;
    label: class label. Reads headers and the labels (their largest value gives the class names). Raises SourceError.
    """
    with reading(path):
        is_directory = path.is_dir()
    if not is_directory:
        pairs = [_open_pair(path, place_of(labels) if labels is not None else _labels_beside(path), None)]
    elif labels is not None:
        raise SourceError(f"labels go with one file of images, but {path} is a directory; give the images file")
    else:
        pairs = _pairs_of_directory(path)
    _require_alike(pairs)
    schema = _schema_of(pairs)
    return Source(
        schema=schema,
        identity=("image",),
        batches=lambda: _batches(pairs, schema),
        rows=sum(pair.images.rows for pair in pairs),
        lineage={"format": "idx", "files": lineages_of([_told(file) for pair in pairs for file in _files_of(pair)])},
    )


# -- which files belong together ---------------------------------------------------------------------------------


def _parse_name(name: str) -> tuple[str, str]:
    """File name -> (prefix, "images" or "labels"). A name that says neither is one of images."""
    stem = _SUFFIX.sub("", name)
    match = _ROLE.fullmatch(stem)
    return (match["prefix"] or "", match["role"].lower()) if match else (stem, "images")


def _parse_prefix(prefix: str) -> tuple[str, str | None]:
    """Prefix -> (data set, split), split None where none is named: "emnist-t10k" -> ("emnist", "test")."""
    match = _PREFIX.fullmatch(prefix)
    return (match["base"] or "", _SPLITS[match["split"].lower()]) if match else (prefix, None)


def _labels_beside(images: Place) -> Place | None:
    """The labels file in the same directory whose name differs from that of `images` in its role alone."""
    prefix, role = _parse_name(images.name)
    if role == "labels":
        raise SourceError(f"{images} holds labels; give the file of images, or the directory", str(images))
    found = _groups_of(images.parent).get(prefix, {})
    return found.get("labels") if images.name in (path.name for path in found.values()) else None


def _groups_of(directory: Place) -> dict[str, dict[str, Place]]:
    """The IDX files of a directory: prefix -> role -> file, unpacked before packed, in the order of their names."""
    with reading(directory):
        names = sorted(entry.name for entry in directory.iterdir() if is_idx_name(entry.name) and entry.is_file())
    groups: dict[str, dict[str, Place]] = {}
    for name in names:  # "…-ubyte" sorts before "…-ubyte.gz"
        prefix, role = _parse_name(name)
        groups.setdefault(prefix, {}).setdefault(role, directory / name)
    return groups


def _pairs_of_directory(path: Place) -> list[_Pair]:
    groups = _groups_of(path)
    if not groups:
        raise SourceError(f"{path} holds no IDX files (such as train-images-idx3-ubyte.gz); check the path", str(path))
    for files in groups.values():
        if "images" not in files:
            raise SourceError(f"{files['labels']} has no images next to it; add them or move it away", str(path))
    if len(groups) == 1:
        (files,) = groups.values()
        return [_open_pair(files["images"], files.get("labels"), None)]
    named = {_parse_prefix(prefix): files for prefix, files in groups.items()}
    (base, _), *_ = named
    if set(named) != {(base, split) for split in _SPLIT_NAMES} or len(named) != len(groups):
        listed = ", ".join(files["images"].name for files in groups.values())
        raise SourceError(f"{path} holds several data sets ({listed}); give one file of images", str(path))
    halves = [(split, named[base, split]) for split in _SPLIT_NAMES]
    return [_open_pair(files["images"], files.get("labels"), split) for split, files in halves]


def _open_pair(images: Place, labels: Place | None, split: str | None) -> _Pair:
    image_file = read_header(images)
    if not image_file.row_shape:
        raise SourceError(f"{images} holds one number a row (labels?); give the file of images", str(images))
    if labels is None:
        return _Pair(image_file, None, split)
    label_file = read_header(labels)
    if label_file.row_shape or label_file.dtype.kind not in "ui":
        raise SourceError(f"{labels} holds {label_file.describe()}; labels are one integer a row", str(labels))
    if label_file.rows != image_file.rows:
        raise SourceError(
            f"{labels} holds {label_file.rows} labels for the {image_file.rows} images of {images.name}; "
            "give the labels that belong to it",
            str(labels),
        )
    return _Pair(image_file, label_file, split)


def _require_alike(pairs: list[_Pair]) -> None:
    first = pairs[0]
    for pair in pairs[1:]:
        if (pair.labels is None) != (first.labels is None):
            bare = pair if pair.labels is None else first
            raise SourceError(f"{bare.images.path} has no labels, the other split has; add them", str(bare.images.path))
        if (pair.images.row_shape, pair.images.dtype) != (first.images.row_shape, first.images.dtype):
            raise SourceError(
                f"{pair.images.path} holds {pair.images.describe()}, {first.images.path.name} "
                f"{first.images.describe()}; import them one by one",
                str(pair.images.path),
            )


# -- rows --------------------------------------------------------------------------------------------------------


def _schema_of(pairs: list[_Pair]) -> pa.Schema:
    images = pairs[0].images
    is_image = images.dtype == np.uint8 and len(images.row_shape) in (2, 3)
    value_type = pa.from_numpy_dtype(images.dtype.newbyteorder("="))
    fields = [tensor_field("image", value_type, images.row_shape, "image" if is_image else "")]
    if pairs[0].labels is not None:
        classes = max(_largest_label(pair.labels) for pair in pairs if pair.labels is not None) + 1
        fields.append(class_label_field("label", [str(label) for label in range(classes)]))
    if pairs[0].split is not None:
        fields.append(class_label_field("split", _SPLIT_NAMES))
    return pa.schema(fields)


def _largest_label(file: IdxFile) -> int:
    largest = 0
    for block in file.blocks(_LABEL_ROWS_PER_BLOCK):
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= limits.CLASSES_MAX:
            wrong = low if low < 0 else high
            raise SourceError(
                f"{file.path} holds the label {wrong}; labels are 0 to {limits.CLASSES_MAX - 1}", str(file.path)
            )
        largest = max(largest, high)
    return largest


def _batches(pairs: list[_Pair], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = rows_per_batch(pairs[0].images.row_bytes)
    for pair in pairs:
        # strict: both streams run to their end, where each checks its length
        for image_block, label_block in zip(pair.images.blocks(rows), _label_blocks(pair, rows), strict=True):
            columns = [tensor_column(schema.field("image"), image_block)]
            if label_block is not None:
                columns.append(label_column(schema.field("label"), label_block))
            if pair.split is not None:
                code = _SPLIT_NAMES.index(pair.split)
                columns.append(label_column(schema.field("split"), np.full(len(image_block), code)))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _label_blocks(pair: _Pair, rows: int) -> Iterator[np.ndarray | None]:
    if pair.labels is None:
        yield from [None] * math.ceil(pair.images.rows / rows)
    else:
        yield from pair.labels.blocks(rows)


def _files_of(pair: _Pair) -> list[IdxFile]:
    return [pair.images] if pair.labels is None else [pair.images, pair.labels]


def _told(file: IdxFile) -> tuple[Place, dict[str, Any]]:
    return file.path, {"type": file.dtype.name, "shape": list(file.shape)}
