"""Values of every type that a store keeps come through Daft as they were, in whatever pieces it hands them on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_strategies import FLAT, NESTED, TENSORS, canonical, tables

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.groups import stored_columns
from leptonstore.dataset.values import one_array, resolve
from leptonstore.process.engine import Runner, rows_of, write_rows
from leptonstore.process.engine.carrier import Carried, from_carrier, to_carrier
from leptonstore.process.engine.pieces import Piece
from leptonstore.store import Store

KINDS = st.one_of(st.sampled_from([*FLAT, *TENSORS]), NESTED)


class Same:
    """All rows as they are."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.reads = schema, tuple(schema.names)

    def __call__(self, piece: Piece, store: Store) -> Piece:
        return piece


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = tmp_path_factory.mktemp("engine")
    with Store.create(place / "store", cache_dir=place / "cache") as made:
        yield made


@settings(deadline=None)
@given(tables(KINDS, rows_max=9), st.data())
def test_columns_are_the_same_after_daft_cut_and_joined_them(
    store: Store, table: pa.Table, data: st.DataObject
) -> None:
    from daft.recordbatch import MicroPartition, RecordBatch

    batch = table.combine_chunks().to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)
    carried = Carried(table.schema)
    arrays = carried.pack(stored_columns(store, table.schema, batch))
    given_to_daft = pa.Table.from_arrays(arrays, schema=carried.schema)
    whole_part = MicroPartition._from_record_batches([RecordBatch.from_arrow_table(given_to_daft)])
    at = data.draw(st.integers(0, len(table)))
    pieces = [whole_part.slice(at, len(table)), whole_part.slice(0, at)]
    back = MicroPartition.concat(pieces[::-1]).to_arrow()
    columns = carried.unpack([one_array(back[name]) for name in carried.schema.names])
    made = pa.Table.from_arrays(
        [resolve(store, one, field.type) for one, field in zip(columns, table.schema, strict=True)], schema=table.schema
    )
    assert canonical(made) == canonical(table)


@given(tables(KINDS, semantics=False, rows_max=9), st.data())
def test_what_is_left_out_is_null_on_its_way_and_the_rest_as_it_was(table: pa.Table, data: st.DataObject) -> None:
    """A step that leaves rows out spreads what it keeps over the rows that it was given."""
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))), np.bool_)
    places = pa.array(np.cumsum(keep) - 1, mask=~keep)
    kept = np.flatnonzero(keep)
    for name in table.schema.names:
        array = one_array(table[name])
        chosen = canonical(pa.table({name: table[name]}).take(pa.array(kept)))
        spread = to_carrier(one_array(table.take(pa.array(kept))[name])).take(places)
        back = from_carrier(spread.filter(pa.array(keep)), array.type)
        assert canonical(pa.Table.from_arrays([back], names=[name])) == chosen


@settings(max_examples=15, deadline=None)
@given(tables(KINDS, rows_max=9))
def test_a_pass_over_any_table_gives_the_table_and_its_tree(store: Store, table: pa.Table) -> None:
    name = table.schema.names[0]
    source = Source(table.schema, (name,), lambda: iter(table.combine_chunks().to_batches()))
    ds = write_dataset(store, "any", source, branch=f"b{len(store.state.refs)}")
    found, findings = rows_of(ds, Same(ds.schema), Runner("native"))
    assert found["row"].to_pylist() == list(range(len(table))) and not len(findings)
    assert canonical(found.drop_columns(["row"])) == canonical(table)
    assert write_rows(ds, Same(ds.schema), (name,), Runner("native")).tree.root == ds.commit_object.root
