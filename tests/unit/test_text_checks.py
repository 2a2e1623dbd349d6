"""Checks of texts: what each one finds, what it leaves alone, and what it says when it cannot work."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import process_data
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_label_field, text_field
from leptonstore.errors import BadInput, MissingExtra, SchemaError
from leptonstore.process.checks.near_duplicate_texts import NearDuplicateTexts, choices
from leptonstore.process.checks.text_charset import mojibake_characters
from leptonstore.process.checks.text_quality import RULES, Text
from leptonstore.process.operation import Made, RowOperation, TableOperation
from leptonstore.process.registry import operation_named
from leptonstore.process.texts.pairs import Pairs
from leptonstore.store import Store


def run(name: str, texts: Sequence[str | None], splits: Sequence[int] | None = None, **parameters: Any) -> Made:
    """Drive an operation as a pipeline does, in batches of three."""
    fields = [text_field("text")]
    columns = [pa.array(texts, pa.string())]
    if splits is not None:
        fields.append(class_label_field("split", ["train", "val", "test"]))
        columns.append(pa.array(splits, pa.uint8()))
    batch = pa.record_batch(columns, schema=pa.schema(fields))
    operation = operation_named(name, parameters).bound(None, batch.schema)  # type: ignore[arg-type]
    batch = batch.select(operation.reads(batch.schema))
    if isinstance(operation, RowOperation):
        return operation.apply(batch)
    assert isinstance(operation, TableOperation)
    pieces = [operation.measure(batch.slice(at, 3)) for at in range(0, len(batch), 3)]
    return operation.decide(pa.Table.from_batches(pieces, operation.features(batch.schema)))


def found(made: Made) -> list[tuple[int, str]]:
    """Rows and details."""
    assert made.findings is not None
    return list(zip(made.findings["row"].to_pylist(), made.findings["detail"].to_pylist(), strict=True))


# -- length ------------------------------------------------------------------------------------------------------


def test_lengths_outside_of_bounds_are_found() -> None:
    texts = ["é", "two words", "x" * 100, None, "", "日本語 text"]
    assert found(run("check.text_length", texts, min=2, max=50)) == [
        (0, "1 character; at least 2 and at most 50 are wanted"),
        (2, "100 characters; at least 2 and at most 50 are wanted"),
        (4, "0 characters; at least 2 and at most 50 are wanted"),
    ]
    words = run("check.text_length", texts, unit="words", min=2, action="drop")
    assert found(words) == [
        (row, f"{count}; at least 2 are wanted") for row, count in [(0, "1 word"), (2, "1 word"), (4, "0 words")]
    ]
    assert words.keep is not None and words.keep.tolist() == [False, True, False, True, False, True]


def test_unusual_lengths_are_found_among_all_rows() -> None:
    lengths = [90, 95, 100, 105, 110, 115, 3, 5_000]
    made = run("check.text_length", ["x" * length for length in lengths] + [None], robust=4.0, action="tag")
    assert [row for row, _ in found(made)] == [6, 7]
    assert made.columns["findings"].to_pylist()[5:8] == [[], ["text_length"], ["text_length"]]
    assert found(run("check.text_length", ["abc"] * 20, robust=3.0)) == []
    assert found(run("check.text_length", [None], robust=3.0)) == []


@pytest.mark.parametrize(
    "parameters", [{}, {"min": -1}, {"min": 3, "max": 2}, {"min": 1.5}, {"min": 1, "unit": "bytes"}, {"robust": "x"}]
)
def test_bounds_that_make_no_sense_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"check\.text_length"):
        operation_named("check.text_length", parameters)


# -- charset -----------------------------------------------------------------------------------------------------


def test_texts_that_were_decoded_wrongly_are_found() -> None:
    texts = ["plain", "caf\ufffd", "x\x00y", "tab\tand\r\n", None, "", "naïve café – “quoted” … €5 😀", "\ue000"]
    assert [row for row, _ in found(run("check.text_charset", texts))] == [1, 2, 7]
    assert [row for row, _ in found(run("check.text_charset", texts, unprintable=0.3))] == [2, 7]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("éüñçÀß’“”–…€£°»😀") | st.sampled_from("ab c"), min_size=1, max_size=20))
def test_all_of_mojibake_is_seen(text: str) -> None:
    """What is not ASCII is read wrongly, byte by byte, and each of these bytes is counted."""
    wrong = "".join(bytes([one]).decode("cp1252", "ignore") or chr(one) for one in text.encode())
    assert mojibake_characters(wrong) == sum(len(one.encode()) for one in text if not one.isascii())
    assert found(run("check.text_charset", [text])) == []


def test_correct_texts_are_no_mojibake() -> None:
    texts = [
        "«CAFÉ»",
        "AMANHû",
        "Ångström",
        "Âge de Pâques",
        "Ñandú",
        "ÃO É",
        "Ðuro",
        "Привет, мир",
        "Ελλάδα",
        "日本語",
        "â la carte €",
    ]
    assert found(run("check.text_charset", texts)) == []


def test_letters_of_other_scripts_are_found() -> None:
    texts = ["Latin with α", "Привет", "日本 abc", "12 345 – !", "ﬁne Ｆull", "mixed смешано"]
    assert [row for row, _ in found(run("check.text_charset", texts, scripts=["latin"]))] == [1, 2, 5]
    assert [row for row, _ in found(run("check.text_charset", texts, scripts=["Latin", "han", "Cyrillic"]))] == []
    assert found(run("check.text_charset", texts, scripts=["latin"], other=0.0))[0][0] == 0
    with pytest.raises(BadInput, match="did you mean 'cyrillic'"):
        operation_named("check.text_charset", {"scripts": ["cyrilic"]})


# -- language ----------------------------------------------------------------------------------------------------


def test_texts_in_other_languages_are_found() -> None:
    texts = [
        "This is a sentence in English, with some words.",
        "Dies ist ein deutscher Satz mit einigen Wörtern.",
        "short",
        None,
        "",
    ]
    made = run("check.text_language", texts, languages=["en"])
    assert found(made) == [(1, "language de, not en")]
    assert made.findings["score"][0].as_py() > 0.9
    assert found(run("check.text_language", texts, languages=["en", "de"])) == []
    with pytest.raises(BadInput, match="'english' is not known"):
        run("check.text_language", texts, languages=["english"])


@pytest.mark.parametrize(
    ("name", "module", "parameters"),
    [("check.text_language", "py3langid.langid", {}), ("text.mask_pii", "phonenumbers", {"regions": ["US"]})],
)
def test_a_library_that_is_not_there_is_named(
    name: str, module: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(wanted: str, *rest: Any) -> Any:
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"leptonstore\[text\]"):
        run(name, ["x"], **parameters)


# -- quality -----------------------------------------------------------------------------------------------------

_GOOD = " ".join(f"word{number}" for number in range(60))


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ("gopher.words", "too few of them"),
        ("gopher.word_length", "a b " * 30),
        ("gopher.symbols", "#tag " * 60),
        ("gopher.bullets", "- one\n- two\n"),
        ("gopher.ellipses", "read more…\nand more...\n"),
        ("gopher.alphabetic", "12 34 56 " * 20),
        ("gopher.stop_words", _GOOD),
        ("gopher.lines", "same\nsame\nother\n"),
        ("gopher.line_characters", "a long line that is repeated\n" * 2 + "b\nc\nd\ne\nf\n"),
        ("gopher.paragraphs", "one\n\none\n\ntwo"),
        ("gopher.paragraph_characters", "a long paragraph here\n\n" * 2 + "b\n\nc\n\nd\n\ne"),
        ("gopher.top_2_words", "buy now " * 20),
        ("gopher.top_4_words", "please buy it now " * 20),
        ("gopher.repeated_5_words", "one two three four five " * 3),
        ("gopher.repeated_10_words", "a1 b2 c3 d4 e5 f6 g7 h8 i9 j0 " * 2),
        ("c4.sentences", "One. Two"),
        ("c4.unfinished", "Menu\nHome\nAbout"),
        ("c4.braces", "if (x) { y }"),
        ("c4.lorem_ipsum", "Lorem ipsum dolor"),
        ("c4.javascript", "Please enable JavaScript."),
    ],
)
def test_each_rule_finds_what_it_is_about(rule: str, bad: str) -> None:
    made = run("check.text_quality", [bad, None, "", "  "], rules=[rule])
    assert [row for row, _ in found(made)] == [0] and found(made)[0][1].startswith(f"{rule}: ")
    assert made.findings["score"][0].as_py() > 0


def test_usual_text_breaks_no_usual_rule() -> None:
    assert found(run("check.text_quality", [_GOOD])) == []
    assert found(run("check.text_quality", ["too short"], but=["gopher"])) == []
    assert found(run("check.text_quality", ["too short"], rules=["c4"], but=["c4.sentences", "c4.unfinished"])) == []
    with pytest.raises(BadInput, match=r"no rule 'gofer'"):
        operation_named("check.text_quality", {"rules": ["gofer"]})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), st.sampled_from([5, 6, 8]))
def test_repeated_runs_are_those_of_a_plain_count(words: list[str], size: int) -> None:
    inside = set()
    for at in range(len(words) - size + 1):
        gram = words[at : at + size]
        if sum(words[other : other + size] == gram for other in range(len(words) - size + 1)) > 1:
            inside |= set(range(at, at + size))
    expected = sum(len(words[at]) for at in inside) / max(1, sum(map(len, words)))
    assert RULES[f"gopher.repeated_{size}_words"].measure(Text(" ".join(words))) == pytest.approx(expected)


# -- near duplicates ---------------------------------------------------------------------------------------------

_LONG = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew for the evil queen and jack"


def test_near_duplicates_are_found_and_the_first_is_kept() -> None:
    texts = [
        "unlike anything else here",
        _LONG,
        None,
        "",
        _LONG.upper() + "!",
        _LONG.replace("jack", "jill"),
        "…",
        "short",
        "Short.",
    ]
    made = run("check.near_duplicate_texts", texts, action="drop")
    rows = made.findings.select(["row", "other", "group", "detail", "score"]).to_pylist()
    assert [(one["row"], one["other"], one["group"]) for one in rows] == [(4, 1, 1), (5, 1, 1), (8, 7, 7)]
    assert [one["detail"] for one in rows] == [
        "the same words (Jaccard 1.00)",
        "near duplicate (Jaccard 0.90)",
        "the same words (Jaccard 1.00)",
    ]
    assert rows[1]["score"] == 18 / 20  # each text has 19 shingles of three words, and the last one is another
    assert made.keep is not None and np.flatnonzero(~made.keep).tolist() == [4, 5, 8]


def test_the_held_out_row_is_kept_and_leakage_is_told() -> None:
    texts = [
        _LONG,
        _LONG.replace("jack", "jill"),
        _LONG.replace("jack", "john"),
        "something else entirely, of some length",
    ]
    made = run("check.near_duplicate_texts", texts, splits=[0, 2, 0, 2])
    assert made.findings.select(["row", "other", "group"]).to_pylist() == [
        {"row": 0, "other": 1, "group": 0},
        {"row": 2, "other": 1, "group": 0},
    ]
    assert found(made)[0][1] == "near duplicate (Jaccard 0.90); leakage: the other one stands in test"


def test_texts_longer_than_a_sketch_are_estimated() -> None:
    words = [f"w{number}" for number in range(4_000)]
    other = [*words[:3_700], *(f"v{number}" for number in range(300))]
    made = run("check.near_duplicate_texts", [" ".join(words), " ".join(other)])
    assert "about" in found(made)[0][1]
    exact = 3_698 / (2 * 3_998 - 3_698)
    assert made.findings["score"][0].as_py() == pytest.approx(exact, abs=0.06)
    exactly = run("check.near_duplicate_texts", [" ".join(words), " ".join(other)], sketch=1 << 13)
    assert exactly.findings["score"][0].as_py() == pytest.approx(exact, abs=1e-9)


def test_words_of_characters_forgive_spelling() -> None:
    texts = ["accommodation in barcelona", "acommodation in barcelona"]
    assert found(run("check.near_duplicate_texts", texts)) == []
    assert len(found(run("check.near_duplicate_texts", texts, shingles="characters", threshold=0.7))) == 1


@st.composite
def _links(draw: st.DrawFn) -> tuple[list[int], Pairs, list[int]]:
    count = draw(st.integers(1, 10))
    first_of = [draw(st.integers(0, row)) for row in range(count)]
    alike = [
        row if first_of[row] == row else next(k for k in range(row + 1) if first_of[k] == k or k == row)
        for row in range(count)
    ]
    firsts = [row for row in range(count) if alike[row] == row]
    possible = [(a, b) for a in firsts for b in firsts if a < b]
    chosen = sorted(draw(st.sets(st.sampled_from(possible)))) if possible else []
    scores = [draw(st.sampled_from([0.8, 0.85, 0.9])) for _ in chosen]
    columns = np.array(chosen, np.int64).reshape(-1, 2)
    pairs = Pairs(columns[:, 0], columns[:, 1], np.array(scores, float), np.ones(len(chosen), np.bool_))
    return alike, pairs, [draw(st.integers(0, 2)) for _ in range(count)]


@settings(max_examples=200, deadline=None)
@given(_links())
def test_one_row_of_a_group_is_kept_and_each_other_one_names_a_row_that_it_resembles(
    given_: tuple[list[int], Pairs, list[int]],
) -> None:
    alike, pairs, exposure = given_
    count = len(alike)
    score = {
        (a, b): s for a, b, s in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.score.tolist(), strict=True)
    }

    def similarity(a: int, b: int) -> float:
        first, second = sorted((alike[a], alike[b]))
        return 1.0 if first == second else score.get((first, second), 0.0)

    group = list(range(count))
    for _ in range(count):
        group = [min(group[b] for b in range(count) if similarity(a, b) > 0) for a in range(count)]
    made = choices(np.array(alike), pairs, np.array(exposure))
    kept = {
        label: min((row for row in range(count) if group[row] == label), key=lambda row: (exposure[row], row))
        for label in set(group)
    }
    assert made.row.tolist() == [row for row in range(count) if row not in kept.values()]
    for row, other, value, label in zip(
        made.row.tolist(), made.other.tolist(), made.score.tolist(), made.group.tolist(), strict=True
    ):
        assert label == group[row] == group[other] and other != row
        assert value == similarity(row, other) > 0
        best = kept[label]
        if similarity(row, best):
            assert other == best
        elif any(alike[one] == alike[row] and (exposure[one], one) < (exposure[row], row) for one in range(count)):
            assert value == 1
        else:  # the one of its set that the others name looks beyond it
            assert value == max(similarity(row, one) for one in range(count) if alike[one] != alike[row])


def test_columns_that_do_not_fit_are_named_before_anything_runs() -> None:
    two = pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int64())])
    for name in ("check.near_duplicate_texts", "check.text_charset", "check.text_language", "check.text_quality"):
        with pytest.raises(SchemaError, match="several columns"):
            operation_named(name, {}).reads(two)
        with pytest.raises(SchemaError, match="no column 'c'"):
            operation_named(name, {"column": "c"}).reads(two)
        with pytest.raises(SchemaError, match="'n' is int64"):
            operation_named(name, {"column": "n"}).reads(two)
        with pytest.raises(SchemaError, match="no column of texts"):
            operation_named(name, {}).reads(pa.schema([("n", pa.int64())]))
    declared = pa.schema([pa.field("path", pa.string()), text_field("said")])
    assert operation_named("check.text_quality", {}).reads(declared) == ("said",)


_SENSELESS: list[dict[str, Any]] = [
    *({"threshold": value} for value in (0, 0.01, 1.1, "x")),
    *({"size": value} for value in (0, 2.0)),
    *({"hashes": 16, "threshold": 0.2}, {"hashes": 100}, {"shingles": "bytes"}, {"sketch": 1}),
]


@pytest.mark.parametrize("parameters", _SENSELESS)
def test_parameters_that_make_no_sense_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"check\.near_duplicate_texts"):
        operation_named("check.near_duplicate_texts", parameters)


def test_stored_rows_are_searched(store: Store) -> None:
    texts = [f"text number {number} about {' '.join(_LONG.split()[number % 7 :])}" for number in range(50)]
    texts[30] = texts[3].replace("dog", "cat")
    table = pa.table({"id": pa.array(range(50)), "text": texts})
    ds: Dataset = process_data.write(store, "texts", table, ["id"])
    check = operation_named("check.near_duplicate_texts", {"threshold": 0.5, "column": "text"}).bound(ds, ds.schema)
    assert isinstance(check, NearDuplicateTexts)
    features = pa.Table.from_batches([check.measure(batch) for _, batch in ds.iter_batches(check.reads(ds.schema))])
    assert features.schema.equals(check.features(ds.schema))
    findings = check.decide(features).findings
    assert findings is not None
    order = sorted(findings.to_pylist(), key=lambda one: one["group"])
    for group, rows in groupby(order, key=lambda one: one["group"]):
        assert all(one["row"] > group for one in rows)
