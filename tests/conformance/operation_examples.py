"""For every registered operation some parameters and a table that it fits: what test_operations_conformance.py tries.

A line for a new operation: Example("check.mine", {"column": "score"}, NUMBERS). Rows are identified by `id`; tables have nulls where
their columns allow them. Several lines for one operation are welcome.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import CODEC, SEMANTIC, class_label_field, tensor_field, text_field
from leptonstore.process.operations.tokenise import train_tokenizer
from leptonstore.store import Store

ROWS = 60
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "ünïcode", "wörds", "数据", "nobody"]


@dataclasses.dataclass(frozen=True)
class Example:
    """name: as registered. parameters: or a function of (store, a folder) that makes them. fails: whether some rows fail."""

    name: str
    parameters: Mapping[str, Any] | Callable[[Store, Path], Mapping[str, Any]]
    table: pa.Table
    fails: bool = False

    def given(self, store: Store, folder: Path) -> dict[str, Any]:
        """The parameters."""
        return dict(self.parameters(store, folder) if callable(self.parameters) else self.parameters)

    @property
    def table_number(self) -> int:
        """Of its table among those of all examples."""
        return list({id(example.table): None for example in EXAMPLES}).index(id(self.table))

    def __str__(self) -> str:
        shown = (
            "" if callable(self.parameters) else ",".join(f"{key}={value}" for key, value in self.parameters.items())
        )
        return f"{self.name}({shown})"


def write(store: Store, name: str, table: pa.Table) -> Dataset:
    """A dataset of a table, identified by its first column."""
    source = Source(
        table.schema, (table.schema.names[0],), lambda: iter(table.combine_chunks().to_batches()), len(table)
    )
    return write_dataset(store, name, source)


def _missing(every: int) -> np.ndarray:
    return np.arange(ROWS) % every == every - 1


def _numbers() -> pa.Table:
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("score", pa.float64()),
            pa.field("count", pa.int32()),
            pa.field("name", pa.string()),
            pa.field("at", pa.timestamp("us")),
            class_label_field("label", ["cat", "dog", "fox"]),
            class_label_field("split", ["train", "val"]),
            tensor_field("vector", pa.float32(), (2, 3)).with_nullable(True),
        ]
    )
    vectors = pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(size=(ROWS, 2, 3)).astype(np.float32))
    vectors = pa.ExtensionArray.from_storage(
        vectors.type, vectors.storage.take(pa.array(np.arange(ROWS), mask=_missing(11)))
    )
    scores = rng.normal(size=ROWS) * 10.0 ** rng.integers(-8, 8, ROWS)
    scores[5], scores[17] = np.nan, np.inf
    return pa.Table.from_arrays(
        [
            pa.array(np.arange(ROWS)),
            pa.array(scores, mask=_missing(7), from_pandas=False),
            pa.array(rng.integers(-5, 5, ROWS).astype(np.int32), mask=_missing(5)),
            pa.array(rng.choice(["a", "b", "", "ccc"], ROWS).tolist(), mask=_missing(9)),
            pa.array(rng.integers(0, 10**15, ROWS), mask=_missing(13)).cast(pa.timestamp("us")),
            pa.array(rng.integers(0, 3, ROWS).astype(np.uint8)),
            pa.array(rng.integers(0, 2, ROWS).astype(np.uint8)),
            vectors,
        ],
        schema=schema,
    )


def _texts() -> pa.Table:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(0, 30)))) for _ in range(ROWS)]
    texts[:3] = [
        "write to a.b@example.org or call +49 30 123456",
        "from 192.0.2.17, card 4111 1111 1111 1111",
        texts[40],
    ]
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), text_field("text")])
    return pa.Table.from_arrays([pa.array(np.arange(ROWS)), pa.array(texts, mask=_missing(8))], schema=schema)


def _file(pixels: np.ndarray, form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def _files(good: bool = True) -> pa.Table:
    """Files of several formats and sizes, grey and coloured; not good: every tenth cannot be decoded."""
    rng = np.random.default_rng(2)
    files = []
    for row in range(ROWS):
        size = [(12, 16), (12, 16), (20, 9)][row % 3]
        shape = size if row % 4 == 0 else (*size, 3)
        data = _file(rng.integers(0, 256, shape, np.uint8), ["PNG", "JPEG", "BMP"][row % 3])
        files.append([b"", b"no image", data[: len(data) // 2]][row // 10 % 3] if not good and row % 10 == 3 else data)
    image = pa.field("image", pa.large_binary(), metadata={SEMANTIC: b"image", CODEC: b"mixed"})
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), image])
    missing = _missing(6) & ~(np.arange(ROWS) % 10 == 3)
    return pa.Table.from_arrays(
        [pa.array(np.arange(ROWS)), pa.array(files, pa.large_binary(), mask=missing)], schema=schema
    )


def _pictures() -> pa.Table:
    pixels = np.random.default_rng(3).integers(0, 256, (ROWS, 10, 8, 3), np.uint8)
    image = tensor_field("image", pa.uint8(), (10, 8, 3), "image").with_nullable(True)
    values = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    values = pa.ExtensionArray.from_storage(
        values.type, values.storage.take(pa.array(np.arange(ROWS), mask=_missing(6)))
    )
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), image])
    return pa.Table.from_arrays([pa.array(np.arange(ROWS)), values], schema=schema)


def _tokenizer(store: Store, folder: Path) -> dict[str, Any]:
    place = folder / "tokenizer.json"
    place.write_text(train_tokenizer(write(store, "corpus", TEXTS), "text", 300))
    return {"column": "text", "tokenizer": str(place), "end": "<|endoftext|>"}


def _other(**more: Any) -> Callable[[Store, Path], Mapping[str, Any]]:
    def given(store: Store, folder: Path) -> Mapping[str, Any]:
        known = pa.table({"name": ["b", "", "zz", "a"], "weight": [1.5, None, 3.0, 4.0], "kind": ["x", "y", "z", "w"]})
        write(store, "others", known)
        return {"dataset": "others", "on": ["name"], **more}

    return given


def _labels() -> pa.Table:
    """Some labels have no name."""
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), class_label_field("label", ["cat", "dog"])])
    return pa.Table.from_arrays(
        [pa.array(np.arange(ROWS)), pa.array((np.arange(ROWS) % 3).astype(np.uint8))], schema=schema
    )


LABELS = _labels()
NUMBERS, TEXTS, FILES, BROKEN, PICTURES = _numbers(), _texts(), _files(), _files(good=False), _pictures()

EXAMPLES = [
    Example("image.decode", {"column": "image"}, FILES),
    Example("image.decode", {"column": "image", "shape": [5, 7], "into": "tensor"}, BROKEN, fails=True),
    Example("image.decode", {"column": "image", "shape": [5, 7, 1]}, PICTURES),
    Example("image.resize", {"column": "image", "size": [6, 5]}, FILES),
    Example(
        "image.resize", {"column": "image", "shorter_max": 10, "format": "jpeg", "quality": 70}, BROKEN, fails=True
    ),
    Example("image.resize", {"column": "image", "size": [6, 5], "into": "small"}, PICTURES),
    Example("image.crop", {"column": "image", "size": [8, 8], "format": "png"}, FILES),
    Example("image.crop", {"column": "image", "box": [0, 1, 9, 12]}, FILES, fails=True),
    Example("image.crop", {"column": "image", "size": [4, 4]}, PICTURES),
    Example("text.tokenise", _tokenizer, TEXTS),
    Example("numbers.normalise", {"column": "score", "split": "train"}, NUMBERS),
    Example("numbers.normalise", {"column": "count", "kind": "range", "type": "float64", "into": "unit"}, NUMBERS),
    Example("numbers.normalise", {"column": "vector", "per": "channel", "type": "float16"}, NUMBERS),
    Example("numbers.normalise", {"column": "image", "mean": [1, 2, 3], "std": [4, 5, 6]}, PICTURES),
    Example("numbers.stack", {"columns": ["count", "score", "vector"], "into": "all", "type": "float64"}, NUMBERS),
    Example("rows.split", {"names": ["a", "b", "c"], "fractions": [0.5, 0.3, 0.2], "column": "side"}, NUMBERS),
    Example("rows.split", {"by": ["label", "name"], "column": "side", "seed": 3}, NUMBERS),
    Example("rows.sample", {"fraction": 0.4}, NUMBERS),
    Example("rows.sample", {"rows": 17}, NUMBERS),
    Example("rows.select", {"where": "score > 0 and label = 'cat'"}, NUMBERS),
    Example("rows.join", _other(), NUMBERS),
    Example("rows.join", _other(kind="inner", columns=["weight"], prefix="their_"), NUMBERS),
    Example("rows.group_by", {"by": ["label", "name"], "aggregates": ["count", "sum(count)", "std(score)"]}, NUMBERS),
    Example(
        "rows.group_by",
        {"by": ["split"], "aggregates": ["min(at) as first", "max(name)", "mean(score)", "count(count)", "min(label)"]},
        NUMBERS,
    ),
    Example("check.nulls", {"columns": ["name", "count"], "fill": {"count": 0}, "action": "fix"}, NUMBERS),
    Example("check.rules", {"rules": {"count": [{"rule": "range", "min": 0}]}, "action": "drop"}, NUMBERS),
    Example("check.labels_out_of_range", {"action": "tag"}, LABELS),
    Example("check.duplicates", {"columns": ["name"], "action": "drop"}, NUMBERS),
    Example("check.duplicates", {"action": "tag"}, PICTURES),
    Example("check.leakage", {"columns": ["name"], "action": "tag"}, NUMBERS),
    Example("check.outliers", {}, NUMBERS),
    Example("check.near_duplicate_texts", {"action": "drop"}, TEXTS),
    Example("check.text_charset", {"scripts": ["Latin"], "action": "drop"}, TEXTS),
    Example("check.text_language", {"languages": ["en"], "action": "tag"}, TEXTS),
    Example("check.text_length", {"min": 20, "max": 100, "action": "drop"}, TEXTS),
    Example("check.text_length", {"robust": 3.0}, TEXTS),
    Example("check.text_quality", {"action": "tag"}, TEXTS),
    Example("text.mask_pii", {}, TEXTS),
    Example("check.undecodable", {"action": "drop"}, BROKEN),
    Example("check.constant", {"action": "drop"}, BROKEN),
    Example("check.constant", {}, PICTURES),
    Example("check.image_size", {"sizes": ["12x16"], "action": "tag"}, BROKEN),
    Example("check.image_quality", {"z": 1.5, "action": "drop"}, FILES),
    Example("check.near_duplicate_images", {"action": "drop"}, PICTURES),
    Example("check.class_balance", {"label": "label"}, NUMBERS),
    Example("check.label_errors", {"columns": ["count", "score"]}, NUMBERS),
]
