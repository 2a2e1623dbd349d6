"""What a credential for one dataset may see, against the plain answer: everything that each version of it reaches, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leptonstore.chunking import ChunkSizes
from leptonstore.daemon.digest_set import BUFFER_DIGESTS, DigestSet
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.daemon.reachable import Reachable
from leptonstore.dataset import Source, delete_ref, list_refs, write_dataset
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.edit import append
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.graph import ancestry
from leptonstore.digest import Digest, digest_of, parse_hex
from leptonstore.errors import BadInput, TooBusy
from leptonstore.store import Store
from leptonstore.store.config import StoreConfig
from leptonstore.store.walk import walk

NAMES = ("birds", "fish")
SMALL = ChunkSizes(cut_above=65_536, min_size=4_096, avg_size=16_384, max_size=65_536)
# A value in a page, a chunk of its own, and one in pieces; a few of each, so that datasets share some.
VALUES = [bytes([n]) * 10 for n in range(2)]
VALUES += [np.random.default_rng(n).bytes(20_000) for n in range(2)] + [np.random.default_rng(9).bytes(200_000)]

step = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.lists(st.integers(0, len(VALUES) - 1), max_size=4)),
    st.tuples(st.just("branch"), st.sampled_from(NAMES), st.integers(0, 1)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.integers(0, 1)),
    st.tuples(st.just("forget"), st.sampled_from(NAMES), st.just(1)),
)


@contextmanager
def new_store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with Store.create(place / "store", StoreConfig(chunks=SMALL), cache_dir=place / "cache") as store:
            yield store


def do(store: Store, what: str, name: str, how: object) -> None:
    """One step; what is impossible now does nothing."""
    refs = {info.branch: info for info in list_refs(store, "dataset", name)}
    if what == "write":
        assert isinstance(how, list)
        table = pa.table({"id": list(range(len(how))), "value": pa.array([VALUES[n] for n in how], pa.binary())})
        write_dataset(store, name, Source(table.schema, ("id",), lambda: iter(table.to_batches())))
    elif what == "branch" and "main" in refs and f"b{how}" not in refs:
        create_ref(store, "dataset", name, f"b{how}", refs["main"].commit)
    elif what == "remove":
        branch = ("main", "b0")[how]  # type: ignore[index]
        if branch in refs:
            delete_ref(store, "dataset", name, branch)
    elif what == "forget" and "main" in refs:
        forget_all_but(store, "dataset", name, 1)


def reached(store: Store, name: str) -> set[Digest]:
    """The plain answer."""
    commits = {c for info in list_refs(store, "dataset", name) for c in ancestry(store, info.commit)}
    return {found.digest for commit in commits for found in walk(store, commit)}


def who(*grants: str) -> Principal:
    return Principal("id", "name", tuple(Grant.parse(text) for text in grants))


@settings(max_examples=25, deadline=None)
@given(st.lists(step, min_size=4, max_size=10))
@example(
    [
        ("write", "birds", [0, 2]),
        ("write", "fish", [2, 4]),
        ("branch", "fish", 0),
        ("write", "fish", [3]),
        ("remove", "fish", 1),
    ]
)
@example([("write", "birds", [0, 2]), ("branch", "birds", 0), ("write", "birds", [3, 4]), ("remove", "birds", 0)])
@example([("write", "birds", [0, 4]), ("write", "birds", [1]), ("write", "fish", [1]), ("forget", "birds", 1)])
def test_a_credential_for_a_dataset_sees_just_what_its_refs_reach(steps: list[tuple[str, str, object]]) -> None:
    with new_store() as store:
        reachable = Reachable(store)
        every: set[Digest] = {digest_of(b"nowhere")}
        try:
            for one in steps:
                try:
                    do(store, *one)
                except BadInput:
                    continue
                store.refresh()
                plain = {name: reached(store, name) for name in NAMES}
                every |= plain["birds"] | plain["fish"]
                asked = sorted(every)
                for grants, allowed in (
                    (("read:birds",), plain["birds"]),
                    (("admin:fish",), plain["fish"]),
                    (("write:fish", "read:birds"), plain["birds"] | plain["fish"]),
                    (("peer",), set[Digest]()),
                ):
                    visible = reachable.visible(who(*grants))
                    assert visible is not None
                    seen = {digest for digest, yes in zip(asked, visible(asked), strict=True) if yes}
                    assert seen == allowed & every, (one, grants)
                assert reachable.visible(who("read")) is None
        finally:
            reachable.close()


def test_a_walk_that_takes_long_asks_its_client_to_come_again(store: Store) -> None:
    do(store, "write", "birds", [0, 2])
    with_no_patience = Reachable(store, wait_s=0.0)
    try:
        with pytest.raises(TooBusy):
            for _ in range(1_000):  # each may find the walk done; a new version makes the next one
                do(store, "write", "birds", [0] * (_ + 1))
                with_no_patience.visible(who("read:birds"))
    finally:
        with_no_patience.close()


def test_a_walk_that_a_full_disk_ended_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked next was given that same failure, until something was published."""
    do(store, "write", "birds", [0, 2])
    reachable = Reachable(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as there_is_no_room:
        there_is_no_room.setattr(DigestSet, "add", full)
        with pytest.raises(OSError):
            reachable.visible(who("read:birds"))
    visible = reachable.visible(who("read:birds"))
    assert visible is not None and all(visible(list(reached(store, "birds"))))
    reachable.close()


def test_a_new_version_costs_what_it_changed(store: Store) -> None:
    rows = 60_000
    table = pa.table({"id": np.arange(rows), "value": np.random.default_rng(1).random(rows)})
    made = write_dataset(store, "birds", Source(table.schema, ("id",), lambda: iter(table.to_batches())))
    reachable = Reachable(store)
    try:
        reachable.visible(who("read:birds"))
        asked: list[Digest] = []
        get, get_many = store.get, store.get_many
        store.get = lambda digest: asked.append(digest) or get(digest)  # type: ignore[method-assign,func-returns-value]
        store.get_many = lambda some: asked.extend(some) or get_many(some)  # type: ignore[method-assign,func-returns-value]
        do(store, "write", "fish", [1])
        asked.clear()
        reachable.visible(who("read:birds"))
        assert asked == []  # somebody else's
        new = append(made, pa.table({"id": [rows], "value": [0.5]})).commit
        asked.clear()
        visible = reachable.visible(who("read:birds"))
        cost = len(asked)
        assert visible is not None and visible([parse_hex(new), parse_hex(made.commit)]) == [True, True]
        assert {found.digest for found in walk(store, new)} == {
            f.digest for f in walk(store, new) if visible([f.digest])[0]
        }
    finally:
        reachable.close()
    plain = len({found.digest for found in walk(store, made.commit)})
    assert 0 < cost < plain / 4, (cost, plain)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3 * BUFFER_DIGESTS), max_size=6), st.integers(0, 7))
def test_a_set_of_digests_holds_what_was_added_and_nothing_else(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made, plain = DigestSet(), set[bytes]()
    for size in sizes:
        # Zeros at the end of a key must not be taken for a shorter one: numpy pads with them.
        block = [rng.bytes(14) + bytes(2) + bytes(16) if n % 7 == 0 else rng.bytes(32) for n in range(size)]
        made.add(block)
        plain |= set(block)
        made.add(block[: size // 3])
    asked = [*sorted(plain)[:5_000], *(rng.bytes(32) for _ in range(1_000))]
    assert made.contains(asked) == [digest in plain for digest in asked]
