"""Each check finds what its page promises, says it with row, score and detail, and does what its action says."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from check_data import found_by, made_by, rows_of
from hypothesis import given
from hypothesis import strategies as st
from process_data import noise, tensor_table

from leptonstore.dataset.schema import class_label_field, text_field
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.checks.balance import ClassBalance
from leptonstore.process.checks.check import TAGS
from leptonstore.process.checks.duplicates import Duplicates
from leptonstore.process.checks.labels import LabelsOutOfRange
from leptonstore.process.checks.leakage import Leakage
from leptonstore.process.checks.nulls import Nulls
from leptonstore.process.checks.outliers import Outliers, robust_z
from leptonstore.process.checks.rules import Rules
from leptonstore.process.registry import OPERATIONS, operation_named

SIDES = ["train", "val", "test"]


def texts(values: list[str | None], labels: list[int] | None = None, sides: list[str] | None = None) -> pa.Table:
    """Texts, with `id` and, where they are given, `label` (of a, b) and `split`."""
    fields = [pa.field("id", pa.int64()), text_field("text")]
    columns: list[Any] = [list(range(len(values))), values]
    if labels is not None:
        fields, columns = [*fields, class_label_field("label", ["a", "b"])], [*columns, labels]
    if sides is not None:
        fields = [*fields, class_label_field("split", SIDES)]
        columns = [*columns, [SIDES.index(side) for side in sides]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


# -- duplicates and leakage --------------------------------------------------------------------------------------


def test_a_duplicate_names_the_first_row_and_a_label_that_contradicts() -> None:
    found = found_by(Duplicates(), texts(["x", "y", "x", None, "x", None], [0, 0, 1, 0, 0, 0]))
    assert rows_of(found, "score", "other", "group", "column") == [(2, 3.0, 0, 0, "text"), (4, 3.0, 0, 0, "text")]
    assert [one["detail"] for one in found] == [
        "repeats an earlier row, labelled a there and b here",
        "repeats an earlier row",
    ]


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(SIDES)), min_size=1, max_size=30))
def test_duplicates_and_leakage_are_those_of_a_plain_search(rows: list[tuple[str, str]]) -> None:
    table = texts([text for text, _ in rows], sides=[side for _, side in rows])
    again, leaks = [], []
    for row, (text, side) in enumerate(rows):
        same = [at for at, one in enumerate(rows) if one == (text, side)]
        if same[0] != row:
            again.append((row, same[0], float(len(same))))
        rank = {"test": 0, "val": 1, "train": 2}
        best = min((rank[other], at) for at, (its, other) in enumerate(rows) if its == text)[1]
        if rows[best][1] != side:
            leaks.append((row, best, float(sum(one == rows[best] for one in rows))))
    assert rows_of(found_by(Duplicates(), table), "other", "score") == again
    assert rows_of(found_by(Leakage(), table), "other", "score") == leaks


def test_rows_are_the_same_when_all_chosen_columns_are() -> None:
    table = pa.table({"id": [0, 1, 2, 3], "a": ["x", "x", "x", None], "b": [1, 2, 1, 1]})
    assert rows_of(found_by(Duplicates(columns=["a", "b"]), table)) == [2]
    assert rows_of(found_by(Duplicates(columns=["a"]), table)) == [1, 2]
    with pytest.raises(SchemaError, match="images, texts or tokens"):
        found_by(Duplicates(), table)
    with pytest.raises(SchemaError, match="no column 'c'"):
        found_by(Duplicates(columns=["c"]), table)


def test_long_strings_are_content_where_no_column_says_that_it_is() -> None:
    said = [f"{row % 9}: something that is long enough to be read by people" for row in range(10)]
    table = pa.table({"id": range(10), "code": ["x"] * 10, "said": said})
    assert rows_of(found_by(Duplicates(), table), "column") == [(9, "said")]


def test_a_group_stands_on_one_side_of_a_split() -> None:
    table = pa.table(
        {
            "id": range(6),
            "patient": [7, 8, 7, 9, 9, 7],
            "split": ["train", "train", "test", "val", "train", "test"],
        }
    )
    found = found_by(Leakage(group="patient"), table)
    assert rows_of(found, "other", "group", "score", "column") == [(0, 2, 0, 2.0, "patient"), (4, 3, 3, 1.0, "patient")]
    assert found[0]["detail"] == "the same patient stands in test"
    with pytest.raises(SchemaError, match="no column 'split'"):
        found_by(Leakage(group="patient"), table.drop_columns(["split"]))
    assert rows_of(found_by(Leakage(group="patient", split="side"), table.rename_columns({"split": "side"}))) == [0, 4]


def test_equal_images_are_found_whatever_their_batch() -> None:
    images = noise(40, 3, 3)
    images[33] = images[2]
    for batch_rows in (1, 7, 100):
        found = found_by(Duplicates(), tensor_table(images, [0] * 40, ["a"]), batch_rows=batch_rows)
        assert rows_of(found, "other") == [(33, 2)]


# -- one row at a time -------------------------------------------------------------------------------------------


def test_missing_values_are_found_once_a_row_and_filled_when_asked() -> None:
    table = pa.table(
        {"id": range(9), "x": [1.0, None, float("nan")] * 3, "s": ["", None, "b"] * 3, "n": pa.array([None, 4, 5] * 3)}
    )
    found = found_by(Nulls(), table)
    assert rows_of(found, "column", "score")[:3] == [(0, "n", 1.0), (1, "x, s", 2.0), (2, "x", 1.0)]
    made = made_by(Nulls(fill={"x": 0, "n": 9}, action="fix"), table)
    assert made.columns["x"].to_pylist() == [1.0, 0.0, 0.0] * 3 and made.columns["n"].to_pylist() == [9, 4, 5] * 3
    assert made.findings is not None and set(made.findings["action"].to_pylist()) == {"fix"}
    with pytest.raises(BadInput, match="cannot fill column 'n' of int64 with 'many'"):
        found_by(Nulls(fill={"n": "many"}, action="fix"), table)
    with pytest.raises(BadInput, match="needs `fill`"):
        Nulls(action="fix")


def test_missing_values_are_seen_in_columns_of_every_type() -> None:
    kinds: dict[str, tuple[pa.DataType, Any]] = {
        "half": (pa.float16(), np.float16(1)), "list": (pa.list_(pa.int32()), [1]), "bytes": (pa.large_binary(), b"x"),
        "day": (pa.date32(), 3), "flag": (pa.bool_(), True), "struct": (pa.struct({"a": pa.int8()}), {"a": 1}),
        "price": (pa.decimal128(5, 2), Decimal("1.5")),
    }  # fmt: skip
    for name, (kind, value) in kinds.items():
        table = pa.table({"id": range(3), name: pa.array([value, None, value], kind)})
        assert rows_of(found_by(Nulls(), table), "column") == [(1, name)]
    image = pa.FixedShapeTensorArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), [2]), pa.array([[1, 2], None], pa.list_(pa.uint8(), 2))
    )
    assert rows_of(found_by(Nulls(), pa.table({"image": image}), ["image"])) == [1]
    nan = pa.table({"half": pa.array([np.float16(1), np.float16("nan")], pa.float16())})
    assert rows_of(found_by(Nulls(), nan, ["half"])) == [1]


def test_a_class_is_filled_by_its_name() -> None:
    field = class_label_field("label", ["a", "b"]).with_nullable(True)
    table = pa.Table.from_arrays([pa.array([0, None, 1], pa.uint8())], schema=pa.schema([field]))
    assert made_by(Nulls(fill={"label": "b"}, action="fix"), table).columns["label"].to_pylist() == [0, 1, 1]
    with pytest.raises(BadInput, match="none of its classes"):
        found_by(Nulls(fill={"label": "c"}, action="fix"), table)


def test_rules_are_those_given_or_those_of_the_schema() -> None:
    field = pa.field("score", pa.float64(), metadata={"lepton.rules": '[{"rule": "range", "min": 0, "max": 1}]'})
    table = pa.Table.from_arrays(
        [pa.array([0.5, 2.0, None, -1.0]), pa.array(["ab", "cd", "xx", "ab"])], ["score", "code"]
    )
    ruled = table.cast(pa.schema([field, pa.field("code", pa.string())]))
    found = found_by(Rules(), ruled)
    assert rows_of(found, "column", "detail") == [
        (1, "score", "2.0 breaks 'range min 0 max 1'"),
        (3, "score", "-1.0 breaks 'range min 0 max 1'"),
    ]
    given = {"score": [{"rule": "not_null"}], "code": [{"rule": "one_of", "values": ["ab"]}]}
    assert rows_of(found_by(Rules(rules=given), ruled), "column") == [(1, "code"), (2, "score"), (2, "code")]
    with pytest.raises(SchemaError, match="no column has a rule"):
        found_by(Rules(), table)
    for rules, said in (
        ({"code": [{"rule": "unique"}]}, "check.duplicates"),
        ({"code": [{"rule": "odd"}]}, "not_null, range"),
        ({"score": [{"rule": "pattern", "pattern": "a"}]}, "cannot have the rule"),
        ({"none": []}, "no column 'none'"),
    ):
        with pytest.raises(BadInput, match=said):
            found_by(Rules(rules=rules), table)


def test_labels_without_a_name_are_found() -> None:
    table = tensor_table(noise(20, 2, 2), [0, 1] * 9 + [2, 200], ["a", "b"], ["train", "test"] * 10)
    assert rows_of(found_by(LabelsOutOfRange(), table), "column") == [(18, "label"), (19, "label")]
    assert found_by(LabelsOutOfRange(), table)[1]["detail"] == "200 is not one of 2 classes (0 to 1)"


# -- numbers and classes -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=40))
def test_robust_z_is_what_its_definition_says(values: list[float]) -> None:
    scores, median = robust_z(np.array(values, np.float64))
    known = [value for value in values if value == value]
    if len(set(known)) <= 2:
        assert not scores.any()
        return
    assert median == np.median(known)
    away = [abs(value - median) for value in known]
    spread = 1.4826 * np.median(away) or 1.2533 * np.mean(away)
    with np.errstate(over="ignore"):
        assert np.allclose(scores[~np.isnan(values)], np.array(away) / spread)


def test_outliers_are_found_in_every_column_of_numbers_and_in_no_other() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(50, 2, 400), rng.normal(0, 1, 400)
    x[17], y[17], y[300], x[20] = 100, -40, np.inf, np.nan
    flag, mostly = np.zeros(400), np.zeros(400)
    flag[5], mostly[:4] = 1, (1, 2, 3, 900)
    table = pa.table(
        {"id": np.arange(400) ** 3, "x": x, "y": y.astype(np.float32), "flag": flag, "mostly": mostly, "row": [1] * 400}
    )
    found = found_by(Outliers(), table)
    assert {(one["row"], one["column"]) for one in found if one["score"] > 20} == {
        (17, "x"), (17, "y"), (300, "y"), (3, "mostly"),
    }  # fmt: skip
    assert found[-1]["score"] == float("inf") and found[-1]["detail"] == "inf"
    assert "robust standard deviations from the median" in found[1]["detail"]
    assert rows_of(found_by(Outliers(columns=["x"], z_max=20), table)) == [17]
    with pytest.raises(SchemaError, match="looks at numbers"):
        found_by(Outliers(columns=["t"]), pa.table({"t": ["a"]}))
    with pytest.raises(BadInput, match="z_max"):
        Outliers(z_max=0)


def test_rows_of_rare_classes_are_found() -> None:
    labels = [0] * 50 + [1] * 4 + [2] * 30
    found = found_by(ClassBalance(), tensor_table(noise(84, 2, 2), labels, ["many", "few", "some", "none"]))
    assert rows_of(found, "score", "group") == [(row, 12.5, 50) for row in range(50, 54)]
    assert found[0]["detail"] == "few has 4 rows, the most frequent class 50"
    table = pa.table({"kind": ["a", "a", None, "b"]})
    assert rows_of(found_by(ClassBalance(label="kind", ratio_max=1), table, ["kind"])) == [3]
    with pytest.raises(SchemaError, match="class labels"):
        found_by(ClassBalance(), table, ["kind"])


# -- actions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Duplicates, Leakage, LabelsOutOfRange, Nulls])
def test_the_action_decides_what_becomes_of_the_rows(kind: Any) -> None:
    table = texts(["x", "x", None, "y"], [0, 0, 7, 1], ["train", "train", "train", "test"])
    table = table.append_column(pa.field("more", pa.string()), pa.array(["y", None, "z", "y"]))
    options = {} if kind in (LabelsOutOfRange, Nulls) else {"columns": ["text"] if kind is Duplicates else ["more"]}
    kept = made_by(kind(**options), table)
    assert kept.keep is None and not kept.columns and kept.findings is not None and len(kept.findings)
    assert set(kept.findings["action"].to_pylist()) == {"keep"}
    rows = set(kept.findings["row"].to_pylist())
    dropped = made_by(kind(action="drop", **options), table)
    assert dropped.keep is not None and {row for row in range(4) if not dropped.keep[row]} == rows
    assert dropped.findings is not None and set(dropped.findings["action"].to_pylist()) == {"drop"}
    check = kind(action="tag", **options)
    assert check.output(table.schema).field(TAGS).type == pa.list_(pa.string())
    tagged = made_by(check, table).columns[TAGS].to_pylist()
    assert tagged == [[check.tag] if row in rows else [] for row in range(4)]
    before = table.append_column(TAGS, pa.array([["old"], None, ["old"], [check.tag]], pa.list_(pa.string())))
    again = made_by(check, before).columns[TAGS].to_pylist()
    assert again == [
        [*(old or []), *([check.tag] if row in rows and check.tag not in (old or []) else [])]
        for row, old in enumerate(before[TAGS].to_pylist())
    ]
    with pytest.raises(BadInput, match="no action 'burn'"):
        kind(action="burn")


NEEDED = {"check.text_length": {"min": 1}, "check.text_language": {"languages": ["en"]}}


def test_every_check_says_what_it_does_when_it_is_named() -> None:
    for name in OPERATIONS:
        if name.startswith("check."):
            made = operation_named(name, {"action": "drop", **NEEDED.get(name, {})})
            assert made.name == name and made.recipe()["action"] == "drop" and type(made).__doc__
