"""Finding row groups in a tree: lazily, and as if the whole tree had been read."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset.kept import Kept
from leptonstore.dataset.tree import Leaves
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import FormatDamaged
from leptonstore.format.node import Child, InternalNode, Part, RowGroup, encode_internal, encode_row_group
from leptonstore.store import Store


class _Nodes:
    """Nodes in memory; counts what is read."""

    def __init__(self) -> None:
        self.data: dict[Digest, bytes] = {}
        self.reads = 0

    def put(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self.data[digest] = data
        return digest

    def get(self, digest: Digest) -> bytes:
        self.reads += 1
        return self.data[digest]

    def tree(self, sizes: list[int], fanout: int) -> Leaves:
        """Row groups of `sizes` rows under nodes of `fanout` children."""
        level, children = 0, []
        for number, rows in enumerate(sizes):
            group = RowGroup(rows, ((Part(digest_of(b"%d" % number), rows, 0, 8),),))
            children.append(Child(self.put(encode_row_group(group)), rows, 8))
        while len(children) > 1:
            level += 1
            nodes = [InternalNode(level, tuple(children[at : at + fanout])) for at in range(0, len(children), fanout)]
            children = [Child(self.put(encode_internal(node)), node.rows, node.plain_bytes) for node in nodes]
        return Leaves(cast(Store, self), children[0].digest if children else None, sum(sizes))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(2, 6), st.data())
def test_a_search_agrees_with_reading_everything(sizes: list[int], fanout: int, data: st.DataObject) -> None:
    total = sum(sizes)
    ends = np.cumsum(sizes)
    leaves = _Nodes().tree(sizes, fanout)
    rows = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=40)), np.int64)
    found, numbers = leaves.locate(rows)
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        at = int(np.searchsorted(ends, row, side="right"))
        wanted = (int(ends[at]) - sizes[at], int(ends[at]))
        assert found[number][:2] == wanted == leaves.find(row)[:2]
        assert leaves.find(row) == found[number] and leaves.read(found[number]).rows == sizes[at]
    assert [leaf.first for leaf in found] == sorted({leaf.first for leaf in found})
    spans = list(leaves.spans())
    assert [leaf.end for leaf in spans] == ends.tolist()
    assert leaves.starts.tolist() == [0, *ends.tolist()] and leaves.digests == [leaf.digest for leaf in spans]


def test_a_row_reads_one_path_and_then_nothing() -> None:
    nodes = _Nodes()
    leaves = nodes.tree([1_000] * 1_000, 10)
    assert nodes.reads == 0, "opening reads no node"
    leaf = leaves.find(777_777)
    assert leaf[:2] == (777_000, 778_000) and nodes.reads == 3
    leaves.read(leaf)
    assert nodes.reads == 4
    leaves.read(leaves.find(777_001))
    assert nodes.reads == 4
    leaves.locate(np.array([0, 999_999, 777_500]))
    assert nodes.reads == 8, "the root is known, and so is one of the three paths"


def test_a_tree_that_does_not_add_up_is_refused() -> None:
    nodes = _Nodes()
    group = nodes.put(encode_row_group(RowGroup(5, ((Part(digest_of(b""), 5, 0, 8),),))))
    for children, rows, message in (
        ([Child(group, 5, 8)], 6, "6"),
        ([Child(group, 4, 8), Child(group, 5, 8)], 9, "the node above says 4"),
    ):
        root = nodes.put(encode_internal(InternalNode(1, tuple(children))))
        leaves = Leaves(cast(Store, nodes), root, rows)
        with pytest.raises(FormatDamaged, match=message):
            leaves.read(leaves.find(0))
    below = nodes.put(encode_internal(InternalNode(1, (Child(group, 5, 8),))))
    leaves = Leaves(cast(Store, nodes), nodes.put(encode_internal(InternalNode(3, (Child(below, 5, 8),)))), 5)
    with pytest.raises(FormatDamaged, match="level 1 where level 2"):
        leaves.find(0)
    with pytest.raises(FormatDamaged, match="its commit says 5"):
        Leaves(cast(Store, nodes), None, 5)


def test_what_is_kept_is_bounded() -> None:
    kept: Kept[str] = Kept(10)
    for name in "abc":
        kept.add(name, name, 4)
    assert kept.get("a") is None and kept.get("b") == "b"
    kept.add("d", "d", 4)
    assert kept.get("c") is None and kept.get("b") == "b", "what was used last stays"
    kept.add("e", "large", 100)
    assert kept.get("e") == "large" and kept.get("b") is None
    assert kept.add("e", "another", 1) == "large"
