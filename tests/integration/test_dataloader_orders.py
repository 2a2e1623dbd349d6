"""Orders in the DataLoader: the same batches on any number of ranks and workers, a restore at every step, any batch again, limits."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loader_data import ids, joined

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError  # noqa: E402
from loaders.order import FullOrder, OrderStrategy  # noqa: E402
from loaders.orders import BlockShuffle, Bucketed, ClassBalanced, Curriculum, Subset, Weighted  # noqa: E402
from tests.integration.order_checks import (  # noqa: E402
    Synthetic,
    assert_reachable,
    assert_resumes_everywhere,
    assert_topology_free,
)

ROWS, BATCH = 211, 24
RNG = np.random.default_rng(5)
COLUMNS = {
    "label": RNG.integers(0, 5, ROWS),
    "weight": RNG.random(ROWS) * (np.arange(ROWS) % 7 > 0),
    "score": RNG.normal(size=ROWS),
    "size": RNG.integers(1, 90, ROWS),
}
STRATEGIES: dict[str, OrderStrategy] = {
    "full": FullOrder(True),
    "sequential": FullOrder(False),
    "block": BlockShuffle(block_rows=10, window_blocks=4),
    "weighted": Weighted("weight"),
    "weighted, without replacement": Weighted("weight", replacement=False),
    "weighted array": Weighted(np.arange(ROWS), samples=300),
    "balanced": ClassBalanced("label"),
    "balanced, more than a class has": ClassBalanced("label", per_class=70),
    "subset": Subset(range(3, ROWS, 2)),
    "subset of rows": Subset(RNG.permutation(ROWS)[:130], inner=BlockShuffle(7, 5)),
    "curriculum": Curriculum("score", start=0.5, epochs=2, noise=0.3),
    "bucketed": Bucketed("size", batch_rows=BATCH, pool_rows=3 * BATCH),
    "bucketed blocks of a subset": Subset(
        range(200), inner=Bucketed("size", batch_rows=BATCH, inner=BlockShuffle(16, 4))
    ),
}
ONCE = {"full", "sequential", "block", "bucketed"}  # every row of the dataset once an epoch


def maker(name: str, **options: Any) -> Callable[..., DataLoader]:
    dataset = Synthetic(ROWS, **COLUMNS)

    def make(**topology: Any) -> DataLoader:
        return DataLoader(dataset, order=STRATEGIES[name], seed=3, global_batch_size=BATCH, **options, **topology)

    return make


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_global_batches_are_equal_for_every_world_size_and_number_of_workers(name: str) -> None:
    batches = assert_topology_free(maker(name))
    steps = -(-ROWS // BATCH)
    if name in ONCE:
        assert sorted(joined(batches[:steps])) == sorted(joined(batches[steps:])) == list(range(ROWS))
    if name != "sequential":
        assert batches[:steps] != batches[steps:], "another order in another epoch"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_restore_at_every_step_at_another_world_size_repeats_and_misses_nothing(name: str) -> None:
    assert_resumes_everywhere(maker(name))


@pytest.mark.parametrize("options", [{"limit_batches": 4}, {"limit_batches": 0.7}, {"overfit_batches": 3}])
def test_limited_epochs_are_shared_and_resumed_as_whole_ones(options: dict[str, Any]) -> None:
    make = maker("block", **options)
    assert_resumes_everywhere(make)
    steps = len(make())
    assert steps == {"limit_batches": 6, "overfit_batches": 3}[next(iter(options))] or options == {"limit_batches": 4}
    batches = assert_topology_free(make, world_sizes=(1, 3, 8), workers=(0, 2))
    whole = ids(maker("block")())
    assert batches[:steps] == whole[:steps]
    assert (batches[steps:] == batches[:steps]) == ("overfit_batches" in options)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("options", [{}, {"limit_batches": 3}, {"overfit_batches": 2}, {"drop_last": True}])
def test_any_batch_can_be_had_again(name: str, options: dict[str, Any]) -> None:
    assert_reachable(maker(name, rank=1, world_size=3, **options)())


def test_the_rows_of_all_ranks_are_those_of_each() -> None:
    make = maker("block")
    loaders = [make(rank=rank, world_size=3) for rank in range(3)]
    for step in range(len(loaders[0])):
        together = loaders[0].rows_at(5, step, all_ranks=True).tolist()
        assert joined(loader.rows_at(5, step).tolist() for loader in loaders) == together


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loader_passes_between_processes_with_its_order(name: str) -> None:
    loader = maker(name)()
    loader.set_epoch(2)
    expected = ids(loader)
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    twin.set_epoch(2)
    assert ids(twin) == expected
    # A pickled loader takes the receipt of what was handed out so far with it.
    assert {**twin.state_dict(), "receipt": {}} == {**loader.state_dict(), "receipt": {}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_states_stay_small_and_name_their_order(name: str) -> None:
    loader = maker(name)()
    state = loader.state_dict()
    assert len(json.dumps(state)) <= 1024 and state["order"] == STRATEGIES[name].spec()
    for other in STRATEGIES:
        if STRATEGIES[other].spec() != STRATEGIES[name].spec():
            with pytest.raises(LoaderStateError, match="order="):
                maker(other)().load_state_dict(state)


def test_weights_of_another_array_are_another_order() -> None:
    dataset = Synthetic(ROWS)
    state = DataLoader(dataset, order=Weighted(np.ones(ROWS))).state_dict()
    with pytest.raises(LoaderStateError, match="order="):
        DataLoader(dataset, order=Weighted(np.arange(ROWS))).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_worker_processes_get_the_same_rows(num_workers: int) -> None:
    """With a `collate_fn`, torch's own worker processes read what the order says."""
    make = maker("bucketed", collate_fn=rows_of_dicts, num_workers=num_workers)
    assert [*make()] == ids(maker("bucketed")())
    ranks = [make(rank=rank, world_size=3) for rank in range(3)]
    assert [joined(parts) for parts in zip(*ranks, strict=True)] == ids(maker("bucketed")())
    assert_reachable(make(), key=list)


def rows_of_dicts(rows: list[dict[str, int]]) -> list[int]:
    return [row["id"] for row in rows]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_limit_holds_for_ranks_alike_and_counts_global_batches() -> None:
    dataset = Synthetic(100)
    assert len(DataLoader(dataset, 10, limit_batches=1.0)) == 10
    assert ids(DataLoader(dataset, 10, limit_batches=1)) == [list(range(10))]
    assert len(DataLoader(dataset, 10, limit_batches=99)) == 10
    assert len(DataLoader(dataset, 10, limit_batches=0.39)) == 3
    ranks = [DataLoader(dataset, 7, limit_batches=2, rank=rank, world_size=3) for rank in range(3)]
    assert [joined(ids(loader)) for loader in ranks] == [
        [row for row in range(42) if row % 21 // 7 == rank] for rank in range(3)
    ]


def test_the_last_short_batch_counts_as_one() -> None:
    dataset = Synthetic(25)
    assert [len(batch) for batch in ids(DataLoader(dataset, 10, limit_batches=3))] == [10, 10, 5]
    assert [len(batch) for batch in ids(DataLoader(dataset, 10, limit_batches=3, drop_last=True))] == [10, 10]


def test_overfitting_sees_the_same_batches_in_every_epoch() -> None:
    loader = DataLoader(Synthetic(1000), 10, shuffle=True, seed=4, overfit_batches=3)
    first = ids(loader)
    assert len(first) == 3 and ids(loader) == first and loader.state_dict()["epoch"] == 2
    assert first == ids(DataLoader(Synthetic(1000), 10, shuffle=True, seed=4))[:3], "of epoch 0"
    assert ids(DataLoader(Synthetic(1000), 10, overfit_batches=0.02)) == [list(range(10)), list(range(10, 20))]


@pytest.mark.parametrize("name", ["limit_batches", "overfit_batches"])
@pytest.mark.parametrize("limit", [0, -1, 0.0, 1.5, True, "3"])
def test_a_limit_that_is_none_is_named(name: str, limit: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, or a share"):
        DataLoader(Synthetic(100), 10, **{name: limit})


def test_limits_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        DataLoader(Synthetic(100), 10, limit_batches=1, overfit_batches=1)
    with pytest.raises(ValueError, match=r"limit_batches=0.05 of 10 batches is no batch"):
        DataLoader(Synthetic(100), 10, limit_batches=0.05)
    with pytest.raises(ValueError, match="limit_batches: only for a LeptonStore dataset"):
        DataLoader([1, 2, 3], limit_batches=1)  # type: ignore[arg-type]


def test_an_epoch_that_was_begun_is_finished_within_the_limit_that_it_began_with() -> None:
    dataset = Synthetic(100)
    running = DataLoader(dataset, 10, limit_batches=4)
    batches = iter(running)
    next(batches)
    state = running.state_dict()
    with pytest.raises(
        LoaderStateError, match=r"epoch of 40 positions.*epoch 0 has 100: finish it with the same limit"
    ):
        DataLoader(dataset, 10).load_state_dict(state)
    list(batches)
    following = DataLoader(dataset, 10)
    following.load_state_dict(running.state_dict())  # between epochs it may change
    assert len(ids(following)) == 10


def test_overfitting_is_another_order_than_the_epochs_it_takes_from() -> None:
    state = DataLoader(Synthetic(100), 10, overfit_batches=2).state_dict()
    with pytest.raises(LoaderStateError, match=r"order=.*overfit"):
        DataLoader(Synthetic(100), 10).load_state_dict(state)


@pytest.mark.parametrize("order", [BlockShuffle, "shuffle", 3])
def test_what_is_no_order_is_named(order: Any) -> None:
    with pytest.raises(ValueError, match="order must be an order strategy, such as"):
        DataLoader(Synthetic(100), order=order)


def test_no_batch_of_torchs_own_loader() -> None:
    loader = DataLoader([1, 2, 3])  # type: ignore[arg-type]
    for call in (loader.batch_at, loader.rows_at):
        with pytest.raises(LoaderStateError, match="draws from torch's samplers"):
            call(0, 0)


# -- size --------------------------------------------------------------------------------------------------------------

HUGE = 10**9


@pytest.mark.parametrize(
    "order",
    [
        FullOrder(True),
        FullOrder(False),
        BlockShuffle(),
        BlockShuffle(100, 5),
        Subset(range(0, HUGE, 2)),
        Subset(range(HUGE), inner=BlockShuffle()),
    ],
    ids=lambda order: order.spec()["name"],
)
@pytest.mark.parametrize("limit", [None, 0.9])
def test_a_restore_in_a_billion_rows_is_a_number(order: OrderStrategy, limit: float | None) -> None:
    """At most 10 ms to the first batch of a restored loader; of this thread's own time, as the machine may be busy."""
    dataset = Synthetic(HUGE)
    options: dict[str, Any] = {"order": order, "global_batch_size": 1024, "rank": 3, "world_size": 7}
    loader = DataLoader(dataset, limit_batches=limit, **options)
    length = loader.state_dict()["length"]
    taken = []
    for run in range(7):
        state = {**loader.state_dict(), "epoch": 5 + run, "consumed": length // 1024 // 2 * 1024}
        restored = DataLoader(dataset, limit_batches=limit, **options)
        began = time.thread_time()
        restored.load_state_dict(state)
        batch = next(iter(restored))
        taken.append(time.thread_time() - began)
        step = state["consumed"] // 1024
        assert batch["id"].tolist() == restored.rows_at(5 + run, step).tolist() and len(batch["id"]) == 147
    assert min(taken) <= 0.010, taken


# -- columns of a store ------------------------------------------------------------------------------------------------


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    rng = np.random.default_rng(0)
    rows = 5_000
    table = pa.table(
        {
            "id": np.arange(rows),
            "label": pa.array(rng.integers(0, 4, rows).astype(np.uint8)),
            "weight": rng.random(rows).astype(np.float32),
            "text": pa.array([None if at % 50 == 3 else "x" * (at % 97) for at in range(rows)]),
            "tokens": pa.array([list(range(at % 31)) for at in range(rows)]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows)), 2),
        }
    )
    return write_dataset(store, "samples", source_of(table, ("id",)))


FROM_STORE = [
    Weighted("weight"),
    Weighted("weight", replacement=False, samples=1_000),
    ClassBalanced("label"),
    Subset("label = 2 and id > 100", inner=Curriculum("weight")),
    Curriculum("label"),
    Bucketed("text", batch_rows=64),
    Bucketed("tokens", batch_rows=64),
]


@pytest.mark.parametrize("order", FROM_STORE, ids=lambda order: order.spec()["name"])
@pytest.mark.parametrize("path", ["gather", "threads", "rows", "view", "cached"])
def test_columns_are_read_whatever_the_loader_reads(
    ds: Dataset, order: OrderStrategy, path: str, tmp_path: Any
) -> None:
    """The order reads columns that are not in the batch; views and caches change nothing."""
    every = ds.to_arrow()
    arrays = {name: every[name].to_numpy() for name in ("id", "label", "weight")}
    arrays |= {name: np.array([len(value or "") for value in every[name].to_pylist()]) for name in ("text", "tokens")}
    options: dict[str, Any] = {"columns": ["id"]}
    if path == "threads":
        options |= {"arena_bytes_max": 0, "num_workers": 2}
    if path == "rows":
        options = {"collate_fn": lambda rows: {"id": torch.tensor([row["id"] for row in rows])}}
    if path == "cached":
        ds = ds.cached(tmp_path / "cache", 64 << 20)
    if path == "view":
        chosen = np.random.default_rng(1).permutation(len(ds))
        ds, arrays = ds.select(chosen), {name: values[chosen] for name, values in arrays.items()}

    class Known(Synthetic):
        """The same columns, as arrays, and what the condition finds."""

        def __lepton_source__(self, columns: Any, arena_bytes_max: int | None) -> Any:
            source = super().__lepton_source__(columns, arena_bytes_max)
            source.gather = lambda rows: {name: values[rows] for name, values in arrays.items()}
            source.column = lambda name, lengths=False: arrays[name]
            source.rows_where = lambda condition: np.flatnonzero((arrays["label"] == 2) & (arrays["id"] > 100))
            return source

    common: dict[str, Any] = {"order": order, "seed": 1, "global_batch_size": 64, "limit_batches": 5}
    expected = ids(DataLoader(Known(len(ds)), **common))
    assert ids(DataLoader(ds, **common, **options)) == expected


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Weighted("nothing"), "'samples' has no column 'nothing'"),
        (Weighted("text"), "column 'text' of dataset 'samples' has no single number in each row"),
        (Weighted("vector"), "column 'vector' of dataset 'samples' has no single number in each row"),
        (Weighted([1.0, 2.0]), "the array has 2 numbers and 'samples' has 5000 rows"),
        (ClassBalanced("weight"), "column 'weight' has float32 values, and classes are whole numbers"),
        (ClassBalanced("text"), "column 'text' of dataset 'samples' has no single number"),
        (Bucketed("weight", 4), "column 'weight' has float32 values, and lengths are whole numbers"),
        (Curriculum("gone"), "has no column 'gone'"),
        (Subset([5_000]), "a Subset has row 5000, and 'samples' has 5000 rows"),
        (Subset([-1]), "a Subset has row -1"),
        (Subset("gone > 3"), "no column 'gone'; there are id, label"),
    ],
)
def test_orders_that_do_not_fit_are_refused_by_name(ds: Dataset, order: OrderStrategy, message: str) -> None:
    with pytest.raises((ValueError, BadInput), match=message):
        DataLoader(ds, 10, order=order)
