"""check.near_duplicate_texts: texts that share most of their shingles with another one.

Each text becomes the set of its shingles (texts/shingles.py: case, spaces and punctuation do not count), of which a signature is made
(texts/minhash.py). Texts that share a key of it are compared by their sets, and are near duplicates from `threshold` Jaccard similarity
on (texts/pairs.py). What pairs connect is a group; one row of it is kept: the most held-out one (test, then any other side, then train),
then the lowest.

Findings: one for each row that is not kept. `other` is the kept row where the two are near duplicates themselves; else, of texts with the
same set, the one that would be kept among them; else the most similar row. `score` is the Jaccard similarity to it; `group` the lowest row
of the group. Where the two stand on different sides of a split, `detail` says so: that is leakage.

Sources: Broder, On the resemblance and containment of documents (1997); Lee et al., Deduplicating training data makes language models
better (2022), for what near duplicates do to training and evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process import columns
from leptonstore.process.checks import chosen
from leptonstore.process.checks.alike import groups, kept_of
from leptonstore.process.checks.check import Found, TableCheck
from leptonstore.process.checks.copies import codes
from leptonstore.process.findings import findings_table
from leptonstore.process.operations.parameters import one_of
from leptonstore.process.texts.characters import versions
from leptonstore.process.texts.column import blocks, number_in, text_column, whole_number_in
from leptonstore.process.texts.minhash import (
    RECALL_MIN,
    band_keys,
    bands_for,
    recall,
    set_digests,
    signatures,
    sketches,
)
from leptonstore.process.texts.pairs import Features, Pairs, Rows, same_sets, similar_pairs
from leptonstore.process.texts.shingles import Sets, shingle_sets

_UNITS = ("words", "characters")


@dataclass(frozen=True)
class NearDuplicateTexts(TableCheck):
    """Rows whose text shares most of its runs of words with another one; one row of each group is kept.

    column:    of texts; None: the only one.
    threshold: Jaccard similarity of two sets of shingles from which on they are near duplicates, at most 1 (and 0.05 or more).
    shingles:  "words" or "characters": what runs are made of. Characters forgive spelling, and suit texts of a few words.
    size:      words (or characters) of a shingle, 1 to 64. One changed word changes so many shingles.
    hashes:    places of the signature, a power of two from 16 to 256. More find pairs at the threshold with fewer comparisons.
    sketch:    shingles by which two texts are compared, at least 64; longer texts by an estimate from so many.
    split:     the column that says to which side of a split a row belongs, class labels or strings; there may be none.
    """

    name: ClassVar[str] = "check.near_duplicate_texts"
    version: ClassVar[int] = 1

    column: str | None = None
    threshold: float = 0.8
    shingles: str = "words"
    size: int = 3
    hashes: int = 128
    sketch: int = limits.TEXT_SKETCH_HASHES
    split: str = columns.SPLIT

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in(self.name, "threshold", self.threshold, 0, 1)
        one_of(self.name, "shingles", self.shingles, _UNITS)
        whole_number_in(self.name, "size", self.size, 1, 64)
        if self.hashes not in (16, 32, 64, 128, 256):
            raise BadInput(f"{self.name}: hashes is 16, 32, 64, 128 or 256, not {self.hashes!r}")
        if recall(self.threshold, *bands_for(self.threshold, self.hashes)) < RECALL_MIN:
            raise BadInput(
                f"{self.name}: at a threshold of {self.threshold}, {self.hashes} hashes miss too many pairs; raise one of them"
            )
        whole_number_in(self.name, "sketch", self.sketch, 64, 1 << 20)

    def bound(self, source: Dataset, schema: pa.Schema) -> NearDuplicateTexts:
        """With the column's name."""
        return replace(self, column=text_column(schema, self.column, self.name))

    def libraries(self) -> dict[str, str]:
        """Unicode's version says what is a letter."""
        return versions()

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The texts, and the sides where there are any."""
        column, side = text_column(schema, self.column, self.name), chosen.split_column(self.name, schema, self.split)
        return (column,) if side in (None, column) else (column, side)

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """Digest and size of the set of shingles, the keys of bands, the sketch; the side. Nulls where a text has no shingle."""
        bands, _ = bands_for(self.threshold, self.hashes)
        fields = [
            pa.field("digest", pa.uint64()),
            pa.field("count", pa.int64()),
            pa.field("keys", pa.list_(pa.uint64(), bands)),
            pa.field("sketch", pa.list_(pa.uint32())),
        ]
        return pa.schema([*fields, pa.field("side", pa.string())] if len(self.looks_at(schema)) > 1 else fields)

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Of texts, in any order; the features of each are its own."""
        texts = batch.column(0)
        parts = [self._of_block(part) for _, part in blocks(texts, limits.TEXT_BLOCK_BYTES)] or [self._of_block(texts)]
        arrays = [pa.concat_arrays(list(column)) for column in zip(*parts, strict=True)]
        if len(self.looks_at(batch.schema)) > 1:
            arrays.append(chosen.named_classes(batch, self.split))
        return pa.RecordBatch.from_arrays(arrays, schema=self.measures(batch.schema))

    def _of_block(self, texts: pa.Array) -> list[pa.Array]:
        bands, rows = bands_for(self.threshold, self.hashes)
        sets = shingle_sets(texts, self.size, self.shingles)
        counts = np.diff(sets.offsets)
        none = counts == 0
        keys = band_keys(signatures(sets, self.hashes), bands, rows)
        sketch = sketches(sets, self.sketch)
        listed = pa.ListArray.from_arrays(
            pa.array(sketch.offsets, pa.int32()), pa.array(sketch.values), mask=pa.array(none)
        )
        flat = pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), bands, mask=pa.array(none))
        return [pa.array(set_digests(sets), mask=none), pa.array(counts, mask=none), flat, listed]

    def find_in(self, features: pa.Table) -> Found:
        """One finding for each row that is not kept."""
        measured = pc.is_valid(features["count"])
        rows = np.flatnonzero(measured.to_numpy())
        texts = features_of(features.filter(measured) if len(rows) < len(features) else features)
        side, names = np.zeros(len(features), np.int64), [""]
        if "side" in features.schema.names:
            side, names = codes(features["side"].combine_chunks())
        side = side[rows]
        exposure = np.array([chosen.exposure(name) for name in names], np.int64)[side]
        alike = same_sets(texts)
        found = choices(alike, similar_pairs(texts, alike, self.threshold), exposure)
        here, there = side[found.row], side[found.other]
        elsewhere = [names[at] or "no split" if leak else "" for at, leak in zip(there, here != there, strict=True)]
        details = map(self._detail, found.score.tolist(), found.exact.tolist(), elsewhere)
        others, lowest = rows[found.other], rows[found.group]
        return Found(findings_table(self.tag, self.column or "", rows[found.row], details, found.score, others, lowest))

    def _detail(self, score: float, exact: bool, side: str) -> str:
        said = "near duplicate" if score < 1 else f"the same {self.shingles}"
        said += f" (Jaccard {'' if exact else 'about '}{score:.2f})"
        return f"{said}; leakage: the other one stands in {side}" if side else said


def features_of(table: pa.Table) -> Features:
    """A table of features without nulls as arrays; keys stay in the pieces that they came in."""
    sketch = table["sketch"].cast(pa.large_list(pa.uint32())).combine_chunks()
    offsets = sketch.offsets.to_numpy() - (sketch.offsets[0].as_py() if len(sketch) else 0)
    keys = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in table["keys"].chunks if len(chunk)]
    sets = Sets(sketch.flatten().to_numpy(), offsets)
    return Features(table["digest"].to_numpy(), table["count"].to_numpy(), sets, keys)


@dataclass(frozen=True)
class Choices:
    """Texts that are not kept, ascending: which one each repeats, how similar the two are, and the lowest of its group."""

    row: Rows
    other: Rows
    score: NDArray[np.float64]
    exact: NDArray[np.bool_]
    group: Rows


def choices(alike: Rows, pairs: Pairs, exposure: NDArray[np.int64]) -> Choices:
    """alike: for each text the first with the same set. pairs: among those first ones. exposure: the lower, the rather it is kept."""
    count = len(alike)
    every = np.arange(count)
    group = groups(count, np.concatenate([alike, pairs.first]), np.concatenate([every, pairs.second]))
    kept, preferred = kept_of(group, exposure), kept_of(alike, exposure)
    row = np.flatnonzero(kept != every)
    own, keeper = alike[row], alike[kept[row]]
    other, score, exact = kept[row], np.ones(len(row)), np.ones(len(row), np.bool_)

    names = pairs.first * count + pairs.second
    wanted = np.minimum(own, keeper) * count + np.maximum(own, keeper)
    at = np.minimum(np.searchsorted(names, wanted), max(len(names) - 1, 0))
    direct = (names[at] == wanted) if len(names) else np.zeros(len(row), np.bool_)
    score[direct], exact[direct] = pairs.score[at[direct]], pairs.exact[at[direct]]

    rest = np.flatnonzero((own != keeper) & ~direct)
    twin = preferred[own[rest]] != row[rest]
    other[rest[twin]] = preferred[own[rest[twin]]]
    single = rest[~twin]
    if len(single):
        nearest = _nearest(pairs, own[single])
        neighbour = np.where(pairs.first[nearest] == own[single], pairs.second[nearest], pairs.first[nearest])
        other[single], score[single], exact[single] = preferred[neighbour], pairs.score[nearest], pairs.exact[nearest]
    return Choices(row, other, score, exact, group[row])


def _nearest(pairs: Pairs, texts: Rows) -> Rows:
    """For each of `texts` (all have one) the pair in which it is most similar; of equal ones that with the lowest text."""
    ends = np.concatenate([pairs.first, pairs.second])
    number = np.tile(np.arange(len(pairs.first)), 2)
    order = np.lexsort((np.concatenate([pairs.second, pairs.first]), -np.tile(pairs.score, 2), ends))
    return number[order[np.searchsorted(ends[order], texts)]]
