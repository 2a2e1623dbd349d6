"""What every operation of a pipeline promises, tried on each of them (operation_examples.py): pieces and their order do not matter,
nulls pass, the schema that is told beforehand is the one that comes out, and what decides the result passes through JSON and pickle."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from operation_examples import EXAMPLES, Example, write

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, LeptonError, SchemaError
from leptonstore.process import findings
from leptonstore.process.operation import GroupOperation, Made, Operation, RowOperation, TableOperation
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.pipeline_file import parse_pipeline
from leptonstore.process.registry import OPERATIONS, operation_named
from leptonstore.store import Store

ODD = [
    5,
    -1,
    0.5,
    float("inf"),
    float("nan"),
    10**30,
    True,
    "",
    "x",
    [],
    ["x"],
    [3],
    [["x"]],
    [{"x": 1}],
    {},
    {"x": 1},
    {"id": [{"rule": 1}]},
]
CUTS = [(), (1,), (0, 0, 7, 7, 31), (20, 40), tuple(range(1, 60))]  # empty pieces, too


@pytest.fixture(scope="module", params=EXAMPLES, ids=str)
def example(request: pytest.FixtureRequest) -> Example:
    found: Example = request.param
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the store of all tests here, none of which changes what another reads, and for tokenizers."""
    folder = tmp_path_factory.mktemp("operations")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def store(place: Path) -> Iterator[Store]:
    with Store.create(place / "store") as made:
        yield made


@pytest.fixture(scope="module")
def ds(store: Store, example: Example) -> Dataset:
    return write(store, f"samples-{example.table_number}", example.table)


@pytest.fixture(scope="module")
def free(store: Store, example: Example, place: Path) -> Operation:
    """As a pipeline file makes it."""
    return operation_named(example.name, example.given(store, place))


@pytest.fixture(scope="module")
def operation(free: Operation, ds: Dataset) -> Operation:
    return free.bound(ds, ds.schema)


def test_every_operation_has_an_example() -> None:
    assert {example.name for example in EXAMPLES} == set(OPERATIONS)


def test_the_recipe_is_json_and_a_bound_operation_pickles(operation: Operation, ds: Dataset) -> None:
    recipe = operation.recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["operation"] in OPERATIONS
    again = pickle.loads(pickle.dumps(operation))  # noqa: S301
    assert again.recipe() == recipe and again == operation
    assert _result(again, ds.schema, _whole(ds)) == _result(operation, ds.schema, _whole(ds))


def test_parameters_make_the_operation_again(free: Operation) -> None:
    parameters = json.loads(json.dumps(free.parameters()))
    assert operation_named(free.name, parameters).recipe() == free.recipe()


def test_binding_twice_changes_nothing(operation: Operation, ds: Dataset) -> None:
    assert operation.bound(ds, ds.schema).recipe() == operation.recipe()


def test_columns_that_are_not_there_are_named_before_anything_runs(operation: Operation, ds: Dataset) -> None:
    for name in operation.reads(ds.schema):
        rest = pa.schema([field for field in ds.schema if field.name != name])
        try:
            names = operation.reads(rest)
        except SchemaError as error:
            assert name in str(error)
        else:
            assert set(names) <= set(rest.names)  # one that works on whatever there is


def test_an_unknown_parameter_is_refused_with_the_known_ones(example: Example) -> None:
    with pytest.raises(BadInput, match="colunm"):
        operation_named(example.name, {"colunm": "x"})


def test_parameters_of_any_kind_are_accepted_or_refused_in_a_line(free: Operation, ds: Dataset) -> None:
    """Whatever a pipeline file may hold: what does not fit is a LeptonError, and never anything else."""
    for name, value in ((name, value) for name in free.parameters() for value in ODD):
        try:
            operation_named(free.name, free.parameters() | {name: value}).bound(ds, ds.schema).output(ds.schema)
        except LeptonError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{free.name}: {name} = {value!r}") from error


def test_what_is_read_and_made_stands_in_the_schemas(operation: Operation, ds: Dataset, example: Example) -> None:
    assert set(operation.reads(ds.schema)) <= set(ds.schema.names)
    assert len(set(operation.reads(ds.schema))) == len(operation.reads(ds.schema))
    output = operation.output(ds.schema)
    batch = _read(operation, ds.schema, _whole(ds))
    if isinstance(operation, GroupOperation):
        partial = operation.partial(batch)
        assert partial.schema.equals(operation.partials(ds.schema), check_metadata=True)
        assert partial.num_rows <= batch.num_rows
        result = operation.result(pa.Table.from_batches([partial]))
        assert result.schema.equals(output, check_metadata=True)
        identity = operation.identity(ds.schema)
        assert set(identity) <= set(output.names)
        keys = list(zip(*(result[name].to_pylist() for name in identity), strict=True))
        assert len(set(keys)) == len(keys)
        return
    made = _made(operation, ds.schema, batch)
    added = [name for name in made.columns if name not in ds.schema.names]
    assert output.names == [*ds.schema.names, *added]
    left = np.ones(batch.num_rows, np.bool_) if made.keep is None else made.keep.copy()
    left[list(made.failed)] = False
    for name, values in made.columns.items():
        field = output.field(name)
        assert values.type == field.type and len(values) == batch.num_rows
        assert field.nullable or not (values.is_null().to_numpy(zero_copy_only=False) & left).any()
    for name in set(ds.schema.names) - set(made.columns):
        assert output.field(name).equals(ds.schema.field(name), check_metadata=True)
    assert set(made.columns) <= set(operation.writes(ds.schema)) <= set(output.names)
    assert bool(made.failed) == example.fails
    if made.findings is not None:
        assert made.findings.schema == findings.SCHEMA


def test_where_the_rows_are_cut_does_not_matter(operation: Operation, ds: Dataset) -> None:
    batch = _whole(ds)
    whole = _result(operation, ds.schema, batch)
    for cuts in CUTS:
        pieces = [batch.slice(start, stop - start) for start, stop in pairwise((0, *cuts, batch.num_rows))]
        assert _result(operation, ds.schema, *pieces) == whole, cuts


def test_the_order_of_the_rows_does_not_matter(operation: Operation, ds: Dataset) -> None:
    batch = _whole(ds)
    order = np.random.default_rng(0).permutation(batch.num_rows)
    moved = batch.take(pa.array(order))
    if isinstance(operation, GroupOperation):
        assert _result(operation, ds.schema, moved) == _result(operation, ds.schema, batch)
        return
    if isinstance(operation, TableOperation):
        # What a row is measured as is its own affair; which of two equal rows is kept is not.
        before, after = (operation.measure(_read(operation, ds.schema, one)) for one in (batch, moved))
        assert _rows_of(before.take(pa.array(order))) == _rows_of(after)
        return
    before, after = (_per_row(operation, ds.schema, one) for one in (batch, moved))
    assert [before[row] for row in order.tolist()] == after


def test_nulls_pass(operation: Operation, ds: Dataset) -> None:
    """A null in any column that allows it changes nothing of other rows."""
    if not isinstance(operation, RowOperation):
        return
    batch = _whole(ds)
    before = _per_row(operation, ds.schema, batch)
    for name in operation.reads(ds.schema):
        if not ds.schema.field(name).nullable:
            continue
        rows = np.arange(batch.num_rows)
        hidden = batch.set_column(
            batch.schema.get_field_index(name), ds.schema.field(name), _with_nulls(batch.column(name), rows % 2 == 0)
        )
        after = _per_row(operation, ds.schema, hidden)
        assert after[1::2] == before[1::2]
        everything = batch.set_column(
            batch.schema.get_field_index(name), ds.schema.field(name), _with_nulls(batch.column(name), rows >= 0)
        )
        assert len(_per_row(operation, ds.schema, everything)) == batch.num_rows


def test_no_rows_are_rows(operation: Operation, ds: Dataset) -> None:
    nothing = _whole(ds).slice(0, 0)
    result = _result(operation, ds.schema, nothing)
    assert result == _result(operation, ds.schema, nothing)


def test_a_pipeline_makes_the_same_rows(
    free: Operation, operation: Operation, ds: Dataset, store: Store, example: Example
) -> None:
    pipeline = Pipeline(ds.name, [free], into=f"made-{EXAMPLES.index(example)}", on_error="quarantine")
    written = parse_pipeline(pipeline.to_toml())
    assert [one.recipe() for one in written.operations] == [free.recipe()]
    made = written.run(store)
    batch = _read(operation, ds.schema, _whole(ds))
    if isinstance(operation, GroupOperation):
        expected = operation.result(pa.Table.from_batches([operation.partial(batch)]))
        assert _rows_of(made.dataset.to_arrow()) == _rows_of(expected)
        return
    outcome = _made(operation, ds.schema, batch)
    goes_on = np.ones(batch.num_rows, np.bool_) if outcome.keep is None else outcome.keep.copy()
    goes_on[list(outcome.failed)] = False
    rows = pa.array(np.flatnonzero(goes_on))
    expected = _whole(ds).take(rows)
    schema = operation.output(ds.schema)
    columns = dict(zip(expected.schema.names, map(_values, expected.columns), strict=True))
    for name, values in outcome.columns.items():
        text = _values(values)
        columns[name] = [text[row] for row in rows.to_pylist()]
    result = made.dataset.to_arrow()
    assert result.schema.equals(schema, check_metadata=True)
    assert {name: _values(result[name]) for name in result.schema.names} == columns
    assert sum(made.findings["check"].to_numpy() == "failed") == len(outcome.failed)
    again = pipeline.run(store)
    assert again.dataset.commit == made.dataset.commit


# -- running operations as pipelines do --------------------------------------------------------------------------------


def _whole(ds: Dataset) -> pa.RecordBatch:
    return ds.to_arrow().combine_chunks().to_batches()[0]


def _read(operation: Operation, schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    names = operation.reads(schema)
    if not names:
        return batch.select([])
    return pa.RecordBatch.from_arrays(
        [batch.column(name) for name in names], schema=pa.schema([schema.field(name) for name in names])
    )


def _made(operation: Operation, schema: pa.Schema, batch: pa.RecordBatch) -> Made:
    if isinstance(operation, TableOperation):
        measured = operation.measure(batch)
        assert measured.schema.equals(operation.features(schema)) and measured.num_rows == batch.num_rows
        return operation.decide(pa.Table.from_batches([measured]))
    assert isinstance(operation, RowOperation)
    return operation.apply(batch)


def _result(operation: Operation, schema: pa.Schema, *pieces: pa.RecordBatch) -> object:
    """All that comes of the rows in these pieces, comparable."""
    read = [_read(operation, schema, piece) for piece in pieces]
    if isinstance(operation, GroupOperation):
        partials = [operation.partial(piece) for piece in read]
        some = [operation.merged(pa.Table.from_batches(half)) for half in (partials[1::2], partials[::2]) if half]
        return _rows_of(operation.result(pa.concat_tables(some)))
    if isinstance(operation, TableOperation):
        measured = pa.Table.from_batches([operation.measure(piece) for piece in read])
        made = operation.decide(measured)
        return list(_rows_made(made, len(measured)))
    assert isinstance(operation, RowOperation)
    return [row for piece in read for row in _rows_made(operation.apply(piece), piece.num_rows)]


def _per_row(operation: Operation, schema: pa.Schema, batch: pa.RecordBatch) -> list[object]:
    return list(_rows_made(_made(operation, schema, _read(operation, schema, batch)), batch.num_rows))


def _rows_made(made: Made, rows: int) -> Iterator[object]:
    """Of each row: its values, whether it goes on, what was found, why it failed."""
    values = {name: _values(array) for name, array in made.columns.items()}
    told: dict[int, list[str]] = {}
    for found in [] if made.findings is None else made.findings.to_pylist():
        told.setdefault(found["row"], []).append(
            repr({k: v for k, v in found.items() if k not in ("row", "other", "group")})
        )
    for row in range(rows):
        failed = made.failed.get(row)
        own = {name: None if failed else array[row] for name, array in values.items()}
        yield own, made.keep is None or bool(made.keep[row]), sorted(told.get(row, [])), failed


def _rows_of(table: pa.Table | pa.RecordBatch) -> list[object]:
    return [list(row) for row in zip(*(_values(column) for column in table.columns), strict=True)]


def _values(array: pa.Array | pa.ChunkedArray) -> list[str]:
    """As text, in which NaN equals itself."""
    plain = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if isinstance(plain, pa.ExtensionArray):
        plain = plain.storage
    return [repr(value) for value in plain.to_pylist()]


def _with_nulls(array: pa.Array, hidden: np.ndarray) -> pa.Array:
    plain = array.storage if isinstance(array, pa.ExtensionArray) else array
    nulled = plain.take(pa.array(np.arange(len(plain)), mask=hidden))
    return pa.ExtensionArray.from_storage(array.type, nulled) if isinstance(array, pa.ExtensionArray) else nulled
