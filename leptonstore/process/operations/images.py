"""Images in columns: image.decode makes tensors of files, image.resize and image.crop change their size and leave them what they are.

A column of images holds files (bytes, semantic "image") or is a uint8 tensor, H x W or H x W x C. What a file's pixels are is said in
process/images.py: upright, grey or RGB, within bounds. A row whose file does not decode is in `failed`; a null stays null.

Files are written as JPEG or PNG. One that need not change (its size and format are right) is kept byte for byte.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import CODEC, SEMANTIC, semantic_of, tensor_field, tensor_shape
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, SchemaError, SourceError
from leptonstore.limits import IMAGE_PIXELS_MAX, PREPARED_EDGE_MAX
from leptonstore.process import columns, images
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.operations.looked_up import looked_up
from leptonstore.process.operations.parameters import (
    made_of,
    one_of,
    require_stored,
    whole_numbers,
)

Bits = NDArray[np.bool_]
FORMATS = ("jpeg", "png")
KEEP = "keep"  # JPEG stays JPEG; every other format, none of which everybody reads, becomes PNG
QUALITY_MAX = 100


@dataclass(frozen=True)
class Decode(RowOperation):
    """Decodes a column of files to a uint8 tensor column. One of tensors is brought to the shape likewise.

    shape: (H, W) or (H, W, 1) makes images grey, (H, W, 3) RGB; sizes are stretched (bilinear). None given: the size that most files of
    the version have, at most PREPARED_EDGE_MAX, grey if all are; their headers are read before anything runs.
    into: name of the tensor column; by default it takes the place of the files.
    """

    name: ClassVar[str] = "image.decode"
    column: str
    shape: Sequence[int] = ()
    into: str = ""

    def __post_init__(self) -> None:
        shape = whole_numbers(self.name, "shape", self.shape, (0, 2, 3))
        if shape[2:] not in ((), (1,), (3,)) or _pixels(shape) > IMAGE_PIXELS_MAX:
            raise BadInput(f"{self.name}: shape is [H, W], [H, W, 1] or [H, W, 3], not {list(shape)}")
        object.__setattr__(self, "shape", shape)

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the most common shape, where none was given."""
        if self.shape:
            return self
        self._field(schema)
        require_stored(self.name, source, schema, self.column, "give `shape`")
        words = {"common shape": self.column, "pillow": images.pillow_version()}
        found = looked_up(source, words, lambda: common_shape(source, self.column))
        return replace(self, shape=found)

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The column of images."""
        return (self._field(schema).name,)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the tensors."""
        return made_of(self.name, schema, self.column, self._made(self._field(schema)))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The tensors."""
        return (self.into or self.column,)

    def libraries(self) -> dict[str, str]:
        """The decoders."""
        return images.codec_versions()

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Tensors of all images."""
        field = self._made(batch.schema.field(0))
        values, failed = _each(batch, lambda pixels, _: images.fit(pixels, tuple(self.shape)))
        return Made({field.name: _tensors(field, values, columns.null_mask(batch.column(0)))}, failed=failed)

    def _field(self, schema: pa.Schema) -> pa.Field:
        return _image_field(self.name, schema, self.column)

    def _made(self, field: pa.Field) -> pa.Field:
        if not self.shape:
            raise SchemaError(f"{self.name}: it is not known which shape images are to have; give `shape`")
        made = tensor_field(self.into or self.column, pa.uint8(), tuple(self.shape), "image")
        return made.with_nullable(field.nullable)


@dataclass(frozen=True)
class _Sized(RowOperation):
    """What image.resize and image.crop have in common."""

    column: str
    size: Sequence[int] = ()
    format: str = KEEP
    quality: int = 90
    into: str = ""

    def __post_init__(self) -> None:
        size = whole_numbers(self.name, "size", self.size, (0, 2))
        if _pixels(size) > IMAGE_PIXELS_MAX:
            raise BadInput(f"{self.name}: images of {_pixels(size):,} pixels; the limit is {IMAGE_PIXELS_MAX:,}")
        object.__setattr__(self, "size", size)
        one_of(self.name, "format", self.format, (KEEP, *FORMATS))
        if whole_numbers(self.name, "quality", self.quality, (1,))[0] > QUALITY_MAX:
            raise BadInput(f"{self.name}: quality is from 1 to {QUALITY_MAX}, not {self.quality}")

    @abstractmethod
    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """What becomes of an image of this size. Raises SourceError when that cannot be."""

    @abstractmethod
    def sized(self, pixels: images.Pixels) -> images.Pixels:
        """The image in its new size. Raises SourceError as `size_of`."""

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The column of images."""
        self._made(_image_field(self.name, schema, self.column))
        return (self.column,)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the images in their new size."""
        return made_of(self.name, schema, self.column, self._made(_image_field(self.name, schema, self.column)))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The images."""
        return (self.into or self.column,)

    def libraries(self) -> dict[str, str]:
        """Decoder and encoders."""
        return images.codec_versions()

    def apply(self, batch: pa.RecordBatch) -> Made:
        """All images in their new size."""
        before, field = batch.column(0), self._made(batch.schema.field(0))
        if tensor_shape(field) is not None:
            values, failed = _each(batch, lambda pixels, _: self.sized(pixels))
            return Made({field.name: _tensors(field, values, columns.null_mask(before))}, failed=failed)
        files, failed = _each(batch, self._file)
        return Made({field.name: pa.array(files, field.type)}, failed=failed)

    def _file(self, pixels: images.Pixels, file: Buffer) -> Buffer:
        before = images.probe(file).format.lower()
        wanted = ("jpeg" if before == "jpeg" else "png") if self.format == KEEP else self.format
        made = self.sized(pixels)
        if wanted == before and made.shape == pixels.shape:
            return file
        options = {"quality": self.quality} if wanted == "jpeg" else {}
        return images.encode(made, wanted.upper(), **options)

    def _made(self, field: pa.Field) -> pa.Field:
        name, shape = self.into or self.column, tensor_shape(field)
        if shape is None:
            codec = field.metadata.get(CODEC, b"mixed").decode()
            after = codec if self.format == KEEP and codec in FORMATS else self.format
            metadata = {**field.metadata, CODEC: b"mixed" if after == KEEP else after.encode()}
            return field.with_name(name).with_metadata(metadata)
        if self.format != KEEP:
            raise SchemaError(f"{self.name}: column {self.column!r} holds decoded images, which have no format")
        try:
            size = self.size_of(*shape[:2])
        except SourceError as error:
            raise SchemaError(f"{self.name}: column {self.column!r}: {error}") from None
        made = tensor_field(name, pa.uint8(), (*size, *shape[2:]), "image")
        return made.with_nullable(field.nullable).with_metadata({**(field.metadata or {}), SEMANTIC: b"image"})


@dataclass(frozen=True)
class Resize(_Sized):
    """Stretches images (bilinear, averaging where they shrink).

    size: (H, W) of all.
    shorter_max: or the shorter edge becomes this many pixels, the other in proportion; smaller images stay as they are.
    format: of files, "jpeg", "png", or "keep": JPEG stays JPEG, all others become PNG. quality: of JPEG, 1 to 100.
    into: name of the new column; by default it takes the place of the old one.
    """

    name: ClassVar[str] = "image.resize"
    shorter_max: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.size) == (self.shorter_max is not None):
            raise BadInput(f"{self.name}: give either `size` or `shorter_max`")
        if self.shorter_max is not None:
            whole_numbers(self.name, "shorter_max", self.shorter_max, (1,))

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """As `size` or `shorter_max` says."""
        if self.shorter_max is None:
            return self.size[0], self.size[1]
        scale = min(1.0, self.shorter_max / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def sized(self, pixels: images.Pixels) -> images.Pixels:
        """Stretched."""
        return images.resize(pixels, self.size_of(*pixels.shape[:2]))


@dataclass(frozen=True)
class Crop(_Sized):
    """Cuts a part out of each image; one that is too small for it fails.

    size: (H, W) from the middle. box: or (top, left, H, W), in pixels from the upper left corner.
    format: of files, "jpeg", "png", or "keep": JPEG stays JPEG, all others become PNG. quality: of JPEG, 1 to 100.
    into: name of the new column; by default it takes the place of the old one.
    """

    name: ClassVar[str] = "image.crop"
    box: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        box = whole_numbers(self.name, "box", self.box, (0, 4), least=0)
        if bool(self.size) == bool(box) or 0 in box[2:]:
            raise BadInput(
                f"{self.name}: give either `size` or `box` (top, left, and a height and width of at least 1)"
            )
        object.__setattr__(self, "box", box)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Of the part."""
        _, _, *size = self._part(height, width)
        return size[0], size[1]

    def sized(self, pixels: images.Pixels) -> images.Pixels:
        """The part."""
        top, left, height, width = self._part(*pixels.shape[:2])
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])

    def _part(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.box:
            top, left, high, wide = self.box
        else:
            high, wide = self.size
            top, left = (height - high) // 2, (width - wide) // 2
        if top < 0 or left < 0 or top + high > height or left + wide > width:
            raise SourceError(
                f"the image has {height} x {width} pixels, and a part of it was asked for that it has not"
            )
        return top, left, high, wide


def common_shape(ds: Dataset, column: str) -> tuple[int, ...]:
    """The shape in which files of a column are decoded where nobody says one: the most common size, scaled down to PREPARED_EDGE_MAX
    where it is larger (a decoded photograph has 36 MB); H x W when every file is grey, else H x W x 3.

    Reads the files' headers. Those that are no images have no say. Raises BadInput when none is.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    colour = False
    for _, batch in ds.iter_batches(columns=[column]):
        for value in columns.byte_values(batch.column(0)):
            try:
                info = images.probe(value) if value is not None else None
            except SourceError:
                continue
            if info is not None:
                sizes[info.height, info.width] += 1
                colour |= info.channels == 3
    if not sizes:
        raise BadInput(f"{ds.name} has no images in column {column!r} ({len(ds)} rows); import some first")
    height, width = max(sizes, key=lambda pair: (sizes[pair], pair[0] * pair[1], pair))
    scale = min(1.0, PREPARED_EDGE_MAX / max(height, width))
    return (max(1, round(height * scale)), max(1, round(width * scale)), *((3,) if colour else ()))


def _image_field(operation: str, schema: pa.Schema, column: str) -> pa.Field:
    field = columns.field_of(operation, schema, column)
    if semantic_of(field) != "image" or column not in [found.name for found in columns.image_columns(schema)]:
        raise SchemaError(
            f"{operation}: column {column!r} ({field.type}) holds no images: bytes or a uint8 tensor H x W or H x W x C, with the "
            'semantic type "image"'
        )
    shape = tensor_shape(field)
    if shape is not None and shape[2:] not in ((), (1,), (3,)):
        raise SchemaError(f"{operation}: column {column!r} has images of {shape[2]} channels; 1 and 3 are known")
    return field


def _each(
    batch: pa.RecordBatch, function: Callable[[images.Pixels, Buffer], Any]
) -> tuple[list[Any], Mapping[int, str]]:
    """(`function` of the pixels and the file of each row, None where there is none; why rows have failed). batch: one column of images.

    function: from any thread; may raise SourceError. For decoded images the file is empty.
    """
    column, name = batch.column(0), batch.schema.names[0]
    out: list[Any] = [None] * batch.num_rows
    failed: dict[int, str] = {}

    def one(pixels: images.Pixels, file: Buffer) -> Any:
        try:
            return function(pixels, file)
        except SourceError as error:
            return error

    if isinstance(column.type, pa.FixedShapeTensorType):
        pictures = columns.tensor_values(column)
        rows = np.flatnonzero(~columns.null_mask(column)).tolist()
        found = [one(pictures[row], b"") for row in rows]
    else:
        files = columns.byte_values(column)
        rows = [row for row, file in enumerate(files) if file is not None]
        found = images.map_decoded_files(one, [file for file in files if file is not None], name)
    for row, value in zip(rows, found, strict=True):
        if isinstance(value, SourceError):
            failed[row] = str(value)
        else:
            out[row] = value
    return out, failed


def _tensors(field: pa.Field, values: Sequence[images.Pixels | None], missing: Bits) -> pa.Array:
    """A tensor column; zeros where there is no value."""
    shape = tensor_shape(field)
    assert shape is not None
    flat = np.zeros((len(values), *shape), np.uint8)
    for row, value in enumerate(values):
        if value is not None:
            flat[row] = value
    return tensor_column(field, flat, missing)


def _pixels(shape: Sequence[int]) -> int:
    return int(np.prod(shape[:2], dtype=np.int64)) if shape else 0
