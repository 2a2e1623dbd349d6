"""Two trees at once: the row groups that one version has and another has not.

Both are walked from the top, level by level. Where a node is the same in both (by digest), everything below is, and it is not read. So
what is read is the row groups that differ and the nodes above them. Nodes are cut by content, so those of two versions meet again
after every change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leptonstore.dataset.align import align
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged
from leptonstore.format.commit import Commit
from leptonstore.format.node import InternalNode, parse_node
from leptonstore.store import Store


@dataclass(frozen=True)
class Leaf:
    """A row group of a version: `rows` rows from row `first` on."""

    digest: Digest
    first: int
    rows: int


@dataclass(frozen=True)
class Gap:
    """Row groups of two versions that stand in each other's place, between others that are equal; one side may have none.

    before_row, after_row: the first row of the place in each version.
    """

    before: list[Leaf]
    after: list[Leaf]
    before_row: int
    after_row: int


def gaps(store: Store, before: Commit, after: Commit) -> Iterator[Gap]:
    """Where two versions differ, in row order. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
    if before.root == after.root:
        return
    sides = []
    for commit in (before, after):
        nodes = [] if commit.root is None else [Leaf(commit.root, 0, commit.rows)]
        sides.append((nodes, _level(store, commit.root)))
    yield from _between(store, *sides[0], *sides[1], 0, 0)


def _level(store: Store, root: Digest | None) -> int:
    node = None if root is None else parse_node(store.get(root))
    return node.level if isinstance(node, InternalNode) else 0


def _between(
    store: Store, ours: list[Leaf], our_level: int, theirs: list[Leaf], their_level: int, our_row: int, their_row: int
) -> Iterator[Gap]:
    """The gaps below some nodes of one version and those of another that stand in their place."""
    while our_level > their_level and ours:
        ours, our_level = _children(store, ours, our_level), our_level - 1
    while their_level > our_level and theirs:
        theirs, their_level = _children(store, theirs, their_level), their_level - 1
    for mine, others, my_row, other_row in _unequal(ours, theirs, our_row, their_row):
        if (our_level == 0 or not mine) and (their_level == 0 or not others):
            yield Gap(mine, others, my_row, other_row)
        else:
            below = _children(store, mine, our_level), max(our_level - 1, 0)
            beside = _children(store, others, their_level), max(their_level - 1, 0)
            yield from _between(store, *below, *beside, my_row, other_row)


def _children(store: Store, nodes: list[Leaf], level: int) -> list[Leaf]:
    out = []
    for above, data in zip(nodes, store.get_many([node.digest for node in nodes]), strict=True):
        node = parse_node(data)
        if not isinstance(node, InternalNode) or node.level != level or node.rows != above.rows:
            raise FormatDamaged(f"tree node {above.digest.hex()[:16]} is not what its parent says (level {level})")
        first = above.first
        for child in node.children:
            out.append(Leaf(child.digest, first, child.rows))
            first += child.rows
    return out


def _unequal(
    ours: list[Leaf], theirs: list[Leaf], our_row: int, their_row: int
) -> Iterator[tuple[list[Leaf], list[Leaf], int, int]]:
    """Stretches of nodes between those that both have, with the rows at which they begin."""
    mine, others = pair_up([node.digest for node in ours], [node.digest for node in theirs])
    at, other = 0, 0
    for end, other_end in zip([*mine, len(ours)], [*others, len(theirs)], strict=True):
        if at < end or other < other_end:
            yield ours[at:end], theirs[other:other_end], our_row, their_row
        if end < len(ours):
            our_row = ours[end].first + ours[end].rows
        if other_end < len(theirs):
            their_row = theirs[other_end].first + theirs[other_end].rows
        at, other = end + 1, other_end + 1


def pair_up(ours: list[Digest], theirs: list[Digest]) -> tuple[list[int], list[int]]:
    """Positions of equal digests, ascending in both."""
    first_bytes = [np.frombuffer(b"".join(digest[:8] for digest in side), np.uint64) for side in (ours, theirs)]
    found = zip(*(positions.tolist() for positions in align(*first_bytes)), strict=True)
    pairs = [(mine, other) for mine, other in found if ours[mine] == theirs[other]]
    return [mine for mine, _ in pairs], [other for _, other in pairs]
