"""One column: which sketches its type has, how they are made of some rows of it, and what they say together.

    numbers   booleans, integers, floats, decimals (as float64)             texts   strings and bytes
    times     dates, times, timestamps, durations: integers of their unit   lists   lengths, and all elements that are numbers
    elements  tensors and fixed lists of numbers: all elements              images  decoded (uint8 tensors) or files
    counted   all else (structs, maps, …): rows and nulls, which nodes tell: no page is read

The fields of a struct are columns as well, named "struct.field"; null where the struct is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset.schema import class_names, semantic_of, shown_type
from leptonstore.dataset.values import Column
from leptonstore.errors import FormatDamaged
from leptonstore.process import columns, images
from leptonstore.process.statistics.numbers import NumberSketch
from leptonstore.process.statistics.pictures import ImageSketch
from leptonstore.process.statistics.record import pack, part_of, take, unpack, within
from leptonstore.process.statistics.results import ColumnAnalysis, TopValue, TopValues, ValueCount
from leptonstore.process.statistics.texts import TextSketch, as_text
from leptonstore.process.statistics.times import is_time, time_text, unit_of

VERSION = 2  # raised whenever the same pages would give another sketch


class Kind(StrEnum):
    """What is known of a column."""

    NUMBERS = "numbers"
    TIMES = "times"
    ELEMENTS = "elements"
    TEXTS = "texts"
    LISTS = "lists"
    IMAGES = "images"
    COUNTED = "counted"


@dataclass(frozen=True)
class Watched:
    """A column of the schema, or a field of a struct, and what is known of columns like it.

    source: the column of the schema. path: which child of it, of that which child, …; empty: itself. image: of a column of images.
    """

    field: pa.Field
    kind: Kind
    image: columns.ImageColumn | None
    source: str
    path: tuple[int, ...] = ()

    @classmethod
    def of(cls, schema: pa.Schema, names: Sequence[str]) -> list[Watched]:
        """Some columns of a schema."""
        images = {image.name: image for image in columns.image_columns(schema)}
        found: list[Watched] = []
        for name in names:
            field, image = schema.field(name), images.get(name)
            found.append(cls(field, _kind(field, image), image, name))
            if pa.types.is_struct(field.type):
                found += [one for one in cls._fields_of(field, name, ()) if one.field.name not in schema.names]
        return found

    @classmethod
    def _fields_of(cls, struct: pa.Field, source: str, path: tuple[int, ...]) -> list[Watched]:
        found: list[Watched] = []
        for at, child in enumerate(struct.type):
            field, here = child.with_name(f"{struct.name}.{child.name}"), (*path, at)
            found.append(cls(field, _kind(field, None), None, source, here))
            if pa.types.is_struct(child.type):
                found += cls._fields_of(field, source, here)
        return found

    def taken_from(self, column: Column) -> Column:
        """Its values, of those of its source."""
        for at in self.path:
            column = Column(column.values.flatten()[at])  # not field(at), which knows nothing of the struct's own nulls
        return column

    @property
    def names(self) -> list[str] | None:
        """Of the classes, for a column of class labels."""
        return None if self.path else class_names(self.field)

    @property
    def number_kind(self) -> str:
        """How its numbers are kept: "f", "i" or "u"."""
        if self.kind is Kind.TIMES:
            return "i"
        kind = _element_type(self.field.type)
        if pa.types.is_boolean(kind) or pa.types.is_unsigned_integer(kind):
            return "u"
        return "i" if pa.types.is_integer(kind) else "f"

    def recipe(self) -> str:
        """What decides, beside the pages, what its sketch is."""
        shape = None if self.image is None else self.image.shape
        found = f"{VERSION} {self.kind} {self.field.type} {shape} {self.path}"
        if self.image is not None and shape is None:  # files: a decoder says what their pixels are
            found += f" {sorted(images.decoders().items())}"
        return found

    @property
    def shown_type(self) -> str:
        """Its type, for people."""
        return shown_type(self.field.type)


def _element_type(data_type: pa.DataType) -> pa.DataType:
    if isinstance(data_type, pa.FixedShapeTensorType):
        data_type = data_type.storage_type
    kinds = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return data_type.value_type if any(kind(data_type) for kind in kinds) else data_type


def _kind(field: pa.Field, image: columns.ImageColumn | None) -> Kind:
    if image is not None:
        return Kind.IMAGES
    data_type, element = field.type, _element_type(field.type)
    if columns.is_number(data_type) or pa.types.is_decimal(data_type):
        return Kind.NUMBERS
    if is_time(data_type):
        return Kind.TIMES
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        return Kind.LISTS
    if columns.is_number(element):
        return Kind.ELEMENTS
    return Kind.TEXTS if columns.has_lengths(data_type) else Kind.COUNTED


@dataclass(frozen=True)
class ColumnSketch:
    """What is known of some rows of a column. decimals: the least and the greatest, as text."""

    rows: int
    nulls: int
    numbers: NumberSketch | None = None
    texts: TextSketch | None = None
    lengths: NumberSketch | None = None
    images: ImageSketch | None = None
    decimals: tuple[str, str] | None = None

    @classmethod
    def empty(cls, watched: Watched) -> ColumnSketch:
        """Of no rows."""
        return cls.of(watched, Column(pa.array([], watched.field.type)), lambda column: [])

    @classmethod
    def of(cls, watched: Watched, column: Column, resolved: Callable[[Column], Any]) -> ColumnSketch:
        """Of rows as pages keep them. resolved(column): the plain values, some rows after the others; asked for of images only."""
        values = column.values
        rows, nulls = len(values), values.null_count
        match watched.kind:
            case Kind.NUMBERS if pa.types.is_decimal(values.type):
                sketch = NumberSketch.of(_present(values.cast(pa.float64(), safe=False)))
                found = pc.min_max(values)
                ends = (str(found["min"].as_py()), str(found["max"].as_py())) if found["min"].is_valid else None
                return cls(rows, nulls, sketch, decimals=ends)
            case Kind.NUMBERS:
                return cls(rows, nulls, NumberSketch.of(_present(values)))
            case Kind.TIMES:
                plain = pa.int32() if values.type.bit_width == 32 else pa.int64()
                return cls(rows, nulls, NumberSketch.of(_present(values.view(plain)).astype(np.int64)))
            case Kind.ELEMENTS:
                storage = values.storage if isinstance(values, pa.ExtensionArray) else values
                return cls(rows, nulls, NumberSketch.of(_present(storage.flatten()), values_matter=False))
            case Kind.TEXTS:
                ordered = pa.types.is_string(watched.field.type) or pa.types.is_large_string(watched.field.type)
                return cls(rows, nulls, texts=TextSketch.of(column, ordered))
            case Kind.LISTS:
                lengths = NumberSketch.of(columns.value_lengths(values), values_matter=False)
                elements = None
                if columns.is_number(values.type.value_type):
                    elements = NumberSketch.of(_present(values.flatten()), values_matter=False)
                return cls(rows, nulls, elements, lengths=lengths)
            case Kind.IMAGES:
                sketch_ = ImageSketch()
                assert watched.image is not None
                if watched.image.shape is not None:
                    sketch_.add_decoded(values, watched.image.shape)
                    return cls(rows, nulls, images=sketch_)
                for array in resolved(column):
                    sketch_.add_encoded(array, watched.field.name)
                return cls(rows, nulls, images=sketch_, texts=TextSketch.of(column, ordered=False))
            case _:
                return cls(rows, nulls)

    @classmethod
    def merged(cls, parts: Sequence[ColumnSketch]) -> ColumnSketch:
        """Of all rows of all parts of one column, in row order."""
        if len(parts) == 1:
            return parts[0]
        texts = [part.texts for part in parts if part.texts is not None]
        numbers = [part.numbers for part in parts if part.numbers is not None]
        lengths = [part.lengths for part in parts if part.lengths is not None]
        images = [part.images for part in parts if part.images is not None]
        ends = [Decimal(end) for part in parts for end in part.decimals or ()]
        return cls(
            sum(part.rows for part in parts),
            sum(part.nulls for part in parts),
            NumberSketch.merged(numbers) if numbers else None,
            TextSketch.merged(texts) if texts else None,
            NumberSketch.merged(lengths) if lengths else None,
            ImageSketch.merged(images) if images else None,
            (str(min(ends)), str(max(ends))) if ends else None,
        )

    # -- what it says ------------------------------------------------------------------------------------------------

    def analysis(self, watched: Watched) -> ColumnAnalysis:
        """For people."""
        field = watched.field
        said: dict[str, Any] = {}
        if self.images is not None:
            said |= {"image": self.images.stats(), "numeric": self.images.pixels().stats()}
        if self.texts is not None:
            said |= {"lengths": self.texts.lengths.stats(), "cardinality": self.texts.cardinality()}
            if watched.kind is Kind.TEXTS:
                said["top"] = self.texts.top(limits.STATISTICS_TOP)
            if self.texts.ends is not None:
                said["least"], said["greatest"] = (as_text(_whole(end)) for end in self.texts.ends)
        if self.lengths is not None:
            said["lengths"] = self.lengths.stats()
        if self.numbers is not None:
            said |= self._said_of_numbers(self.numbers, watched)
        if self.decimals is not None:
            said["least"], said["greatest"] = self.decimals
        return ColumnAnalysis(field.name, watched.shown_type, semantic_of(field), self.rows, self.nulls, **said)

    def _said_of_numbers(self, numbers: NumberSketch, watched: Watched) -> dict[str, Any]:
        stats, data_type = numbers.stats(), watched.field.type
        if watched.kind in (Kind.ELEMENTS, Kind.LISTS):
            return {"numeric": stats}
        names = watched.names
        shown: Callable[[Any], str] = str
        if watched.kind is Kind.TIMES:
            shown = lambda value: time_text(value, data_type)  # noqa: E731 - a name would say no more
        elif names:
            shown = lambda value: names[value] if 0 <= value < len(names) else str(value)  # noqa: E731
        elif pa.types.is_boolean(data_type):
            shown = lambda value: "true" if value else "false"  # noqa: E731
        top, error = numbers.top(limits.STATISTICS_TOP)
        said: dict[str, Any] = {
            "cardinality": numbers.cardinality(),
            "top": TopValues(tuple(TopValue(shown(value), rows) for value, rows in top), error),
        }
        if watched.kind is Kind.TIMES:
            said |= {"times": stats, "unit": unit_of(data_type)}
            if numbers.least is not None:
                said |= {"least": shown(numbers.least), "greatest": shown(numbers.greatest)}
            return said
        said["numeric"] = stats
        counts = numbers.counts()
        if counts is not None and (names is not None or data_type in (pa.bool_(), pa.int8(), pa.uint8())):
            known = dict(enumerate(names or ()))
            said["distinct"] = tuple(ValueCount(int(v), known.get(int(v), ""), n) for v, n in counts.items())
        return said

    # -- kept --------------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """To be kept."""
        arrays: dict[str, NDArray[Any]] = {"rows": np.array([self.rows, self.nulls], np.int64)}
        for name in ("numbers", "texts", "lengths", "images"):
            part = getattr(self, name)
            arrays |= {} if part is None else within(name, part.arrays())
        if self.decimals is not None:
            arrays["decimals"] = np.frombuffer("\n".join(self.decimals).encode(), np.uint8)
        return pack(arrays)

    @classmethod
    def decode(cls, data: bytes, watched: Watched, rows: int) -> ColumnSketch:
        """What was kept of `rows` rows of a column. Raises FormatDamaged."""
        arrays = unpack(data)
        held, nulls = take(arrays, "rows", "<i8", 2).tolist()
        numbers, texts, lengths, images = (part_of(name, arrays) for name in ("numbers", "texts", "lengths", "images"))
        decimals = None
        if "decimals" in arrays:
            decimals = _two(take(arrays, "decimals", "u1").tobytes())
        found = cls(
            held,
            nulls,
            NumberSketch.from_arrays(numbers, watched.number_kind) if numbers else None,
            TextSketch.from_arrays(texts) if texts else None,
            NumberSketch.from_arrays(lengths, "i") if lengths else None,
            ImageSketch.from_arrays(images) if images else None,
            decimals,
        )
        wanted = {
            Kind.NUMBERS: found.numbers, Kind.TIMES: found.numbers, Kind.ELEMENTS: found.numbers, Kind.TEXTS: found.texts,
            Kind.LISTS: found.lengths, Kind.IMAGES: found.images,
        }  # fmt: skip
        if held != rows or not 0 <= nulls <= rows or (watched.kind in wanted and wanted[watched.kind] is None):
            raise FormatDamaged("sketch is not of these rows")
        return found


def _two(data: bytes) -> tuple[str, str]:
    try:
        least, greatest = data.decode("ascii").split("\n")
        if Decimal(least) <= Decimal(greatest):
            return least, greatest
    except (ValueError, ArithmeticError):
        pass
    raise FormatDamaged("sketch has not two decimals")


def _present(array: pa.Array) -> NDArray[Any]:
    """The non-null values of numbers, flat; booleans become uint8."""
    found: NDArray[Any] = columns.numbers(array)
    return found


def _whole(data: bytes) -> bytes:
    """Without half a character at its end."""
    return data.decode("utf-8", "ignore").encode()
