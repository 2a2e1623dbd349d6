"""Functions of a user, for tests of pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def shouted(batch: pa.RecordBatch, mark: str = "!") -> dict[str, Any]:
    return {"loud": pc.binary_join_element_wise(pc.utf8_upper(batch.column("text")), mark, "")}


def upper(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"text": pc.utf8_upper(batch.column("text"))}


def in_turn(batch: pa.RecordBatch, table: dict[str, str], value: Any = None) -> dict[str, Any]:
    texts = batch.column("text")
    for old, new in table.items():
        texts = pc.replace_substring(texts, old, new)
    return {"turned": pc.binary_join_element_wise(texts, str(value), "")}


def odd_name(batch: pa.RecordBatch) -> dict[str, Any]:
    raise ValueError("file \udc80 is bad")


def ends(batch: pa.RecordBatch) -> dict[str, Any]:
    texts = batch.column("text")
    return {"first": pc.utf8_slice_codeunits(texts, 0, 1), "last": pc.utf8_slice_codeunits(texts, -1)}


def odd(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"keep": np.array(batch.column("id")) % 2 == 1}


def pixels(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"pixels": np.stack([np.full((2, 2), len(text)) for text in batch.column("text").to_pylist()])}


def picky(batch: pa.RecordBatch) -> dict[str, Any]:
    texts = batch.column("text").to_pylist()
    if "bad" in texts:
        raise KeyError("no such thing as bad")
    return {"size": [len(text) for text in texts]}


def all_or_nothing(batch: pa.RecordBatch) -> dict[str, Any]:
    if batch.num_rows > 1:
        raise RuntimeError("too many at once")
    return {}


def wrong_name(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"other": batch.column("text")}


def wrong_length(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"size": [1]}


def words_for_numbers(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"size": ["long"] * batch.num_rows}


def parity_names(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"parity": [("even", "odd")[number % 2] if number else None for number in batch.column("id").to_pylist()]}


def parity_numbers(batch: pa.RecordBatch) -> dict[str, Any]:
    return {"parity": [number % 2 if number else None for number in batch.column("id").to_pylist()]}


def parity_unknown(batch: pa.RecordBatch) -> dict[str, Any]:
    numbers = batch.column("id").to_pylist()
    return {"parity": ["seven" if number == 7 else ("even", "odd")[number % 2] for number in numbers]}


def always(batch: pa.RecordBatch) -> dict[str, Any]:
    raise AssertionError


def leaves(batch: pa.RecordBatch) -> dict[str, Any]:
    raise SystemExit(3)
