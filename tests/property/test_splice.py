"""A version is its rows: whatever edits led to them, the tree is the one that writing them at once makes."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset import Dataset, Source
from leptonstore.dataset.splice import Splice, splice
from leptonstore.dataset.tree import Tree
from leptonstore.dataset.write import publish_commit, write_table
from leptonstore.errors import BadInput
from leptonstore.format.commit import Commit
from leptonstore.format.node import InternalNode, parse_node
from leptonstore.store import Store

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("data", pa.binary(), metadata={"lepton.inline_bytes": "60", "lepton.part_bytes": "90"}),
    ]
)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep trees of few rows, in which forced maxima are common."""
    for name, value in {
        "ROW_GROUP_ROWS_MIN": 2,
        "ROW_GROUP_ROWS_AVG": 5,
        "ROW_GROUP_ROWS_MAX": 8,
        "NODE_FANOUT_AVG": 3,
        "NODE_FANOUT_MAX": 5,
        "PAGE_PART_BYTES": 100,
    }.items():
        monkeypatch.setattr(limits, name, value)


def table_of(ids: list[int]) -> pa.Table:
    """Rows that are a function of their number; some values are long enough to stand elsewhere."""
    text = [None if one % 11 == 0 else f"text {one} " * (one % 4) for one in ids]
    data = [None if one % 13 == 0 else str(one).encode() * (one % 30) for one in ids]
    return pa.table(
        [pa.array(ids, pa.int64()), pa.array(text, pa.string()), pa.array(data, pa.binary())], schema=SCHEMA
    )


def written(store: Store, table: pa.Table) -> Tree:
    """The tree that an import makes."""
    source = Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=7)))
    return Tree(*write_table(store, source))


def version(store: Store, tree: Tree, keyed: bool = False) -> Dataset:
    """A version of these rows; nothing but this object knows it."""
    commit = Commit("dataset", SCHEMA, ("id",), tree.root, tree.rows, tree.plain_bytes, keyed=keyed)
    made = Dataset(store, "d", "main", "0" * 64)
    made._commit_object = commit
    return made


def height(store: Store, tree: Tree) -> int:
    """Level of the root."""
    node = parse_node(store.get(tree.root or b""))
    return node.level if isinstance(node, InternalNode) else 0


@st.composite
def edits(draw: st.DrawFn, rows: int) -> list[tuple[int, int, int]]:
    """(at, delete, insert), sorted and disjoint; cuts of the table, its ends and neighbours of each other among them."""
    out, at = [], 0
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.one_of(st.just(at), st.integers(at, rows), st.just(rows)))
        most = rows - at
        delete = draw(st.one_of(st.integers(0, min(most, 3)), st.integers(0, most), st.just(most)))
        out.append((at, delete, draw(st.one_of(st.integers(0, 3), st.integers(0, 60)))))
        at += delete
    return out


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.one_of(st.integers(0, 30), st.integers(0, 600)), same=st.booleans())
def test_edits_that_end_in_the_same_rows_end_in_the_same_root(
    store: Store, data: st.DataObject, rows: int, same: bool
) -> None:
    """`same`: all rows alike, so that only forced maxima cut."""
    number = (lambda: 1) if same else iter(range(10**9)).__next__
    model = [number() for _ in range(rows)]
    tree = written(store, table_of(model))
    for _ in range(data.draw(st.integers(1, 3))):
        splices, shift = [], 0
        for at, delete, insert in data.draw(edits(len(model))):
            new = [number() for _ in range(insert)]
            splices.append((at, Splice(at, delete, table_of(new)), delete, new))
        base = version(store, tree)
        tree = splice(base, [one for _, one, _, _ in splices])
        for at, _, delete, new in splices:
            model[at + shift : at + shift + delete] = new
            shift += len(new) - delete
        assert tree == written(store, table_of(model))
    assert version(store, tree).to_arrow().equals(table_of(model))


def test_the_trees_of_these_tests_are_deep(store: Store) -> None:
    """Or they would prove little."""
    assert height(store, written(store, table_of(list(range(600))))) >= 3


def test_a_tree_that_shrinks_to_one_node_of_any_level_has_that_for_its_root(store: Store) -> None:
    model = list(range(400))
    base = version(store, written(store, table_of(model)))
    for start in range(0, 400, 7):
        for count in (1, 9, 40):
            end = min(400, start + count)
            tree = splice(base, [Splice(0, start), Splice(end, 400 - end)])
            assert tree == written(store, table_of(model[start:end]))
    assert splice(base, [Splice(0, 400)]) == Tree(None, 0, 0)
    assert splice(base, []).root == base.commit_object.root


def test_rows_that_end_with_a_cut_before_the_only_group(store: Store) -> None:
    """The old group came out again at once, and was lost: nothing at the top stands beside it."""
    base = version(store, written(store, table_of([1, 2, 3])))
    for count in range(1, 60):
        new = list(range(100, 100 + count))
        assert splice(base, [Splice(0, 0, table_of(new))]) == written(store, table_of([*new, 1, 2, 3]))


def test_rows_of_another_version_are_put_in_without_reading_their_values(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = list(range(100))
    base = version(store, written(store, table_of(model)))
    other = version(store, written(store, table_of(list(range(1000, 1100)))))
    stored = [columns for _, columns in other.iter_stored(SCHEMA.names)]
    read: list[bytes] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda digest: read.append(digest) or get(digest))
    tree = splice(base, [Splice(40, 0, stored)])
    monkeypatch.undo()
    for name, value in {"ROW_GROUP_ROWS_MIN": 2, "ROW_GROUP_ROWS_AVG": 5, "ROW_GROUP_ROWS_MAX": 8}.items():
        monkeypatch.setattr(limits, name, value)
    assert version(store, tree).to_arrow()["id"].to_pylist() == [*range(40), *range(1000, 1100), *range(40, 100)]
    assert read and all(get(digest)[:4] in (b"LND1", b"LPG1") for digest in read)


def test_an_edit_reads_its_neighbourhood_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 rows in about 4,000 groups, one edit reads a few pages and a few nodes a level, and writes as few."""
    tree = written(store, table_of(list(range(20_000))))
    store.flush()
    base = version(store, tree)
    read = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda digest: read.append(digest) or get(digest))
    before = store.put_bytes
    splice(base, [Splice(10_000, 1)])
    assert 0 < len(read) < 40 * height(store, tree) and store.put_bytes - before < 40_000


def test_edits_out_of_order_or_range_are_refused(store: Store) -> None:
    base = version(store, written(store, table_of(list(range(50)))))
    for wrong in ([Splice(10, 5), Splice(12)], [Splice(10), Splice(9)], [Splice(51)], [Splice(49, 2)], [Splice(0, -1)]):
        with pytest.raises(BadInput, match="out of order"):
            splice(base, wrong)
    with pytest.raises(BadInput, match="selection"):
        splice(base.select([1, 2]), [Splice(0, 1)])


def test_a_version_that_was_spliced_is_published_and_read_again(store: Store) -> None:
    base = version(store, written(store, table_of(list(range(50)))))
    tree = splice(base, [Splice(3, 2, table_of([7, 7, 7]))])
    commit = Commit("dataset", SCHEMA, ("id",), tree.root, tree.rows, tree.plain_bytes)
    publish_commit(store, commit, "dataset/d/main", None)
    with Store.open(store.url) as again:
        ids = Dataset.open(again, "d").to_arrow()["id"].to_pylist()
    assert ids == [0, 1, 2, 7, 7, 7, *range(5, 50)]
