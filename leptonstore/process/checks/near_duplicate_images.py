"""check.near_duplicate_images: images that are nearly another one: shifted, noisy, resized, compressed again, slightly cropped, brighter.

Each image becomes a thumbnail (image_thumbnails.py). Perceptual hashes of it propose pairs (image_hashes.py), and the thumbnails of a
pair are aligned and compared (image_alignment.py). Two images are near duplicates when what is left unexplained is no more than
`difference` of what a shift by one pixel of the thumbnail would leave (its roughness): smooth pictures have to agree better than rough
ones. Where one of them has a plain ground, as digits, signs and products have, other images differ by less, and less is allowed:
`difference_plain`.

What pairs connect is a group; one row of it is kept: the most held-out one (test, then any other side, then train), then the lowest.
Equal values are check.duplicates': no two rows of equal values are called near duplicates of each other, but both may be of a third.

Findings: one for each row that is not kept, unless its value is that of the kept one. `other` is the kept row where the two are near
duplicates themselves; else the most similar row, rather one that would be kept before this one. `score` is the similarity, 1 less the
share of the variance that is left; `group` the lowest row of the group. Where the two stand on different sides of a split, `detail` says
so: that is leakage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.format.page import canonical_values
from leptonstore.process import columns, digests, images
from leptonstore.process.checks import (
    chosen,
    image_alignment,
    image_columns,
    image_hashes,
    image_measures,
    image_thumbnails,
)
from leptonstore.process.checks.alike import groups, kept_of
from leptonstore.process.checks.check import Found, TableCheck
from leptonstore.process.checks.copies import codes
from leptonstore.process.checks.image_facts import facts_of
from leptonstore.process.checks.image_thumbnails import EDGE, Thumbnails
from leptonstore.process.columns import ImageColumn
from leptonstore.process.findings import findings_table, joined
from leptonstore.process.operation import Bits
from leptonstore.process.texts.column import number_in

_PIXELS = EDGE * EDGE
_FEATURE = pa.binary(
    _PIXELS + 1 + digests.DIGEST_BYTES
)  # a thumbnail, whether its ground is plain, the digest of the value
_SIDE = "side"

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class NearDuplicateImages(TableCheck):
    """Images that nearly repeat another one.

    columns:          of images, decoded or encoded; default: all. Each is searched on its own.
    difference:       how much two images may differ, in units of what a shift by one pixel of a thumbnail of 16 x 16 makes; over 0, at
    most 1.
    difference_plain: the same where one of them has a plain ground.
    split:            the column that says to which side of a split a row belongs, class labels or strings; there may be none.

    Features: 273 bytes a row. Images of less contrast than a noise of 2 grey levels, and files that do not decode, are not compared.
    """

    name: ClassVar[str] = "check.near_duplicate_images"
    columns: Sequence[str] = ()
    difference: float = 0.04
    difference_plain: float = 0.004
    split: str = "split"

    def __post_init__(self) -> None:
        super().__post_init__()
        for parameter in ("difference", "difference_plain"):
            number_in(self.name, parameter, getattr(self, parameter), 0, 1)

    def _columns(self, schema: pa.Schema) -> list[ImageColumn]:
        return image_columns.chosen(self.name, schema, self.columns)

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The images, and the sides where there are any."""
        side = chosen.split_column(self.name, schema, self.split)
        return tuple(dict.fromkeys([*(one.name for one in self._columns(schema)), *([side] if side else [])]))

    def libraries(self) -> dict[str, str]:
        """The decoders, which also shrink."""
        return images.decoders()

    def features_recipe(self) -> dict[str, Any]:
        """How much may differ is of no meaning to features."""
        found = super().features_recipe()
        return {name: value for name, value in found.items() if name not in ("difference", "difference_plain")}

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """A thumbnail of each column, null where there is none; the side."""
        fields = [pa.field(one.name, _FEATURE) for one in self._columns(schema)]
        return pa.schema([*fields, pa.field(_SIDE, pa.string())])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Encoded images are decoded, in a few threads."""
        arrays = []
        for column in self._columns(batch.schema):
            array = batch.column(column.name)
            found, known, plain = (_of_files if column.shape is None else _of_tensors)(array)
            arrays.append(_packed(found, known, plain, digests.value_digests(array)))
        side = chosen.split_column(self.name, batch.schema, self.split)
        arrays.append(pa.nulls(len(batch), pa.string()) if side is None else chosen.named_classes(batch, side))
        return pa.RecordBatch.from_arrays(arrays, schema=self.measures(batch.schema))

    def find_in(self, features: pa.Table) -> Found:
        """One finding for each row that is not kept."""
        side, names = codes(features[_SIDE].combine_chunks())
        wanted = [field.name for field in features.schema if field.type == _FEATURE]
        return Found(joined(self._in_column(features[name].combine_chunks(), name, side, names) for name in wanted))

    def _in_column(self, packed: pa.Array, column: str, side: Rows, names: list[str]) -> pa.Table:
        rows = np.flatnonzero(~columns.null_mask(packed))
        flat = np.frombuffer(canonical_values(packed), np.uint8).reshape(-1, _FEATURE.byte_width)
        flat = _some(flat, rows)
        alike, firsts = _firsts(flat[:, _PIXELS + 1 :])
        pairs = similar_pairs(_some(flat, firsts), self.difference, self.difference_plain)
        exposure = np.array([chosen.exposure(name) for name in names], np.int64)[side[rows]]
        found = choices(alike, Pairs(firsts[pairs.first], firsts[pairs.second], pairs.similarity), exposure)
        here, there = side[rows[found.row]], side[rows[found.other]]
        details = [
            f"near duplicate (similarity {score:.4f})"
            + (f"; leakage: the other one stands in {names[b] or 'no split'}" if a != b else "")
            for score, a, b in zip(found.score.tolist(), here.tolist(), there.tolist(), strict=True)
        ]
        return findings_table(
            self.tag, column, rows[found.row], details, found.score, rows[found.other], rows[found.group]
        )


@dataclass(frozen=True)
class Pairs:
    """Near duplicates: two rows each, and how similar they are."""

    first: Rows
    second: Rows
    similarity: NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """Rows that are not kept, ascending: which one each repeats, how similar the two are, and the lowest of its group."""

    row: Rows
    other: Rows
    score: NDArray[np.float64]
    group: Rows


def similar_pairs(features: NDArray[np.uint8], difference: float, difference_plain: float) -> Pairs:
    """(n, bytes of a feature), no two of one value -> the pairs that are near duplicates. Memory: 0.8 KiB a row beside them."""
    found = features[:, :_PIXELS].view(np.int8).reshape(-1, EDGE, EDGE)
    plain = features[:, _PIXELS].astype(np.bool_)
    pairs = image_hashes.proposed(found, plain)
    a, b = pairs.T
    rows, which = np.unique(pairs, return_inverse=True)
    rough = image_thumbnails.roughness(found[rows])[which].reshape(pairs.shape).min(axis=1)
    allowed = np.where(plain[a] | plain[b], difference_plain, difference) * rough
    left = image_alignment.distances(found, a, b, allowed)
    near = left <= allowed
    return Pairs(a[near], b[near], np.round(1 - left[near], 6))


def choices(alike: Rows, pairs: Pairs, exposure: Rows) -> Choices:
    """alike: of each row the first one of its value. pairs: of such first rows. exposure: the lower, the rather a row is kept."""
    count = len(alike)
    group = groups(count, np.concatenate([alike, pairs.first]), np.concatenate([np.arange(count), pairs.second]))
    kept, preferred = kept_of(group, exposure), kept_of(alike, exposure)
    row = np.flatnonzero(alike != alike[kept])
    # Each value's neighbours, the best one first: the kept value, then those that would be kept rather, then by similarity.
    own, other = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
    similarity = np.tile(pairs.similarity, 2)
    direct, rather = other == alike[kept[own]], _place(exposure)[preferred[other]] < _place(exposure)[preferred[own]]
    order = np.lexsort((other, -similarity, ~rather, ~direct, own))
    begins = np.searchsorted(own[order], alike[row], side="left")
    best = order[begins] if len(row) else order[:0]
    return Choices(row, preferred[other[best]], similarity[best], group[row])


def _some(array: NDArray[np.uint8], rows: Rows) -> NDArray[np.uint8]:
    """Rows of an array, copied only where some are left out."""
    return array if len(rows) == len(array) else array[rows]


def _firsts(values: NDArray[np.uint8]) -> tuple[Rows, Rows]:
    """(n, bytes) -> of each row the first one of its value; those first rows, ascending."""
    keys = np.ascontiguousarray(values).view(f"V{values.shape[1]}")[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return first[which], np.sort(first)


def _place(exposure: Rows) -> Rows:
    """Of each row its place in the order in which rows are kept."""
    place = np.empty(len(exposure), np.int64)
    place[np.lexsort((np.arange(len(exposure)), exposure))] = np.arange(len(exposure))
    return place


def _packed(found: Thumbnails, known: Bits, plain: Bits, values: pa.Array) -> pa.Array:
    """The features of one column; null where an image is not compared."""
    flat = np.empty((len(found), _FEATURE.byte_width), np.uint8)
    flat[:, :_PIXELS] = found.reshape(len(found), _PIXELS).view(np.uint8)
    flat[:, _PIXELS] = plain
    flat[:, _PIXELS + 1 :] = digests.as_numbers(values).view(np.uint8)
    flat[~known] = 0
    validity = pa.py_buffer(np.packbits(known, bitorder="little").tobytes())
    return pa.Array.from_buffers(_FEATURE, len(found), [validity, pa.py_buffer(flat.tobytes())])


def _of_files(array: pa.Array) -> tuple[Thumbnails, Bits, Bits]:
    found = np.zeros((len(array), EDGE, EDGE), np.int8)
    known, plain = np.zeros((2, len(array)), np.bool_)
    rows, files = image_columns.present_files(array)
    for row, fact in zip(rows, facts_of(files), strict=True):
        if fact.thumbnail is not None:
            found[row] = np.frombuffer(fact.thumbnail, np.int8).reshape(EDGE, EDGE)
            known[row], plain[row] = True, fact.plain
    return found, known, plain


def _of_tensors(array: pa.Array) -> tuple[Thumbnails, Bits, Bits]:
    found = np.zeros((len(array), EDGE, EDGE), np.int8)
    known, plain = np.zeros((2, len(array)), np.bool_)
    for rows, pixels in image_columns.pixel_pieces(array):
        if pixels.shape[1] * pixels.shape[2]:
            grey = image_measures.shrunk(image_measures.grey(pixels), image_thumbnails.SOURCE_EDGE_MAX)
            found[rows], known[rows], plain[rows] = image_thumbnails.thumbnails(grey)
    return found, known, plain
