"""Pipelines: what is wrong is named before anything runs, rows that fail are named or left out, and results are kept for the next run."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_data import write

from leptonstore.dataset import Dataset, list_refs
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.columns import change_rules
from leptonstore.dataset.erase import erase
from leptonstore.dataset.rules import Rule
from leptonstore.dataset.schema import class_names
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, Conflict, OperationFailed, RefMissing, RuleBroken, SchemaError, SourceError
from leptonstore.process.checks.outliers import Outliers
from leptonstore.process.checks.text_length import TextLength
from leptonstore.process.memo import Memo
from leptonstore.process.operations.function import Function
from leptonstore.process.operations.rows import Select, Split
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.pipeline_file import parse_pipeline, pipeline_text
from leptonstore.process.registry import OPERATIONS, operation_named
from leptonstore.store import Store

HERE = "pipeline_functions"


@pytest.fixture
def texts(store: Store) -> Dataset:
    return write(store, "texts", table_of([f"text {number}" for number in range(50)]), ["id"])


def table_of(values: list[str]) -> pa.Table:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    return pa.table([pa.array(range(len(values))), pa.array(values)], schema=schema)


def function(name: str, columns: tuple[str, ...] = ("text",), **more: Any) -> Function:
    return Function(f"{HERE}:{name}", columns, **more)


def told(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse_pipeline(text, "p.toml")
    return str(caught.value)


# -- files -----------------------------------------------------------------------------------------------------------

HEAD = 'dataset = "texts"\ninto = "made"\n'


def test_what_is_wrong_with_a_file_is_named_with_line_operation_and_the_nearest_name(tmp_path: Path) -> None:
    assert "line 2" in told('dataset = "texts"\nintoo = "x"\n') and "did you mean 'into'?" in told(
        'dataset="t"\nintoo="x"'
    )
    assert "dataset = " in told('into = "x"\n')
    assert "p.toml line 1: dataset is a text" in told("dataset = 3\n")
    assert "[[operation]]" in told(HEAD + 'operation = "rows.split"\n')
    wrong = told(HEAD + '\n[[operation]]\nuse = "rows.split"\n\n[[operation]]\nuse = "rows.selct"\nwhere = "id > 1"\n')
    assert wrong.startswith("p.toml line 7, operation 2:") and "did you mean 'rows.select'?" in wrong
    wrong = told(HEAD + '[[operation]]\nuse = "rows.select"\nwere = "id > 1"\n')
    assert "line 3, operation 1" in wrong and "'were'" in wrong and "did you mean 'where'?" in wrong
    assert "needs 'where'" in told(HEAD + '[[operation]]\nuse = "rows.select"\n')
    assert 'use = "NAME"' in told(HEAD + '[[operation]]\nname = "rows.select"\n')
    assert "no TOML" in told("dataset = [")
    assert "on_error" in told(HEAD + 'on_error = "ignore"\n') and "quarantine" in told(HEAD + 'on_error = "ignore"\n')
    assert "NAME@BRANCH" in told('dataset = "t"\ninto = "a@b~2"\n')
    with pytest.raises(SourceError, match=r"nowhere\.toml.*No such file"):
        Pipeline.from_toml(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes('dataset = "ä"'.encode("latin-1"))
    with pytest.raises(BadInput, match="UTF-8"):
        Pipeline.from_toml(tmp_path / "latin.toml")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(text, text, st.sampled_from(["raise", "quarantine"]), st.dictionaries(text.filter(bool), st.one_of(
    text, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.lists(text, max_size=3),
    st.dictionaries(text.filter(bool), st.integers(0, 9), max_size=2)), max_size=3))  # fmt: skip
def test_a_pipeline_written_as_toml_is_the_same_pipeline(
    message: str, revision: str, on_error: str, arguments: dict[str, Any]
) -> None:
    operations = [
        function("shouted", returns={"loud": "string"}, arguments=arguments, revision=revision),
        Split(seed=-3),
    ]
    pipeline = Pipeline("texts@main", operations, "made@side", on_error, message)
    again = parse_pipeline(pipeline_text(pipeline))
    assert again == pipeline
    assert [one.recipe() for one in again.operations] == [one.recipe() for one in pipeline.operations]


# -- before anything runs ----------------------------------------------------------------------------------------------


def test_an_operation_that_does_not_accept_the_rows_is_named_before_anything_runs(store: Store, texts: Dataset) -> None:
    def refused(*operations: Any, kind: type[Exception] = BadInput) -> str:
        before = store.put_bytes
        with pytest.raises(kind) as caught:
            Pipeline("texts", operations, "made").run(store)
        assert store.put_bytes == before
        assert not list_refs(store, "dataset", "made")
        return str(caught.value)

    split = operation_named("rows.split", {})
    resize = operation_named("image.resize", {"column": "text", "size": [8, 8]})
    assert "operation 2: image.resize: column 'text'" in refused(split, resize, kind=SchemaError)
    assert "operation 1" in refused(Function("no_such_module:f")) and "PYTHONPATH" in refused(
        Function("no_such_module:f")
    )
    assert "did you mean 'shouted'?" in refused(function("shoutd"))
    assert "does not take these arguments" in refused(function("shouted", arguments={"marks": "?"}))
    assert "there are id, text" in refused(function("shouted", ("txt",)), kind=SchemaError)
    group = operation_named("rows.group_by", {"by": ["text"]})
    assert "last operation" in refused(group, split)
    with pytest.raises(BadInput, match="did you mean 'string'"):
        function("shouted", returns={"loud": "strin"})
    with pytest.raises(RefMissing):
        Pipeline("nothing", (), "made").plan(store)


def test_a_plan_says_schemas_passes_and_what_the_memo_has(store: Store, texts: Dataset) -> None:
    first = operation_named("check.near_duplicate_texts", {"column": "text", "action": "drop"})
    size = function("picky", returns={"size": "int32"})
    plan = Pipeline("texts", [size, first, Split()], "made").plan(store)
    assert [schema.names for schema in plan.schemas] == [
        ["id", "text"], ["id", "text", "size"], ["id", "text", "size"], ["id", "text", "size", "split"],
    ]  # fmt: skip
    assert len(plan.passes) == 1
    memo = Memo.of(store)
    assert plan.memoised(memo)[0]["known"] == 0
    Pipeline("texts", [size], "made").run(store)
    told = plan.memoised(memo)
    assert told[0]["operations"] == [f"{HERE}:picky"] and told[0]["known"] == 50 == told[0]["rows"]


# -- rows that fail ----------------------------------------------------------------------------------------------------


def test_a_row_that_an_operation_raises_on_is_named_or_quarantined(store: Store) -> None:
    values = [f"text {number}" for number in range(500)]
    for row in (17, 18, 333):
        values[row] = "bad"
    write(store, "texts", table_of(values), ["id"])
    pipeline = Pipeline("texts", [function("picky", returns={"size": "int32"})], "made")
    with pytest.raises(
        OperationFailed, match=r"operation 1 .*picky\) failed on row 17 of texts@main: KeyError.*quarantine"
    ) as caught:
        pipeline.run(store)
    assert caught.value.row == 17 and not list_refs(store, "dataset", "made")
    result = pipeline.with_changes(on_error="quarantine").run(store)
    assert result.rows_out == 497 and result.dropped() == {"failed": 3}
    found = result.findings.to_pylist()
    assert [one["row"] for one in found] == [17, 18, 333]
    assert {(one["check"], one["column"], one["action"]) for one in found} == {("failed", "text", "drop")}
    assert "no such thing as bad" in found[0]["detail"]
    written = Dataset.open(store, "made.findings")
    assert written.to_arrow().to_pylist() == found
    assert written.commit_object.lineage["searched"]["commit"] == Dataset.open(store, "texts").commit
    # What failed is tried again: it may have been the machine's fault.
    again = pipeline.with_changes(on_error="quarantine", into="made@again").run(store)
    assert (again.reused, again.computed) == (497, 3)


def test_a_function_that_fails_on_rows_together_or_returns_something_else_is_named(
    store: Store, texts: Dataset
) -> None:
    def failed(operation: Function) -> str:
        with pytest.raises(BadInput) as caught:
            Pipeline("texts", [operation], "made", "quarantine").run(store)
        return str(caught.value)

    assert "none of them alone: RuntimeError: too many at once" in failed(function("all_or_nothing"))
    assert "a column 'other' that `returns` does not have" in failed(function("wrong_name", returns={"size": "int32"}))
    assert "1 values of column 'size' for 50 rows" in failed(function("wrong_length", returns={"size": "int32"}))
    assert "no column 'n'" in failed(function("odd", ("id",), returns={"n": "int32"}))


def test_functions_make_columns_tensors_and_selections(store: Store, texts: Dataset) -> None:
    operations = [
        function("odd", ("id",)),
        function("shouted", returns={"loud": "text"}, arguments={"mark": "?!"}),
        function("pixels", returns={"pixels": "uint8[2, 2]"}),
    ]
    rows = Pipeline("texts", operations, "made").run(store).dataset
    table = rows.to_arrow()
    assert table["id"].to_pylist() == list(range(1, 50, 2))
    assert table["loud"][0].as_py() == "TEXT 1?!"
    assert table["pixels"].combine_chunks().to_numpy_ndarray().shape == (25, 2, 2)
    assert rows.schema.field("loud").metadata == {b"lepton.semantic": b"text"}


def test_a_function_gives_class_labels_by_name_or_number_so_that_training_takes_them(
    store: Store, texts: Dataset
) -> None:
    def made(name: str, on_error: str = "raise") -> Dataset:
        operation = function(name, ("id",), returns={"parity": "class_label[even, odd]"})
        return Pipeline("texts", [operation], f"made@{name}", on_error).run(store).dataset

    for name in ("parity_names", "parity_numbers"):
        rows = made(name)
        assert class_names(rows.schema.field("parity")) == ["even", "odd"]
        assert rows.to_arrow()["parity"].to_pylist() == [None, *(number % 2 for number in range(1, 50))]
    with pytest.raises(OperationFailed, match=r"on row 7 of .*there is no class 'seven'; there are even, odd"):
        made("parity_unknown")
    assert len(made("parity_unknown", "quarantine")) == 49
    with pytest.raises(BadInput, match="classes have different names"):
        function("odd", ("id",), returns={"parity": "class_label[even, even]"})


def test_code_that_changes_is_run_again(
    store: Store, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python takes compiled code whose source has the same second and length for the same.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing_code.py"
    pipeline = Pipeline("texts", [Function("changing_code:size", ["text"], {"size": "int32"})], "made")
    for factor in (1, 2):
        module.write_text(
            f"def size(batch):\n    return {{'size': [len(one) * {factor} for one in batch['text'].to_pylist()]}}\n"
        )
        sys.modules.pop("changing_code", None)
        importlib.invalidate_caches()
        result = pipeline.run(store)
        assert result.computed == 50
        assert result.dataset.to_arrow()["size"][0].as_py() == 6 * factor
    sys.modules.pop("changing_code", None)


def test_code_that_was_edited_after_its_import_is_not_taken_for_what_runs(
    store: Store, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "edited_code.py"
    pipeline = Pipeline("texts", [Function("edited_code:size", ["text"], {"size": "int32"})], "made")
    code = "def size(batch):\n    return {'size': [%d for one in batch['text']]}\n"
    module.write_text(code % 1)
    importlib.invalidate_caches()
    pipeline.run(store)
    module.write_text(code % 22)
    with pytest.raises(BadInput, match=r"'edited_code' was edited.*reload"):
        pipeline.run(store)
    importlib.reload(sys.modules["edited_code"])
    result = pipeline.run(store)
    assert result.computed == 50 and result.dataset.to_arrow()["size"][0].as_py() == 22
    sys.modules.pop("edited_code")


def test_code_that_was_edited_between_its_import_and_the_first_run_is_not_taken_for_what_runs(
    store: Store, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of the file alone, at the first look, kept outcomes of the old code under the new code's name, for good."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "edited_early.py"
    code = "import functools\n\n\ndef size(batch):\n    return {'size': [%d for one in batch['text']]}\n"
    module.write_text(code % 1)
    importlib.invalidate_caches()
    imported = importlib.import_module("edited_early")
    pipeline = Pipeline("texts", [Function("edited_early:size", ["text"], {"size": "int32"})], "made")
    for wrong in (code % 2, "no python at all"):
        module.write_text(wrong)
        with pytest.raises(BadInput, match=r"'edited_early' was edited.*reload"):
            pipeline.run(store)
    module.write_text(code % 1)
    assert pipeline.run(store).computed == 50
    importlib.reload(imported)
    assert not pipeline.run(store).written
    sys.modules.pop("edited_early")


def test_code_that_another_module_names_is_seen_where_it_stands(
    store: Store, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "named_here.py").write_text("from stands_there import size\n")
    pipeline = Pipeline("texts", [Function("named_here:size", ["text"], {"size": "int32"})], "made")
    for number in (1, 2):
        (tmp_path / "stands_there.py").write_text(
            f"def size(batch):\n    return {{'size': [{number} for one in batch['text']]}}\n"
        )
        for name in ("named_here", "stands_there"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        assert pipeline.run(store).dataset.to_arrow()["size"][0].as_py() == number
    for name in ("named_here", "stands_there"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    "others",
    [
        [{"table": {"t": "x", "x": "y"}}, {"table": {"x": "y", "t": "x"}}],
        [{"table": {}, "value": one} for one in (1, 1.0, True, "1")],
        [{"table": {}, "value": 0.0}, {"table": {}, "value": -0.0}],
    ],
    ids=["order", "type", "sign"],
)
def test_arguments_that_python_takes_for_equal_are_different(
    store: Store, texts: Dataset, others: list[dict[str, Any]]
) -> None:
    """Recipes are compared as JSON without order: the memo gave one the outcomes of the other, and lineage said that nothing was new."""
    for arguments in others:
        pipeline = Pipeline("texts", [function("in_turn", returns={"turned": "string"}, arguments=arguments)], "made")
        kept = pipeline.run(store).dataset.to_arrow()["turned"]
        fresh = pipeline.with_changes(into="fresh").run(store, memo=False).dataset.to_arrow()["turned"]
        assert kept.to_pylist() == fresh.to_pylist()


def test_arguments_that_lineage_could_not_say_are_refused() -> None:
    with pytest.raises(BadInput, match="the key 1, which is no text"):
        function("in_turn", arguments={"table": [{"a": {1: "one"}}]})


def test_code_that_is_edited_during_a_run_is_not_what_its_lineage_names(
    store: Store, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "edited_meanwhile.py"
    code = "def size(batch):\n    return {'size': [%d for one in batch['text']]}\n"
    module.write_text(code % 1)
    importlib.invalidate_caches()
    pipeline = Pipeline("texts", [Function("edited_meanwhile:size", ["text"], {"size": "int32"})], "made")

    def edit(what: str, done: int, total: int) -> None:
        module.write_text(code % 2)

    made = pipeline.run(store, progress=edit).dataset
    (said,) = made.commit_object.lineage["operations"]
    assert said["libraries"] == {"code": digest_of((code % 1).encode()).hex()}
    sys.modules.pop("edited_meanwhile")


def test_a_worker_with_another_source_of_a_function_is_refused(texts: Dataset) -> None:
    operation = function("shouted", returns={"loud": "string"}).bound(texts, texts.schema)
    assert isinstance(operation, Function)
    batch = pa.record_batch({"text": ["a"]})
    assert operation.apply(batch).columns["loud"].to_pylist() == ["A!"]
    object.__setattr__(operation, "code", "0" * 64)  # as the caller has it
    with pytest.raises(BadInput, match="a worker has another source"):
        operation.apply(batch)


def test_columns_are_not_exchanged_by_the_memo_when_they_are_returned_in_another_order(
    store: Store, texts: Dataset
) -> None:
    for at, names in enumerate((["first", "last"], ["last", "first"])):
        returns = dict.fromkeys(names, "string")
        result = Pipeline("texts", [function("ends", returns=returns)], "made").run(store)
        assert result.written and result.dataset.schema.names == ["id", "text", *names], at
        assert result.dataset.to_arrow().slice(7, 1).select(["first", "last"]).to_pylist() == [
            {"first": "t", "last": "7"}
        ]


# -- results ---------------------------------------------------------------------------------------------------------


def test_what_did_not_change_is_found_and_what_is_there_is_not_written_again(store: Store, texts: Dataset) -> None:
    pipeline = Pipeline("texts", [function("picky", returns={"size": "int32"})], "made")
    first = pipeline.run(store)
    assert (first.reused, first.computed, first.written) == (0, 50, True)
    entries = store.state.sequence
    again = pipeline.run(store)
    assert not again.written and again.dataset.commit == first.dataset.commit and store.state.sequence == entries
    values = [f"text {number}" for number in range(50)]
    values[7] = "something else"
    changed = write(store, "texts", table_of([*values, "one more", "one more"]), ["id"])
    second = pipeline.run(store)
    assert (second.reused, second.computed) == (49, 3)
    parents = [parent.hex() for parent in second.dataset.commit_object.parents]
    assert parents == [changed.commit, first.dataset.commit]
    assert "seconds" not in str(second.dataset.commit_object.lineage)
    Memo.of(store).clear()  # type: ignore[union-attr]
    other = pipeline.with_changes(into="made@other").run(store)
    assert (other.reused, other.computed) == (0, 52)
    assert other.dataset.commit_object.root == second.dataset.commit_object.root


def test_a_result_on_the_branch_that_is_read_is_made_once(store: Store, texts: Dataset) -> None:
    pipeline = Pipeline("texts", [Select(where="id < 10")])
    first = pipeline.run(store)
    assert first.dataset.label == "texts@main" and len(first.dataset) == 10
    again = pipeline.run(store)
    assert not again.written and again.dataset.commit == first.dataset.commit
    assert len(Dataset.open(store, "texts~1")) == 50, "nothing that was there is lost"


def test_a_pipeline_may_end_in_groups(store: Store) -> None:
    write(store, "texts", table_of(["a", "b", "a", "c", "a"] * 40), ["id"])
    group = operation_named("rows.group_by", {"by": ["text"], "aggregates": ["count", "max(id) as last"]})
    result = Pipeline("texts", [Select(where="id >= 5"), group], "groups").run(store)
    assert result.dataset.to_arrow().to_pylist() == [
        {"text": "a", "count": 117, "last": 199},
        {"text": "b", "count": 39, "last": 196},
        {"text": "c", "count": 39, "last": 198},
    ]
    assert result.dataset.identity == ("text",)
    assert result.counts[0]["out"] == 195 == result.counts[1]["in"]


def test_every_row_gone_is_refused(store: Store, texts: Dataset) -> None:
    with pytest.raises(BadInput, match=r"no row of texts@main would be left: rows.select drops 50$"):
        Pipeline("texts", [Select(where="id > 1000")], "made").run(store)


def test_a_result_that_has_no_place_is_refused_before_anything_runs(store: Store, texts: Dataset) -> None:
    create_ref(store, "dataset", "texts", "v1", texts.commit, tag=True)
    write(store, "texts", table_of(["newer"]), ["id"])
    operations = [function("all_or_nothing")]  # would fail
    for into in (None, "texts@v1"):
        with pytest.raises(BadInput, match="texts@v1 is a tag, which never moves"):
            Pipeline("texts@v1", operations, into).plan(store)
    for read in ("texts@main~1", f"texts@{texts.commit[:12]}"):
        for act in ("plan", "run"):
            with pytest.raises(BadInput, match=f"{read} is no branch that the result could go to: .*into = "):
                getattr(Pipeline(read, operations), act)(store)
        looked = Pipeline(read, [Outliers(columns=["id"])]).look(store)
        assert looked.rows_in == 50, "to look needs no place"
        assert len(Pipeline(read, [Select(where="id < 7")], "made").run(store).dataset) == 7


def test_a_dataset_of_something_else_is_not_written_over_with_findings(store: Store, texts: Dataset) -> None:
    other = write(store, "made.findings", table_of(["mine"]), ["id"])
    pipeline = Pipeline("texts", [Outliers(columns=["id"])], "made")
    for act in (pipeline.plan, pipeline.run):
        with pytest.raises(BadInput, match=r"findings go into made\.findings, and that is a dataset of something else"):
            act(store)
    assert not list_refs(store, "dataset", "made")
    assert Dataset.open(store, "made.findings").commit == other.commit


def test_a_search_that_finds_nothing_is_written_too_so_that_reports_know_of_it(store: Store, texts: Dataset) -> None:
    Pipeline("texts", [Outliers(columns=["id"], action="drop")], "made").run(store)
    found = Dataset.open(store, "made.findings")
    assert len(found) == 0 and found.commit_object.lineage["checks"] == ["outliers"]
    Pipeline("texts", [Select(where="id > 3")], "selected").run(store)
    assert not list_refs(store, "dataset", "selected.findings"), "nobody has looked"


@pytest.mark.parametrize(
    ("name", "why"), [("always", "AssertionError"), ("leaves", r"RuntimeError: it called sys.exit\(3\)")]
)
def test_an_operation_that_raises_whatever_it_is_given_is_about_the_rows(
    store: Store, texts: Dataset, name: str, why: str
) -> None:
    """On no rows, too, which is what is left to try; and sys.exit in a thread of Daft's was waited for for ever."""
    with pytest.raises(OperationFailed, match=f"on row 0 of texts@main: {why}; correct"):
        Pipeline("texts", [function(name)], "made").run(store)
    with pytest.raises(BadInput, match=f"50 fail, row 0 with .*{why}$"):
        Pipeline("texts", [function(name)], "made", "quarantine").run(store)


def test_a_module_that_cannot_be_imported_is_named(
    store: Store, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, code, why in (
        ("no_python", "def f(:", "SyntaxError"),
        ("raising", "1 / 0", "ZeroDivisionError: division"),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        with pytest.raises(
            BadInput, match=f"operation 1: {name}:f: the module '{name}' fails when it is imported: {why}"
        ):
            Pipeline("texts", [Function(f"{name}:f")], "made").plan(store)


def test_when_every_row_fails_the_reason_is_told(store: Store, texts: Dataset) -> None:
    operation = function("words_for_numbers", returns={"size": "int32"})
    with pytest.raises(BadInput, match=r"would be left: 50 fail, row 0 with .*words_for_numbers: ArrowInvalid.*'long'"):
        Pipeline("texts", [operation], "made", "quarantine").run(store)


def test_rules_of_the_version_before_go_on(store: Store, texts: Dataset) -> None:
    size = function("picky", returns={"size": "int32"})
    Pipeline("texts", [size], "made").run(store)
    change_rules(Dataset.open(store, "made"), "size", [Rule("range", most=7)])
    write(store, "texts", table_of(["much too long for the rule"]), ["id"])
    with pytest.raises(RuleBroken, match=r"'size' breaks the rule .* in row 0"):
        Pipeline("texts", [size], "made").run(store)


def test_somebody_elses_result_is_a_conflict(store: Store, texts: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import leptonstore.process.pipeline as module

    publish = module.publish_commits

    def late(own: Store, *arguments: Any, **more: Any) -> list[str]:
        with Store.open(store.url) as other:
            write(other, "made", table_of(["theirs"]), ["id"])
        return publish(own, *arguments, **more)

    monkeypatch.setattr(module, "publish_commits", late)
    with pytest.raises(Conflict):
        Pipeline("texts", [Split()], "made").run(store)
    assert len(Dataset.open(store, "made")) == 1


def test_rows_that_somebody_appended_while_it_ran_are_not_taken_off_the_branch(
    store: Store, texts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = table_of(["theirs"]).set_column(0, "id", pa.array([99]))

    def meanwhile(what: str, done: int, total: int) -> None:
        with Store.open(store.url) as other:
            there = Dataset.open(other, "texts")
            if len(there) == 50:
                there.append(appended)

    pipeline = Pipeline("texts", [Split()])
    with pytest.raises(Conflict, match="somebody wrote texts@main while this ran"):
        pipeline.run(store, progress=meanwhile)
    result = pipeline.run(store)
    assert result.rows_out == 51 and result.computed <= 51


def test_two_runs_of_one_pipeline_at_once_make_one_version(
    store: Store, texts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import leptonstore.process.pipeline as module

    pipeline, publish = Pipeline("texts", [Split()], "made"), module.publish_commits

    def late(*arguments: Any) -> list[str]:
        monkeypatch.undo()
        with Store.open(store.url) as other:
            assert pipeline.run(other).written
        return publish(*arguments)

    monkeypatch.setattr(module, "publish_commits", late)
    made = pipeline.run(store).dataset
    assert Dataset.open(store, "made").commit == made.commit


def test_a_result_and_its_findings_come_together_or_not_at_all(
    store: Store, texts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were two commits: a run that was ended between them left a result whose findings never came."""
    write(store, "rows", table_of(["a", "bad", "c"]), ["id"])
    pipeline = Pipeline("rows", [function("picky", returns={"size": "int32"})], "made", on_error="quarantine")
    before = store.state.sequence
    done = pipeline.run(store)
    entries = [store.entry(number) or {} for number in range(before + 1, store.state.sequence + 1)]
    moved = [{ref["name"] for ref in entry.get("refs", ())} for entry in entries]
    assert [names for names in moved if names] == [{"dataset/made/main", "dataset/made.findings/main"}]
    again = pipeline.run(store)
    assert not again.written and again.findings.to_pylist() == done.findings.to_pylist() != []


def test_a_row_that_fails_keeps_what_was_found_before(store: Store) -> None:
    """Its reason stood in the place of what earlier operations of the same chain had said."""
    schema = pa.schema(
        [pa.field("id", pa.int64(), nullable=False), *(pa.field(name, pa.string()) for name in ("text", "other"))]
    )
    values = ["a long text", "bad", "c"]
    write(store, "rows", pa.table([pa.array(range(3)), values, values], schema=schema), ["id"])
    found = []
    for column in ("text", "other"):  # in one chain, and in two
        operations = [TextLength(column=column, min=4), function("picky", returns={"size": "int32"})]
        result = Pipeline("rows", operations, f"made_{column}", on_error="quarantine").run(store)
        found.append(sorted((one["row"], one["check"]) for one in result.findings.to_pylist()))
    assert found[0] == found[1] == [(1, "failed"), (1, "text_length"), (2, "text_length")]


def test_a_reason_that_is_no_unicode_is_told_escaped(store: Store, texts: Dataset) -> None:
    pipeline = Pipeline("texts", [function("odd_name")], "made", on_error="quarantine")
    with pytest.raises(BadInput, match=r"file \\udc80 is bad"):  # of all rows: none is left
        pipeline.run(store)


def test_erase_leaves_nothing_of_a_row_in_the_memo(store: Store) -> None:
    secret = "the very secret of Ada Lovelace"
    write(store, "texts", table_of(["a", secret, "b"]), ["id"])
    Pipeline("texts", [function("shouted", returns={"loud": "string"})], "made").run(store)
    memo = Memo.of(store)
    assert memo is not None and memo.usage().rows == 3

    def hidden() -> bool:
        files = [path for path in memo.path.rglob("*") if path.is_file()]
        return not any(secret.upper().encode() in path.read_bytes() for path in files)

    assert not hidden()
    report = erase(store, ["texts", "made"], where=f"text = '{secret}'", same_identity=True)
    assert report.absent, report.found
    assert hidden() and memo.usage().rows == 0
    assert any("memo" in line for line in report.caches)


def test_every_operation_says_what_it_is_and_has_parameters_that_toml_can_hold() -> None:
    from leptonstore.cli.process import _operation

    for name in OPERATIONS:
        told = _operation(name)
        assert re.match(r"[A-Z][a-z]+.{10,120}\.$", told["summary"]), (name, told["summary"])
