"""Planted wrong labels are among the most suspicious rows, for images, texts and numbers; what is told twice is told the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from check_data import found_by, made_by, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from process_data import encode, encoded_table, tensor_table

from leptonstore.dataset.schema import class_label_field, text_field
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.checks import label_features
from leptonstore.process.checks.label_errors import LabelErrors
from leptonstore.process.columns import ImageColumn

pytest.importorskip("cleanlab")
pytest.importorskip("sklearn")

NAMES = ["upright", "level", "slanted"]
ROWS, WRONG = 300, 12
MOST = 10  # of the wrong ones: guessing would find none


def drawings(rows: int = ROWS, edge: int = 28, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of a line: upright, level or slanted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    pictures = rng.integers(0, 60, (rows, edge, edge), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        at = rng.integers(6, edge - 8)
        if label == 0:
            picture[4:-4, at : at + 3] = 230
        elif label == 1:
            picture[at : at + 3, 4:-4] = 230
        else:
            picture[np.arange(4, edge - 4), np.arange(4, edge - 4)] = 230
            picture[np.arange(4, edge - 4), np.arange(5, edge - 3)] = 230
    return pictures, labels


def spoilt(labels: np.ndarray, classes: int = 3, seed: int = 1) -> tuple[np.ndarray, dict[int, int]]:
    """Some labels are wrong; the rows, and what was right."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), WRONG, replace=False)
    out = labels.copy()
    out[rows] = (out[rows] + rng.integers(1, classes, WRONG)) % classes
    return out, dict(zip(rows.tolist(), labels[rows].tolist(), strict=True))


def most_suspicious(found: list[dict[str, Any]], count: int) -> set[int]:
    return {one["row"] for one in sorted(found, key=lambda one: -one["score"])[:count]}


@pytest.mark.parametrize("encoded", [False, True], ids=["tensors", "files"])
def test_wrong_labels_of_images_are_found_and_corrected(encoded: bool) -> None:
    pictures, right = drawings(edge=28 if not encoded else 20)
    labels, truth = spoilt(right)
    if encoded:
        table, identity = encoded_table([encode(one) for one in pictures], labels.tolist(), NAMES), ["path"]
    else:
        table, identity = tensor_table(pictures, labels.tolist(), NAMES), ["id"]
    check = LabelErrors(action="fix", folds=3)
    made = made_by(check, table, identity, 50)
    assert made.findings is not None
    found = made.findings.to_pylist()
    assert len(most_suspicious(found, WRONG) & set(truth)) >= MOST
    assert all(0 <= one["score"] <= 1 for one in found)
    worst = max(found, key=lambda one: one["score"])
    assert worst["detail"].startswith(
        f"labelled {NAMES[labels[worst['row']]]}, looks like {NAMES[truth[worst['row']]]} ("
    )
    fixed = made.columns["label"].to_numpy()
    rows = [one["row"] for one in found]
    assert made.columns["label"].type == pa.uint8() and (np.delete(fixed, rows) == np.delete(labels, rows)).all()
    assert sum(int(fixed[row]) == was for row, was in truth.items()) >= MOST


def test_the_same_rows_in_other_batches_give_the_same_findings() -> None:
    pictures, right = drawings(120)
    table = tensor_table(pictures, spoilt(right)[0].tolist(), NAMES)
    assert found_by(LabelErrors(), table, batch_rows=11) == found_by(LabelErrors(), table, batch_rows=120)


def test_wrong_labels_of_texts_are_found() -> None:
    rng = np.random.default_rng(0)
    words = [["goal", "match", "team", "coach"], ["vote", "party", "law", "minister"]]
    right = rng.integers(0, 2, ROWS)
    said = [" ".join(rng.choice([*words[label], "the", "a", "of", "new"], 12)) for label in right.tolist()]
    labels, truth = spoilt(right, 2)
    fields = [pa.field("id", pa.int64()), text_field("text"), pa.field("kind", pa.string())]
    names = ["sport", "politics"]
    table = pa.Table.from_arrays(
        [pa.array(np.arange(ROWS)), pa.array(said), pa.array([names[label] for label in labels])],
        schema=pa.schema(fields),
    )
    found = found_by(LabelErrors(label="kind"), table)
    assert len(most_suspicious(found, WRONG) & set(truth)) >= MOST
    fixed = made_by(LabelErrors(label="kind", action="fix"), table).columns["kind"].to_pylist()
    assert sum(fixed[row] == names[was] for row, was in truth.items()) >= MOST


def test_wrong_labels_of_numbers_are_found() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, ROWS)
    centres = np.array([[0, 0], [8, 0], [0, 8]])
    x, y = (centres[right] + rng.normal(0, 1, (ROWS, 2))).T
    labels, truth = spoilt(right)
    fields = [
        pa.field("id", pa.int64()),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float32()),
        class_label_field("label", NAMES),
    ]
    arrays = [pa.array(np.arange(ROWS)), pa.array(x), pa.array(y.astype(np.float32)), pa.array(labels.astype(np.uint8))]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    assert len(most_suspicious(found_by(LabelErrors(), table), WRONG) & set(truth)) >= MOST


def test_probabilities_of_another_model_are_taken_as_told() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, ROWS)
    labels, truth = spoilt(right)
    said = np.full((ROWS, 3), 0.05)
    said[np.arange(ROWS), right] = 0.9
    table = pa.table({"id": np.arange(ROWS), "label": labels, "said": list(said)})
    check = LabelErrors(label="label", probabilities="said", action="fix")
    made = made_by(check, table)
    assert made.findings is not None and set(made.findings["row"].to_pylist()) == set(truth)
    assert made.columns["label"].to_pylist() == right.tolist()
    assert set(made.findings["score"].to_numpy().round(6)) == {0.95}
    with pytest.raises(BadInput, match="whose sum is 1"):
        found_by(check, table.set_column(2, "said", [list(said * 2)]))
    with pytest.raises(SchemaError, match="a list of floats"):
        found_by(LabelErrors(label="label", probabilities="id"), table)


def test_what_cannot_be_judged_takes_no_part() -> None:
    pictures, right = drawings(90)
    labels = right.astype(object)
    labels[:5] = None
    table = tensor_table(pictures, [0] * 90, [*NAMES, "rare"])
    field = table.schema.field("label").with_nullable(True)
    labels[5:8] = 3  # too few to learn from
    table = table.set_column(2, field, pa.array(labels.tolist(), pa.uint8()))
    assert not {*range(8)} & set(rows_of(found_by(LabelErrors(), table)))
    one_class = table.set_column(2, field, pa.array([1] * 90, pa.uint8()))
    assert found_by(LabelErrors(), one_class) == []
    for options, said in (
        ({"filter": "luck"}, "prune_by_noise_rate"),
        ({"folds": 1}, "from 2 to"),
    ):
        with pytest.raises(BadInput, match=said):
            LabelErrors(**options)
    with pytest.raises(SchemaError, match="name the columns"):
        found_by(LabelErrors(), table.select(["id", "label"]))


def test_the_number_of_threads_decides_nothing() -> None:
    code = (
        "import hashlib; import numpy as np; from leptonstore.process.checks.label_model import Features, out_of_fold\n"
        "rng = np.random.default_rng(0); labels = rng.integers(0, 2, 500)\n"
        "seen = rng.normal(labels[:, None], 1, (500, 12)).astype(np.float32)\n"
        "for numbers_only in (False, True):\n"
        "    made = out_of_fold(Features(seen, None, numbers_only), labels, np.arange(500, dtype=np.uint64), 2, 2)\n"
        "    print(hashlib.sha256(made.tobytes()).hexdigest())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": threads}
        )
        for threads in ("1", "2")
    ]
    said = {one.communicate()[0] for one in running}
    assert len(said) == 1 and len(said.pop().split()) == 2


def test_more_than_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, right = drawings(60)
    monkeypatch.setattr("leptonstore.limits.LABEL_GUESSES_BYTES_MAX", 60 * 3 * 8 - 1)
    with pytest.raises(BadInput, match="60 rows of 3 classes are more than"):
        found_by(LabelErrors(), tensor_table(pictures, right.tolist(), NAMES))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(28, 28), (28, 28, 1), (28, 28, 3), (9, 14), (5, 5, 3)]))
def test_features_of_an_image_are_its_own(seed: int, shape: tuple[int, ...]) -> None:
    # Whatever stands beside it in a batch, and also where more are worked on at a time than fit the cache.
    pixels = np.random.default_rng(seed).integers(0, 256, (5, *shape), np.uint8)
    array = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    image = ImageColumn("image", shape)
    whole = label_features.image_features(array, image)
    assert whole.type == label_features.IMAGE_TYPE and whole.null_count == 0
    assert all(label_features.image_features(array.slice(row, 1), image)[0] == whole[row] for row in range(5))


def test_features_of_texts() -> None:
    made = label_features.text_features(pa.array(["A cat, a cat!", "", None, "猫と犬", "x " * 10_000]))
    lengths = made.value_lengths().to_pylist()
    assert lengths[0] == 4 and lengths[1:3] == [0, None] and lengths[3] == 5 and lengths[4] == 2
    assert label_features.text_features(pa.array([" ".join(map(str, range(10_000)))])).value_lengths()[0].as_py() == 256
