"""Exact statistics of a dataset version or a view of it, from one stream of record batches.

    numbers and tensors   count, nulls, min, max, mean, population standard deviation, a histogram of 32 equal bins
                          from min to max (as numpy.histogram makes it); NaN and infinities are counted apart
    class labels, 8 bit   how often each value occurs
    strings and bytes     the same statistics of their lengths (bytes; elements for lists)
    images                sizes with their counts, mean and deviation of each channel, statistics of the pixel values
    class balance         rows per class, over all rows and in each split
    sizes                 logical and stored bytes, what deduplication and compression each save

Values of 8 and 16 bits, lengths and pixels are counted, so that their statistics are exact in one pass; wider numbers
take a second pass over their own columns, because a histogram needs min and max. Memory: one batch, 8 bytes for each
of at most 65,536 counted values, 16 for each distinct length.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.errors import SourceError
from leptonstore.process import columns, images
from leptonstore.process.moments import Numbers, counter_for
from leptonstore.process.statistics.results import (
    Analysis,
    ClassBalance,
    ColumnAnalysis,
    ImageStats,
    SizeCount,
    Sizes,
    ValueCount,
)


def analyse(ds: Dataset) -> Analysis:
    """Read all columns once (wide numeric ones twice) and describe them. Encoded images are decoded, in a few threads.

    Raises MissingExtra when there are encoded images and no Pillow.
    """
    schema = ds.schema
    found = {image.name: image for image in columns.image_columns(schema)}
    watchers = [_watch(field_, found.get(field_.name)) for field_ in schema]
    splits = columns.split_names(schema)
    balances = [_Balance(name, names, splits) for name, names in columns.label_columns(schema).items()]
    split_rows: Counter[int] = Counter()
    for _, batch in ds.iter_batches():
        for watcher, array in zip(watchers, batch.columns, strict=True):
            watcher.add(array)
        split = columns.indices(batch.column(columns.SPLIT)) if splits else None
        if split is not None:
            split_rows.update(split.tolist())
        for balance in balances:
            balance.add(columns.indices(batch.column(balance.column)), split)
    again = [watcher.field.name for watcher in watchers if watcher.needs_second_pass]
    if again:
        by_name = {watcher.field.name: watcher for watcher in watchers}
        for _, batch in ds.iter_batches(columns=again):
            for name, array in zip(batch.schema.names, batch.columns, strict=True):
                by_name[name].add_again(array)
    return Analysis(
        dataset=ds.name,
        commit=ds.commit,
        fingerprint=ds.fingerprint,
        rows=len(ds),
        splits={name: split_rows[index] for index, name in enumerate(splits)},
        columns=tuple(watcher.result() for watcher in watchers),
        balance=tuple(balance.result() for balance in balances),
        sizes=_sizes(ds),
    )


def _sizes(ds: Dataset) -> Sizes:
    stats = ds.stats()
    return Sizes(stats.logical_bytes, stats.unique_bytes, stats.stored_bytes)


@dataclass
class _Watcher:
    """Gathers one column: what every column has. Subclasses add the statistics that its type allows."""

    field: pa.Field
    rows: int = 0
    nulls: int = 0

    needs_second_pass = False

    def add(self, array: pa.Array) -> None:
        """Take in one batch of the column."""
        self.rows += len(array)
        self.nulls += array.null_count

    def add_again(self, array: pa.Array) -> None:
        """Take in one batch of the second pass."""
        raise AssertionError(f"{self.field.name} asked for no second pass")

    def parts(self) -> dict[str, Any]:
        """The fields of ColumnAnalysis that this kind of column has."""
        return {}

    def result(self) -> ColumnAnalysis:
        """What was gathered."""
        shown = str(self.field.type)
        if isinstance(self.field.type, pa.FixedShapeTensorType):
            shape = " x ".join(str(edge) for edge in self.field.type.shape)
            shown = f"tensor of {self.field.type.value_type}, {shape}"
        return ColumnAnalysis(self.field.name, shown, semantic_of(self.field), self.rows, self.nulls, **self.parts())


@dataclass
class _NumberWatcher(_Watcher):
    """Numbers, booleans and tensors of numbers."""

    numbers: Numbers = field(init=False)

    def __post_init__(self) -> None:
        tensor = isinstance(self.field.type, pa.FixedShapeTensorType)
        value_type = self.field.type.value_type if tensor else self.field.type
        self.numbers = counter_for(columns.numbers(pa.array([], type=value_type)).dtype)
        self.needs_second_pass = self.numbers.needs_second_pass

    def add(self, array: pa.Array) -> None:
        super().add(array)
        self.numbers.add(columns.numbers(array))

    def add_again(self, array: pa.Array) -> None:
        self.numbers.add_again(columns.numbers(array))

    def parts(self) -> dict[str, Any]:
        distinct = None
        names = class_names(self.field)
        if not isinstance(self.field.type, pa.FixedShapeTensorType) and (
            names is not None or self.field.type in (pa.bool_(), pa.int8(), pa.uint8())
        ):
            seen = self.numbers.counts()
            shown = dict(enumerate(names or ()))
            distinct = None if seen is None else tuple(ValueCount(v, shown.get(v, ""), n) for v, n in seen.items())
        return {"numeric": self.numbers.result(), "distinct": distinct}


@dataclass
class _LengthWatcher(_Watcher):
    """Strings, binaries and lists."""

    lengths: Numbers = field(default_factory=lambda: counter_for(np.dtype("int64"), sparse=True))

    def add(self, array: pa.Array) -> None:
        super().add(array)
        self.lengths.add(columns.value_lengths(array))

    def parts(self) -> dict[str, Any]:
        return {"lengths": self.lengths.result()}


@dataclass
class _ImageWatcher(_Watcher):
    """Images, decoded or encoded: pixel values are counted per channel, so that everything else follows from counts."""

    shape: tuple[int, ...] | None = None
    sizes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    grey: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    colour: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))
    undecodable: int = 0
    lengths: Numbers = field(default_factory=lambda: counter_for(np.dtype("int64"), sparse=True))

    def add(self, array: pa.Array) -> None:
        super().add(array)
        if self.shape is not None:
            values = columns.tensor_values(array)
            values = values[~columns.null_mask(array)] if array.null_count else values
            height, width, channels = (*self.shape, 1)[:3]
            self._count(_channel_counts(values), (height, width, channels), len(values))
            return
        self.lengths.add(columns.value_lengths(array))
        present = [value for value in columns.byte_values(array) if value is not None]
        for result in images.map_decoded(_size_and_counts, present, self.field.name):
            if isinstance(result, SourceError):
                self.undecodable += 1
            else:
                self._count(result[1], result[0], 1)

    def _count(self, counts: NDArray[np.int64], size: tuple[int, int, int], rows: int) -> None:
        self.sizes[size] += rows
        if len(counts) == 3:
            self.colour += counts
        else:
            self.grey += counts.sum(axis=0)

    def parts(self) -> dict[str, Any]:
        coloured = bool(self.colour.any())
        channels = [Numbers.of_counts(self.grey + one) for one in (self.colour if coloured else [np.int64(0)])]
        stats = [channel.result() for channel in channels]
        ordered = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        image = ImageStats(
            sizes=tuple(SizeCount(*size, rows) for size, rows in ordered if rows),
            channel_means=tuple(one.mean for one in stats if one.mean is not None),
            channel_stds=tuple(one.std for one in stats if one.std is not None),
            undecodable=self.undecodable,
        )
        pixels = Numbers.of_counts(self.grey + self.colour.sum(axis=0)).result()
        return {"numeric": pixels, "image": image, "lengths": None if self.shape else self.lengths.result()}


def _watch(field_: pa.Field, image: columns.ImageColumn | None) -> _Watcher:
    """The gatherer for a column's type."""
    if image is not None:
        return _ImageWatcher(field_, shape=image.shape)
    value_type = field_.type.value_type if isinstance(field_.type, pa.FixedShapeTensorType) else field_.type
    if columns.is_number(value_type):
        return _NumberWatcher(field_)
    return _LengthWatcher(field_) if columns.has_lengths(field_.type) else _Watcher(field_)


def _channel_counts(pixels: images.Pixels) -> NDArray[np.int64]:
    """How often each value 0 to 255 occurs: (1, 256) for grey (and for channel counts that are not 3), (3, 256) for
    colour. `pixels` is (n, H, W) or (n, H, W, C)."""
    if pixels.ndim == 4 and pixels.shape[-1] == 3:
        return np.stack([Numbers.count_bytes(pixels[..., channel]) for channel in range(3)])
    return Numbers.count_bytes(pixels)[None]


def _size_and_counts(image: images.Pixels) -> tuple[tuple[int, int, int], NDArray[np.int64]]:
    """Size and pixel counts of one decoded image; runs in a decoding thread."""
    height, width, channels = (*image.shape, 1)[:3]
    return (height, width, channels), _channel_counts(image[None])


class _Balance:
    """Counts rows by split and class."""

    def __init__(self, column: str, names: list[str], splits: list[str]) -> None:
        self.column = column
        self.names = names
        self.splits = splits
        # One more row and column than there are names: the last ones count rows without a (valid) split or class.
        self.table = np.zeros((len(splits) + 1, len(names) + 1), dtype=np.int64)

    def add(self, labels: NDArray[np.int64], split: NDArray[np.int64] | None) -> None:
        """Take in the class and split indices of one batch."""
        width = len(self.names) + 1
        label = np.where((labels >= 0) & (labels < len(self.names)), labels, len(self.names))
        side = np.zeros_like(label) if split is None else split
        side = np.where((side >= 0) & (side < len(self.splits)), side, len(self.splits))
        self.table += np.bincount(side * width + label, minlength=self.table.size).reshape(self.table.shape)

    def result(self) -> ClassBalance:
        """What was counted."""
        named = self.table[:, :-1]
        return ClassBalance(
            column=self.column,
            names=tuple(self.names),
            rows=tuple(named.sum(axis=0).tolist()),
            splits={name: tuple(named[index].tolist()) for index, name in enumerate(self.splits)},
            unnamed=int(self.table[:, -1].sum()),
        )
