"""A loader over a mixture: what is in its batches, at any world size; weights in mid-run; what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loader_data import make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Mixture  # noqa: E402
from loaders.mixture import ramp  # noqa: E402
from loaders.order import FullOrder  # noqa: E402
from loaders.verify import Replay  # noqa: E402
from loaders.windows import TokenWindows  # noqa: E402

Make = Callable[..., Source]
COLD: dict[str, Any] = {"arena_bytes_max": 0}
ROWS = {"web": 900, "code": 400}


@pytest.fixture
def datasets(store: Store, source_of: Make) -> dict[str, Dataset]:
    return {name: write_dataset(store, name, source_of(make_table(rows, rows), ("id",))) for name, rows in ROWS.items()}


@pytest.fixture
def mix(datasets: dict[str, Dataset]) -> Mixture:
    return Mixture({"web": (datasets["web"], 0.7), "code": (datasets["code"], 0.3)}, source_column="from")


def seen(batches: Any) -> list[list[tuple[int, int]]]:
    """(source, row) of each sample of each batch."""
    return [list(zip(batch["from"].tolist(), batch["id"].tolist(), strict=True)) for batch in batches]


def joined(parts: Iterable[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return list(chain.from_iterable(parts))


# -- what is in a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, COLD, {**COLD, "num_workers": 2}, {"arena_bytes_max": 20_000}])
def test_every_value_is_that_of_its_source(mix: Mixture, options: dict[str, Any]) -> None:
    tables = [make_table(rows, rows) for rows in ROWS.values()]
    images = [table["image"].combine_chunks().to_numpy_ndarray() for table in tables]
    texts = [table["text"].to_pylist() for table in tables]
    samples = 0
    for batch in DataLoader(mix, 100, **options):
        assert list(batch) == [*tables[0].column_names, "from"] and batch["from"].dtype == torch.int64
        for at, (source, row) in enumerate(seen([batch])[0]):
            np.testing.assert_array_equal(batch["image"][at], images[source][row])
            assert batch["text"][at] == texts[source][row]
            samples += 1
    assert samples == sum(ROWS.values())


def test_columns_are_the_loaders_choice(mix: Mixture) -> None:
    assert list(next(iter(DataLoader(mix, 4, columns=["from", "id"])))) == ["from", "id"]
    source, label = next(iter(DataLoader(mix, 4, as_tuple=("from", "label"))))
    assert source.shape == label.shape == (4,)
    assert list(next(iter(DataLoader(mix, 4, columns=["id"])))) == ["id"]
    with pytest.raises(ValueError, match="no column 'nope'"):
        DataLoader(mix, 4, columns=["nope"])


def test_views_are_sources_too(datasets: dict[str, Dataset]) -> None:
    ds = datasets["web"]
    mix = Mixture({"odd": (ds.select(np.arange(1, 900, 2)), 1), "even": (ds.select(np.arange(0, 900, 2)), 3)})
    found = np.concatenate([batch["id"] for batch in DataLoader(mix, 90, columns=["id"])])
    assert abs((found % 2).sum() - 225) <= 64 and len(found) == 900


def test_windows_of_token_streams_are_sources(store: Store, source_of: Make) -> None:
    def corpus(name: str, first: int) -> TokenWindows:
        tokens = [list(range(first + 40 * at, first + 40 * (at + 1))) for at in range(100)]
        table = pa.table({"id": np.arange(100), "tokens": pa.array(tokens, pa.list_(pa.uint16()))})
        return TokenWindows(write_dataset(store, name, source_of(table, ("id",))), length=17)

    mix = Mixture({"low": (corpus("low", 0), 3), "high": (corpus("high", 10_000), 1)}, source_column="from")
    loader = DataLoader(mix, 64)
    low, windows = 0, 0
    for batch in loader:
        tokens = batch["tokens"].to(torch.int64)
        assert bool((tokens - tokens[:, :1] == torch.arange(17)).all())
        assert bool(((tokens[:, 0] >= 10_000) == (batch["from"] == 1)).all())
        low, windows = low + int((batch["from"] == 0).sum()), windows + len(tokens)
    assert windows == len(mix) == 470 and mix.counts(loader.state_dict()) == {"low": low, "high": 470 - low}


def rows_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.int64) for name in ("from", "id")}


def test_a_collate_fn_gets_the_same_rows_also_in_worker_processes(mix: Mixture) -> None:
    gathered = seen(DataLoader(mix, 100))
    assert seen(DataLoader(mix, 100, collate_fn=rows_of)) == gathered
    loader = DataLoader(mix, 100, collate_fn=rows_of, num_workers=2, multiprocessing_context="fork")
    batches = iter(loader)
    first = [next(batches) for _ in range(2)]
    loader.set_weights({"web": 0, "code": 1})  # batches that lie ready in worker processes are dropped
    assert seen(first) == gathered[:2] and {source for batch in seen(batches) for source, _ in batch} == {1}
    assert [(mix[at]["from"], mix[at]["id"]) for at in (0, 899, 900, -1)] == [(0, 0), (0, 899), (1, 0), (1, 399)]
    with pytest.raises(IndexError, match="row 1300: the mixture has 1300 rows"):
        mix[1300]


def test_through_the_hot_cache_each_source_plans_its_own(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    place = tmp_path / "cache"
    cached = {name: ds.cached(place, 64 << 20) for name, ds in datasets.items()}
    mix = Mixture({name: (ds, 1) for name, ds in cached.items()}, source_column="from")
    plain = Mixture({name: (ds, 1) for name, ds in datasets.items()}, source_column="from")
    loader = DataLoader(mix, 64, **COLD)
    for _ in range(2):
        assert seen(loader)
    assert loader._planner is not None
    assert seen(DataLoader(mix, 64, **COLD)) == seen(DataLoader(plain, 64))


# -- which rows come when --------------------------------------------------------------------------------------------


def test_global_batches_are_equal_for_every_world_size_and_number_of_workers(datasets: dict[str, Dataset]) -> None:
    mix = Mixture(
        {"web": (datasets["web"], 1), "code": (datasets["code"], 0)}, samples_per_epoch=1000, source_column="from",
        schedule=ramp(200, 1500, {"web": 1, "code": 0}, {"web": 0, "code": 1}),
    )  # fmt: skip

    def run(world_size: int, **options: Any) -> list[list[tuple[int, int]]]:
        loaders = [
            DataLoader(mix, global_batch_size=96, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]
        out = []
        for epoch in range(2):
            passes = [iter(loader) for loader in loaders]
            for step, batches in enumerate(zip(*passes, strict=True)):
                out.append(joined(seen(batches)))
                if (epoch, step) == (1, 4):
                    for loader in loaders:
                        loader.set_weights({"web": 1, "code": 1})
        return out

    alone = run(1)
    assert len(alone) == 22 and sum(map(len, alone)) == 2000
    assert [{source for source, _ in alone[at]} for at in (0, 1, 5)] == [{0}, {0}, {0, 1}] and {
        source for source, _ in alone[15]
    } == {0, 1}
    assert all(run(world_size) == alone for world_size in (2, 3, 5, 7, 8))
    assert all(run(3, num_workers=workers, **COLD) == alone for workers in (1, 2, 3))


def test_resumed_at_every_step_and_at_other_world_sizes_nothing_repeats_and_nothing_is_missing(mix: Mixture) -> None:
    """Weights are changed before steps 3 and 9; the run goes from 4 ranks to 3 and to 8."""
    changes = {3: {"web": 1, "code": 4}, 9: {"web": 0.2, "code": 0}}

    def ranks(world_size: int, state: dict[str, Any] | None) -> list[Any]:
        loaders = [
            DataLoader(mix, global_batch_size=96, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for loader in loaders if state else []:
            loader.load_state_dict(json.loads(json.dumps(state)))
        return loaders

    undisturbed = []
    loader = ranks(1, None)[0]
    batches = iter(loader)
    for step in range(len(loader)):
        if step in changes:
            loader.set_weights(changes[step])
        undisturbed.append(seen([next(batches)])[0])
    assert sum(map(len, undisturbed)) == len(mix)
    state = None
    for step, expected in enumerate(undisturbed):
        loaders = ranks((4, 3, 8)[step % 3], state)
        for loader in loaders if step in changes else []:
            loader.set_weights(changes[step])
        assert joined(seen(map(next, map(iter, loaders)))) == expected
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
        counts = mix.counts(state)
        replayed = joined(undisturbed[: step + 1])
        assert counts == {
            "web": sum(source == 0 for source, _ in replayed),
            "code": sum(source for source, _ in replayed),
        }
    assert (
        state is not None
        and (state["epoch"], state["consumed"]) == (1, 0)
        and len(json.dumps(state)) <= 1024 + 32 * (len(ROWS) + len(changes))
    )


@pytest.mark.parametrize(
    "options", [{}, {"worker_mode": "process"}, {"worker_mode": "process", "persistent_workers": True}]
)
def test_what_was_made_ahead_is_dropped_and_made_again(mix: Mixture, options: dict[str, Any]) -> None:
    plain = DataLoader(mix, 64, columns=["id", "from"])
    options = {
        "num_workers": 2,
        "prefetch_factor": 8,
        "multiprocessing_context": "fork" if options else None,
        **options,
    }
    ahead = DataLoader(mix, 64, columns=["id", "from"], **options, **COLD)
    runs = []
    for loader in (plain, ahead):
        batches, out = iter(loader), []
        for step in range(len(loader)):
            if step == 5:
                loader.set_weights({"web": 0, "code": 1})
            out += seen([next(batches)])
        assert next(batches, None) is None and len(batches) == len(loader) == 21
        assert all(source == 1 for source, _ in joined(out[5:])) and any(source == 0 for source, _ in out[4])
        assert loader.stats["rows"] == 1300
        runs.append(out)
    assert runs[0] == runs[1]


def test_weights_set_between_epochs_hold_from_the_next_on(mix: Mixture) -> None:
    loader = DataLoader(mix, 64)
    loader.set_weights({"web": 0, "code": 1})
    assert {source for source, _ in joined(seen(loader))} == {1}
    loader.set_weights({"web": 1, "code": 0})
    assert mix.weights(loader.state_dict()) == {"web": 1.0, "code": 0.0}
    running = iter(loader)
    next(running)
    running.close()
    loader.set_weights({"web": 0, "code": 1})  # the pass was closed: it stays closed
    assert next(running, None) is None
    assert {source for source, _ in joined(seen(loader))} == {1}


@pytest.mark.parametrize("stop", ["first", "all"])
def test_an_epoch_can_end_with_its_sources(datasets: dict[str, Dataset], stop: str) -> None:
    mix = Mixture({name: (ds, 1) for name, ds in datasets.items()}, stop=stop, source_column="from")
    loader = DataLoader(mix, 64)
    exhausted = 1 if stop == "first" else 0
    for _ in range(2):
        found = joined(seen(loader))
        own = [row for source, row in found if source == exhausted]
        assert sorted(own) == list(range(list(ROWS.values())[exhausted]))
        assert found[-1][0] == exhausted and abs(len(found) - 2 * len(own)) < 256
    running = iter(loader)
    next(running)
    steps = len(loader)
    loader.set_weights({"web": 1, "code": 9} if stop == "first" else {"web": 9, "code": 4})
    assert len(running) == len(list(running)) + 1 < steps  # the epoch is shorter now


def test_sources_in_their_stored_order(datasets: dict[str, Dataset]) -> None:
    sources = {name: (ds, 1) for name, ds in datasets.items()}
    mix = Mixture(sources, order={"web": FullOrder(shuffle=False)}, source_column="from")
    found = joined(seen(DataLoader(mix, 64)))
    assert [row for source, row in found if source == 0] == list(range(sum(source == 0 for source, _ in found)))
    code = [row for source, row in found if source == 1]
    assert code != sorted(code)


def test_a_receipt_has_a_segment_for_each_change_of_weights_and_holds(mix: Mixture) -> None:
    loader = DataLoader(mix, 64)
    loader.skip(0, 8, 10)
    batches = iter(loader)
    found = [next(batches) for _ in range(6)]
    loader.set_weights({"web": 1, "code": 5})
    found += list(batches)
    assert len(batches) == len(found) == 19
    expected = [loader.batch_at(0, step) for step in range(21) if step not in (8, 9)]
    assert seen(found) == seen(expected)
    receipt = loader.receipt()
    assert [segment.steps for segment in receipt.segments] == [6, 2, 11]
    assert [segment.origin.order["log"] == "" for segment in receipt.segments] == [True, False, False]
    source = mix.__lepton_source__(None, None)
    checked = Replay(receipt, lambda origin: source, order=mix.__lepton_order__()).verify()
    assert checked.rows == loader.stats["rows"] == 1300 - 128
    loader.load_state_dict(loader.state_dict())
    assert loader.receipt().steps == 19


def test_limits_end_an_epoch_and_overfitting_knows_no_weights(mix: Mixture) -> None:
    loader = DataLoader(mix, 64, limit_batches=3)
    batches = iter(loader)
    next(batches)
    loader.set_weights({"web": 0, "code": 1})
    assert [{source for source, _ in batch} for batch in seen(batches)] == [{1}, {1}]
    with pytest.raises(ValueError, match="every epoch has the first batches of epoch 0"):
        DataLoader(mix, 64, overfit_batches=3).set_weights({"web": 0, "code": 1})


# -- what is refused -------------------------------------------------------------------------------------------------


def test_states_of_others_are_refused_by_name_and_change_nothing(mix: Mixture, datasets: dict[str, Dataset]) -> None:
    web, code = datasets["web"], datasets["code"]
    loader = DataLoader(mix, 64)
    loader.set_weights({"web": 1, "code": 1})
    before = loader.state_dict()
    grown = code.append(make_table(10).set_column(0, "id", pa.array(np.arange(10) + 10**6)))
    foreign = [
        (DataLoader(Mixture({"web": (web, 0.7), "books": (code, 0.3)}), 64), "only the state has: books; .*has: code"),
        (DataLoader(Mixture({"web": (web, 0.7), "code": (grown, 0.3)}), 64), "another version"),
        (DataLoader(Mixture({"web": (web, 0.6), "code": (code, 0.4)}), 64), "weights differ, web=0.6 code=0.4 there"),
        (DataLoader(web, 64), "of dataset 'web'"),
        (DataLoader(mix, 64, seed=1), "seed=1"),
        (DataLoader(mix, 64, order=FullOrder(True)), "taken with order=.*shuffle"),
    ]
    for other, message in foreign:
        with pytest.raises(LoaderStateError, match=message):
            loader.load_state_dict(other.state_dict())
        assert loader.state_dict() == before
    with pytest.raises(LoaderStateError, match="is of no mixture"):
        mix.counts(DataLoader(web, 64).state_dict())
    with pytest.raises(LoaderStateError, match=r"of dataset 'mixture'"):
        DataLoader(web, 64).load_state_dict(before)


def test_weights_are_refused_where_they_mean_nothing(mix: Mixture, datasets: dict[str, Dataset]) -> None:
    for loader in (DataLoader(datasets["web"], 4), DataLoader(mix, 4, order=FullOrder(True)), DataLoader([1, 2])):
        with pytest.raises(ValueError, match="set_weights: only for a loader over a Mixture"):
            loader.set_weights({"web": 1})
    disorderly = DataLoader(mix, 4, num_workers=1, in_order=False, receipts=False, **COLD)
    disorderly.set_weights({"web": 1, "code": 1})
    batches = iter(disorderly)
    next(batches)
    with pytest.raises(ValueError, match="in_order=False"):
        disorderly.set_weights({"web": 1, "code": 2})
    loader = DataLoader(mix, 4)
    before = loader.state_dict()
    for weights, message in (({"web": 1}, "'code' has no weight"), ({"web": 0, "code": 0}, "are zero")):
        with pytest.raises(ValueError, match=message):
            loader.set_weights(weights)
    assert loader.state_dict() == before


def test_columns_that_differ_are_refused_by_name(store: Store, source_of: Make, datasets: dict[str, Dataset]) -> None:
    web = datasets["web"]

    def beside(column: str, values: Any, field: Any = None) -> Mixture:
        table = make_table(50)
        at = table.schema.get_field_index(column)
        table = table.append_column(column, values) if at < 0 else table.set_column(at, field or column, values)
        name = f"other-{column}-{values.type}".replace("<", "-").replace(">", "")[:40]
        return Mixture({"web": (web, 1), "other": (write_dataset(store, name, source_of(table, ("id",))), 1)})

    refused = [
        (beside("url", pa.array(["x"] * 50)), "source 'other' has a column 'url' and 'web' has none"),
        (beside("code", pa.array(np.arange(50))), "column 'code' is uint16 of shape .* in source 'web' and int64"),
        (beside("flag", pa.array(["x"] * 50)), "column 'flag' is bool .* and data of variable width"),
        (beside("label", pa.array(np.zeros(50, np.uint8)), class_label_field("label", ["one", "two"])),
         "classes of column 'label' differ between sources 'web' and 'other'"),
    ]  # fmt: skip
    for mixture, message in refused:
        with pytest.raises(ValueError, match=message):
            DataLoader(mixture, 4)
        assert len(next(iter(DataLoader(mixture, 4, columns=["id", "image"])))["id"]) == 4


def test_arguments_that_do_not_fit_are_named(datasets: dict[str, Dataset], mix: Mixture) -> None:
    web = datasets["web"]
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ({}, {}, "1 to 256 sources, not 0"),
        ({"a b": (web, 1)}, {}, "source 'a b': use up to 64 letters"),
        ({"m": (mix, 1)}, {}, "source 'm' is a mixture itself"),
        ({"l": ([1, 2], 1)}, {}, "source 'l' is a list"),
        ({"a": (web, -1)}, {}, "weight of 'a'"),
        ({"a": (web, 1)}, {"samples_per_epoch": 0}, "samples_per_epoch must be between"),
        ({"a": (web, 1)}, {"stop": "never"}, "stop is 'never'"),
        ({"a": (web, 1)}, {"stop": "all", "samples_per_epoch": 5}, "exclude each other"),
        ({"a": (web, 1)}, {"stop": "all", "schedule": [(0, {"a": 1})]}, "a schedule counts samples since the start"),
        ({"a": (web, 1)}, {"schedule": [(5, {"a": 1}), (5, {"a": 1})]}, "must ascend: 5 stands after 5"),
        ({"a": (web, 1)}, {"schedule": [(-1, {"a": 1})]}, "position of the schedule"),
        ({"a": (web, 1)}, {"order": {"b": FullOrder(True)}}, "order names 'b', which is no source"),
    ]
    for sources, options, message in refused:
        with pytest.raises(ValueError, match=message):
            Mixture(sources, **options)
    with pytest.raises(ValueError, match="have a column 'id': choose another source_column"):
        DataLoader(Mixture({"a": (web, 1)}, source_column="id"), 4)
    with pytest.raises(ValueError, match="no slope of 9 steps"):
        ramp(0, 5, {"a": 1}, {"a": 1}, steps=9)


def test_a_ramp_is_linear() -> None:
    slope = ramp(100, 200, {"a": 1, "b": 0}, {"a": 1, "b": 3}, steps=4)
    assert [at for at, _ in slope] == [100, 125, 150, 175, 200]
    shares = [weights["b"] / sum(weights.values()) for _, weights in slope]
    assert shares == pytest.approx([0, 0.1875, 0.375, 0.5625, 0.75])


def test_mixtures_and_loaders_over_them_pickle(mix: Mixture) -> None:
    loader = DataLoader(mix, 64)
    running = iter(loader)
    next(running)
    loader.set_weights({"web": 0, "code": 1})
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert twin.state_dict() == loader.state_dict() and len(pickle.dumps(loader)) < 40_000
    loader.set_epoch(1)
    twin.set_epoch(1)
    assert seen(twin) == seen(loader)
    assert repr(mix) == "<Mixture web=0.7 code=0.3: 1,300 rows>"
