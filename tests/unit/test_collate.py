"""Collates: what becomes of values of several lengths, and which mistake is told how."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from loaders.batched import RaggedError, naming_rows  # noqa: E402
from loaders.collate import default, keep, pad, ragged, stack, struct  # noqa: E402
from loaders.nested import row_values  # noqa: E402

SEQUENCES = st.lists(st.lists(st.integers(-9, 9), max_size=6), min_size=1, max_size=5)


def arrays(sequences: list[list[int]], kind: str) -> list[Any]:
    made = [np.array(one, np.int16) for one in sequences]
    if kind == "read-only":
        for one in made:
            one.flags.writeable = False
    return [torch.from_numpy(one) for one in made] if kind == "tensor" else made


@given(
    SEQUENCES, st.integers(1, 4), st.sampled_from(["left", "right"]), st.sampled_from(["array", "read-only", "tensor"])
)
def test_padding_is_the_values_and_nothing_but_filling(
    sequences: list[list[int]], multiple: int, side: Any, kind: str
) -> None:
    values = arrays(sequences, kind)
    out = pad(7, multiple=multiple, side=side, extra="mask")(values)
    width = -(-max(map(len, sequences)) // multiple) * multiple
    assert out["values"].shape == out["mask"].shape == (len(sequences), width)
    assert out["values"].dtype == torch.int16 and (out["values"][~out["mask"]] == 7).all()
    for row, mask, sequence in zip(out["values"], out["mask"], sequences, strict=True):
        assert row[mask].tolist() == sequence
        where = mask.nonzero().reshape(-1).tolist()
        first = 0 if side == "right" else width - len(sequence)
        assert where == list(range(first, first + len(sequence)))
    lengths = pad(7, extra="lengths", dtype=torch.int64)(values)
    assert lengths["lengths"].tolist() == list(map(len, sequences)) and lengths["values"].dtype == torch.int64
    assert torch.equal(pad(7, multiple=multiple, side=side)(values), out["values"])


@given(SEQUENCES)
def test_ragged_values_are_found_by_their_offsets(sequences: list[list[int]]) -> None:
    out = ragged()(arrays(sequences, "array"))
    assert [out["values"][start:end].tolist() for start, end in pairwise(out["offsets"].tolist())] == sequences


def test_ragged_values_as_a_nested_tensor() -> None:
    nested = ragged(nested=True, dtype=torch.float32)([np.array([1, 2]), np.array([3]), np.array([], np.int64)])
    assert nested.is_nested and [one.tolist() for one in nested.unbind()] == [[1.0, 2.0], [3.0], []]


def test_items_keep_their_shape() -> None:
    clouds = [np.ones((3, 4), np.float32), np.zeros((1, 4), np.float32)]
    assert pad(-1)(clouds).shape == (2, 3, 4) and pad(-1)(clouds)[1, 1:].tolist() == [[-1.0] * 4] * 2
    assert ragged()(clouds)["values"].shape == (4, 4)
    assert stack()([clouds[0], clouds[0]]).shape == (2, 3, 4)
    assert stack(torch.float64)([np.float32(1), np.float32(2)]).tolist() == [1.0, 2.0]


def test_what_is_made_owns_its_memory() -> None:
    one = np.arange(4)
    for collate in (pad(0), stack(), lambda values: ragged()(values)["values"], lambda values: default(values)[0]):
        collate([one, one]).zero_()
        assert one.tolist() == [0, 1, 2, 3]


def test_batches_without_rows() -> None:
    assert pad(0)([]).shape == (0, 0) and stack()([]).shape == (0,) and keep()([]) == [] and struct()([]) == {}
    assert ragged()([])["offsets"].tolist() == [0] and default([]) == []


@pytest.mark.parametrize(
    ("collate", "values", "sample", "message"),
    [
        (
            stack(),
            [np.ones(2), np.ones(2), np.ones(3)],
            2,
            r"shape \(3,\) beside one of \(2,\).*pad\(...\), ragged\(\)",
        ),
        (pad(0, length=2), [np.ones(1), np.ones(5)], 1, r"a sequence of 5 is longer than pad\(length=2\)"),
        (pad(0), [np.ones((2, 3)), np.ones((2, 4))], 1, "first dimension differs only"),
        (ragged(), [np.ones(2), np.float32(1)], 1, r"this value has shape \(\)"),
        (pad(0), ["text"], 0, r"makes tensors of numbers, and this value is of str: give the column keep\(\)"),
        (ragged(), [np.ones(1), None], 1, "this value is null"),
        (struct(a=stack()), [{"a": np.ones(1)}, {"a": np.ones(2)}], 1, "field 'a': a value of shape"),
        (default, [np.float32(1), None], 1, "null among numbers"),
        (struct(), [{"a": 1}, None], 1, "null among structs"),
    ],
)
def test_a_value_that_does_not_fit_is_named(collate: Any, values: list[Any], sample: int, message: str) -> None:
    with pytest.raises(RaggedError, match=message) as caught:
        collate(values)
    assert caught.value.sample == sample
    rows = np.arange(100, 100 + len(values))
    where = f"speech row {100 + sample} column 'audio': .*"
    with pytest.raises(RaggedError, match=where) as named, naming_rows("speech", rows, "audio"):
        collate(values)
    again = pickle.loads(pickle.dumps(named.value))  # noqa: S301
    assert (str(again), again.sample) == (str(named.value), sample)


def test_arguments_that_make_no_sense_are_refused() -> None:
    for make, message in (
        (lambda: pad(0, length=0), "positive"),
        (lambda: pad(0, multiple=-1), "positive"),
        (lambda: pad(0, side="top"), "'left' or 'right'"),  # type: ignore[arg-type]
        (lambda: pad(0, extra="both"), "'lengths' or 'mask'"),  # type: ignore[arg-type]
        (lambda: struct(b=keep())([{"a": 1}]), r"struct\(b=...\) names a field"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_collates_pickle() -> None:
    for collate in (pad(1, multiple=8, extra="mask"), ragged(), stack(), keep(), struct(a=pad(0))):
        assert pickle.loads(pickle.dumps(collate)) == collate  # noqa: S301


# -- Arrow's nested values -----------------------------------------------------------------------------------------------


def test_nested_values_keep_their_types_and_nulls() -> None:
    point = pa.struct(
        [("xyz", pa.list_(pa.float32(), 3)), ("id", pa.uint16()), ("tag", pa.string()), ("w", pa.float32())]
    )
    rows = [
        {"xyz": [1, 2, 3], "id": 5, "tag": "a", "w": None},
        None,
        {"xyz": [4, 5, 6], "id": 7, "tag": None, "w": 0.5},
    ]
    values = row_values(pa.array(rows, point))
    assert values[1] is None and values[0]["xyz"].dtype == np.float32 and values[2]["id"].dtype == np.uint16
    assert values[2]["tag"] is None and np.isnan(values[0]["w"]) and values[2]["w"].dtype == np.float32
    batch = default([values[0], values[2]])
    assert batch["id"].dtype == torch.uint16 and batch["id"].tolist() == [5, 7] and batch["tag"] == ["a", None]
    assert batch["w"].dtype == torch.float32 and [cloud.tolist() for cloud in batch["xyz"]] == [[1, 2, 3], [4, 5, 6]]


LISTS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.list_(pa.int32()), [[1, 2], [], None, [3]]),
    (pa.large_list(pa.bool_()), [[True], None, [False, True]]),
    (pa.list_(pa.list_(pa.int8())), [[[1], [2, 3]], [], [[]]]),
    (pa.list_(pa.string()), [["a", None], [], None]),
    (pa.list_(pa.list_(pa.float32(), 2)), [[[1.0, 2.0], [3.0, 4.0]], [], [[5.0, 6.0]]]),
    (pa.list_(pa.struct([("a", pa.int8())])), [[{"a": 1}], None, [{"a": 2}, {"a": 3}]]),
    (pa.list_(pa.int32()), [[1, None], [2]]),
    (pa.list_(pa.string(), 2), [["a", "b"], ["c", None]]),
    (pa.map_(pa.string(), pa.int8()), [[("k", 1)], []]),
    (pa.struct([]), [{}, {}]),
]


@pytest.mark.parametrize(("kind", "rows"), LISTS)
@pytest.mark.parametrize("part", [slice(None), slice(1, None)])
def test_values_are_arrows_own(kind: pa.DataType, rows: list[Any], part: slice) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    array = pa.array(rows, kind)[part]
    assert [plain(value) for value in row_values(array)] == array.to_pylist()
