"""A run over a mixture with weights changed, passes left and continued elsewhere, against a plain model of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixing_model import reference

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, Mixture, Order  # noqa: E402
from loaders.mixing import whole_weights  # noqa: E402
from loaders.mixture_order import derived  # noqa: E402

SIZES = {"web": 150, "code": 60, "books": 400}
SAMPLES = 331  # of an epoch: no multiple of anything
EPOCHS = 4
SEED = 5


@cache
def pass_of(name: str, number: int) -> list[int]:
    """The rows of a source in one of its passes."""
    return Order(SIZES[name], derived(SEED, 0, False, name), number).rows_at(0, SIZES[name]).tolist()


class Model:
    """What the run hands out, sample by sample, from the changes of weights made so far."""

    def __init__(self) -> None:
        self.changes: dict[int, tuple[int, ...]] = {0: whole_weights({"web": 5, "code": 3, "books": 2}, tuple(SIZES))}
        self._made()

    def change(self, position: int, weights: dict[str, float]) -> None:
        earlier = {at: held for at, held in self.changes.items() if at < max(position, 1)}
        self.changes = {**earlier, position: whole_weights(weights, tuple(SIZES))}
        self._made()

    def _made(self) -> None:
        starts, weights = list(self.changes), list(self.changes.values())
        drawn = reference(weights, starts, derived(SEED, 0, False, ""), SAMPLES * EPOCHS)
        self.sources = [source for source, _ in drawn]
        self.ids = []
        for source, draw in drawn:
            name, size = list(SIZES.items())[source]
            self.ids.append(1000 * source + pass_of(name, draw // size)[draw % size])

    def counts(self, position: int) -> dict[str, int]:
        return {name: self.sources[:position].count(at) for at, name in enumerate(SIZES)}


@pytest.fixture
def datasets(store: Store, source_of: Callable[..., Source]) -> dict[str, Any]:
    tables = {name: pa.table({"id": 1000 * at + np.arange(size)}) for at, (name, size) in enumerate(SIZES.items())}
    return {name: write_dataset(store, name, source_of(table, ("id",))) for name, table in tables.items()}


weights_of = st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any)
steps = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("weights"), weights_of),
    st.tuples(st.just("restore"), st.sampled_from([1, 3, 4, 8])),
    st.tuples(st.just("leave"), st.none()),
    st.tuples(st.just("batch"), st.sampled_from([16, 64, 50])),
)


@given(moves=st.lists(steps, min_size=4, max_size=14), threads=st.sampled_from([0, 2]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_is_what_its_model_says(datasets: dict[str, Any], moves: list[tuple[str, Any]], threads: int) -> None:
    mixture = Mixture(
        {name: (ds, weight) for (name, ds), weight in zip(datasets.items(), (5, 3, 2), strict=True)},
        samples_per_epoch=SAMPLES,
    )
    options: dict[str, Any] = {"seed": SEED, "num_workers": threads, "arena_bytes_max": 0 if threads else None}
    world, batch = 4, 64

    def ranks(state: dict[str, Any] | None) -> list[Any]:
        made = [
            DataLoader(mixture, global_batch_size=batch, rank=rank, world_size=world, **options)
            for rank in range(world)
        ]
        for loader in made if state else []:
            loader.load_state_dict(json.loads(json.dumps(state)))
        return made

    model, loaders, epoch, consumed = Model(), ranks(None), 0, 0
    passes: list[Any] = []
    for move, value in moves:
        if epoch == EPOCHS:
            break
        if move == "weights":
            weights = dict(zip(SIZES, map(float, value), strict=True))
            for loader in loaders:
                loader.set_weights(weights)
            model.change(epoch * SAMPLES + consumed, weights)
        elif move in ("restore", "batch"):
            world, batch = (value, batch) if move == "restore" else (world, value)
            loaders, passes = ranks(loaders[0].state_dict()), []
        elif move == "leave" and consumed:
            passes, epoch, consumed = [], epoch + 1, 0
            for loader in loaders:
                loader.set_epoch(epoch)
        for _ in range(value if move == "step" else 0):
            if epoch == EPOCHS:
                break
            passes = passes or [iter(loader) for loader in loaders]
            found = [row for one in passes for row in next(one)["id"].tolist()]
            at = epoch * SAMPLES + consumed
            assert found == model.ids[at : at + min(batch, SAMPLES - consumed)]
            consumed += len(found)
            if consumed == SAMPLES:
                assert all(next(one, None) is None for one in passes)
                passes, epoch, consumed = [], epoch + 1, 0
        states = [loader.state_dict() for loader in loaders]
        assert all(state == states[0] for state in states)
        assert (states[0]["epoch"], states[0]["consumed"]) == (epoch, consumed)
        assert mixture.counts(states[0]) == model.counts(epoch * SAMPLES + consumed)
