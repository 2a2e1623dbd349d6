"""Receipts against a model: any run of loaders (left early, restored, at other world sizes and batch sizes, with steps left out) is chained
from exactly what was handed out, is verified, and any change of its document is found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.errors import BadInput, Damaged, FormatTooNew
from loaders.chain import EMPTY, key_of, next_head
from loaders.numpy import NumpyLoader
from loaders.order import Order
from loaders.receipt import Origin, Receipt, Segment, merged
from loaders.source import ColumnSpec
from loaders.verify import Replay

SPEC = ColumnSpec("id", "", np.dtype(np.int64), ())
COMMIT = "ab" * 32


@dataclass
class Rows:
    """A source of row numbers."""

    rows: int
    name, commit, fingerprint = "rows", COMMIT, COMMIT
    columns, cold, plans = (SPEC,), (), False

    def fill(self) -> None:
        pass

    def gather(self, rows: Any) -> dict[str, Any]:
        return {"id": rows.copy()}


class Data:
    """A dataset of row numbers."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __lepton_source__(self, columns: Any, arena_bytes_max: Any) -> Rows:
        return Rows(self.rows)


class Run:
    """The ranks of one run, and what a receipt of it must be."""

    def __init__(self, rows: int, global_batch: int) -> None:
        self.rows, self.head, self.steps = rows, EMPTY, 0
        self.saved: Receipt | None = None
        self.start(1, global_batch)

    def start(self, world_size: int, global_batch: int) -> None:
        self.ranks = [
            NumpyLoader(
                Data(self.rows), shuffle=True, seed=3, global_batch_size=global_batch, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        self.passes: list[Any] = []

    def take(self, count: int) -> None:
        """Steps of the open pass, or of the next one."""
        if not self.passes:
            self.passes = [iter(loader) for loader in self.ranks]
        for _ in range(count):
            before = self.ranks[0].state_dict()
            batches = [next(one, None) for one in self.passes]
            if batches[0] is None:
                self.passes = []
                return
            rows = np.concatenate([batch["id"] for batch in batches])
            epoch = before["epoch"]
            order = Order(self.rows, 3, epoch).rows_at(0, self.rows)
            start = int(np.flatnonzero(order == rows[0])[0])
            np.testing.assert_array_equal(rows, order[start : start + len(rows)])
            self.head = next_head(self.head, key_of(epoch, COMMIT), start, rows)
            self.steps += 1

    def restart(self, world_size: int, global_batch: int) -> None:
        state = json.loads(json.dumps(self.ranks[-1].state_dict()))
        self.saved = self.receipt()
        self.start(world_size, global_batch)
        for loader in self.ranks:
            loader.load_state_dict(state)

    def receipt(self) -> Receipt:
        now = merged([loader.receipt() for loader in self.ranks])
        return now if self.saved is None else self.saved.then(now)


ACTIONS = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 12)),
    st.tuples(st.just("leave"), st.just(0)),
    st.tuples(st.just("restart"), st.integers(1, 4), st.sampled_from([7, 7, 16])),
    st.tuples(st.just("epoch"), st.integers(0, 5)),
    st.tuples(st.just("skip"), st.integers(0, 5), st.integers(0, 8), st.integers(1, 3)),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.lists(ACTIONS, max_size=14))
def test_a_receipt_is_what_was_handed_out(rows: int, actions: list[Any]) -> None:
    run = Run(rows, 7)
    for action, *arguments in actions:
        if action == "take":
            run.take(*arguments)
        elif action == "leave":
            run.passes = []
        elif action == "restart":
            run.restart(*arguments)
        elif action == "epoch":
            run.passes = []
            for loader in run.ranks:
                loader.set_epoch(*arguments)
        else:
            epoch, first, count = arguments
            for loader in run.ranks:
                loader.skip(epoch, first, first + count)
            run.passes = []
        receipt = run.receipt()
        assert (receipt.head, receipt.steps) == (run.head, run.steps)
    told = Receipt.from_dict(json.loads(receipt.to_json())) if actions else Receipt()
    assert not actions or told == receipt
    assert Replay(told, lambda origin: Rows(rows)).verify().steps == run.steps


def document() -> dict[str, Any]:
    run = Run(60, 7)
    run.take(10)  # the end of the epoch too
    run.take(5)
    run.restart(2, 16)
    run.take(3)
    return run.receipt().to_dict()


PATHS: list[tuple[Any, ...]] = [("steps",), ("head",), ("base", "head"), ("base", "steps")]
PATHS += [("origins", 0, name) for name in ("seed", "rows", "fingerprint", "order")]
PATHS += [
    ("segments", at, name)
    for at in range(3)
    for name in ("epoch", "length", "start", "stop", "global_batch", "steps", "head", "marks", "origin")
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.one_of(st.integers(-1, 70), st.text(max_size=3), st.none(), st.lists(st.integers(0, 3), max_size=2),
              st.binary(min_size=32, max_size=32).map(bytes.hex), st.just({"name": "sequential", "version": 1})),
)  # fmt: skip
def test_any_change_of_a_receipt_is_found(path: tuple[Any, ...], value: Any) -> None:
    told = document()
    assert Replay(Receipt.from_dict(told), lambda origin: Rows(60)).verify().steps == 16
    inner = told
    for key in path[:-1]:
        inner = inner[key]
    if inner[path[-1]] == value or (path[-1] == "marks" and value == []):
        return  # no change, or one that only makes it less precise
    if path[-1] == "length" and type(value) is int and inner["stop"] <= value <= 60:
        return  # epochs may be ended early (limit_batches): that binds no row
    inner[path[-1]] = value
    with pytest.raises((BadInput, Damaged, FormatTooNew)) as caught:
        Replay(Receipt.from_dict(told), lambda origin: Rows(60)).verify()
    assert len(str(caught.value).splitlines()) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(["base", "origins", "segments", "skips", "notes", "notes_left_out", "head", "steps"]), JSON)
def test_what_is_no_receipt_is_refused_and_nothing_else_happens(name: str, value: Any) -> None:
    told = {**document(), name: value}
    try:
        Receipt.from_dict(told)
    except (BadInput, Damaged, FormatTooNew):
        return
    assert Receipt.from_dict(told).to_dict()[name] == value


def test_a_spec_that_is_nested_without_end_is_damage() -> None:
    spec: dict[str, Any] = {}
    for _ in range(100_000):
        spec = {"inner": spec}
    origin = Origin("rows", COMMIT, COMMIT, 60, 3, {})
    told = Receipt((Segment(origin, 0, 60, 0, 60, 60, 1, EMPTY),)).to_dict()
    told["origins"][0]["order"] = spec
    with pytest.raises(Damaged, match="nested too deeply"):
        Receipt.from_dict(told)
