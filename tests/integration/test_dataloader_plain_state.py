"""The state of a loader over torch datasets: after every step, what comes is what would have come."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from plain_data import (  # noqa: E402
    Counting,
    Numbers,
    OwnIterator,
    SamplerOfStatefulIterators,
    Shuffled,
    StatefulSampler,
    StatefulStream,
    Stream,
    StreamOfStatefulIterators,
    Unseeded,
)
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, WeightedRandomSampler  # noqa: E402
from torch.utils.data import DataLoader as TorchDataLoader  # noqa: E402

from loaders import DataLoader, LoaderStateError  # noqa: E402

Make = Callable[[], Any]
ROWS = 13


def listed(batches: Any) -> list[Any]:
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in batches]


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def history(loader: Any, passes: int) -> list[tuple[dict[str, Any], list[Any]]]:
    """(state, what came after it until the pass ended) before, in and after each pass; states went through JSON."""
    moments: list[tuple[Any, list[Any]]] = []
    for _ in range(passes):
        states = [loader.state_dict()]
        batches = []
        for batch in loader:
            batches += listed([batch])
            states.append(loader.state_dict())
        moments += [(state, batches[step:]) for step, state in enumerate(states)]
    return [(json.loads(json.dumps(state)), rest) for state, rest in moments]


def check(make: Make, passes: int = 2, every_nth: int = 1) -> None:
    seed(3)
    moments = history(make(), passes)
    whole = [rest for state, rest in moments if state["between"]]
    assert len(whole) == passes and all(whole)
    at = -1
    for number, (state, rest) in enumerate(moments):
        at += state["between"]
        if number % every_nth:
            continue
        seed(number + 99)
        present = torch.get_rng_state(), random.getstate()
        restored = make()
        restored.load_state_dict(state)
        assert restored.state_dict() == state
        assert listed(restored) == rest
        if not state["between"]:  # what comes of it was drawn before: the present is as it was
            assert torch.equal(torch.get_rng_state(), present[0]) and random.getstate() == present[1]


WORKERS = [
    {"num_workers": 0},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_map_style(workers: dict[str, Any], shuffle: bool) -> None:
    check(lambda: DataLoader(Numbers(ROWS), 3, shuffle=shuffle, **workers))


CADENCES = [(WORKERS[0], 1), *((workers, every) for workers in WORKERS[1:] for every in (1, 5)), (WORKERS[2], None)]


@pytest.mark.parametrize(("workers", "every"), CADENCES)
@pytest.mark.parametrize("kind", [Stream, StatefulStream, StreamOfStatefulIterators, OwnIterator])
def test_streams(kind: type[Any], every: int | None, workers: dict[str, Any]) -> None:
    check(lambda: DataLoader(kind(ROWS), 2, snapshot_every_n_steps=every, **workers), every_nth=2)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("options", [{"batch_size": 4, "drop_last": True}, {"batch_size": None}])
def test_streams_of_other_batches(options: dict[str, Any], workers: dict[str, Any]) -> None:
    check(lambda: DataLoader(StatefulStream(7), **options, **workers), every_nth=2)


@pytest.mark.parametrize(("workers", "every"), CADENCES)
def test_a_stateful_dataset_of_items(every: int | None, workers: dict[str, Any]) -> None:
    check(lambda: DataLoader(Counting(ROWS), 2, shuffle=True, snapshot_every_n_steps=every, **workers), every_nth=2)


def weighted() -> Any:
    return WeightedRandomSampler([1.0] * 5 + [3.0] * 8, ROWS, generator=torch.Generator().manual_seed(4))


SAMPLERS: list[Callable[[], dict[str, Any]]] = [
    lambda: {"sampler": Shuffled(ROWS)},
    lambda: {"batch_sampler": BatchSampler(Shuffled(ROWS), 3, True)},
    lambda: {"sampler": StatefulSampler(ROWS)},
    lambda: {"batch_sampler": BatchSampler(StatefulSampler(ROWS), 3, True)},
    lambda: {"sampler": StatefulSampler(ROWS), "batch_size": None},
    lambda: {"sampler": SamplerOfStatefulIterators(ROWS)},
    lambda: {"sampler": list(range(ROWS))[::2]},
    lambda: {"sampler": weighted()},
    lambda: {"sampler": RandomSampler(range(ROWS), replacement=True, num_samples=70), "batch_size": 7},
    lambda: {"sampler": DistributedSampler(range(ROWS), 2, 1, shuffle=True, seed=7)},
    lambda: {"batch_sampler": [[1, 2], [3], [0, 4, 5]]},
    lambda: {"shuffle": True, "generator": torch.Generator().manual_seed(8)},
]


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_samplers(make: Callable[[], dict[str, Any]], num_workers: int) -> None:
    def loader() -> Any:
        options = make()
        if "batch_sampler" not in options:
            options.setdefault("batch_size", 3)
        return DataLoader(Numbers(ROWS), num_workers=num_workers, **options)

    check(loader, every_nth=1 if num_workers == 0 else 3)


KINDS: list[Callable[[], dict[str, Any]]] = [
    lambda: {"dataset": Numbers(ROWS), "shuffle": True, "generator": torch.Generator().manual_seed(5)},
    lambda: {"dataset": Numbers(ROWS), "sampler": StatefulSampler(ROWS)},
    lambda: {"dataset": Numbers(ROWS), "sampler": SamplerOfStatefulIterators(ROWS)},
    lambda: {"dataset": Counting(ROWS)},
    lambda: {"dataset": Stream(ROWS)},
    lambda: {"dataset": StatefulStream(ROWS)},
    lambda: {"dataset": OwnIterator(ROWS)},
]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch_size=st.integers(1, 6),
    drop_last=st.booleans(),
    stops=st.lists(st.integers(0, 9), max_size=6),
)
def test_a_run_that_is_stopped_again_and_again(
    kind: Callable[[], dict[str, Any]], batch_size: int, drop_last: bool, stops: list[int]
) -> None:
    """A process runs some steps, over passes, and ends; the next goes on from its state: together they see what one would."""

    def make() -> Any:
        return DataLoader(batch_size=batch_size, drop_last=drop_last, **kind())

    whole, steps = make(), sum(stops) + 3
    expected: list[Any] = []
    while len(expected) < steps:
        expected += listed(whole)
    seen: list[Any] = []
    state: dict[str, Any] = {}
    for stop in [*stops, 3]:
        loader = make()
        loader.load_state_dict(state)
        done = 0
        while done < stop:
            for batch in loader:
                seen += listed([batch])
                done += 1
                if done == stop:
                    break
        state = json.loads(json.dumps(loader.state_dict()))
    assert seen == expected[:steps]


def test_torchs_own_sampler_is_drawn_from_as_torch_draws_from_it() -> None:
    """The batches of a sampler that is not torch's are made here: the draws must come in torch's order."""
    for sampler in (Shuffled, StatefulSampler, SamplerOfStatefulIterators):
        for drop_last in (False, True):
            both = []
            for kind in (DataLoader, TorchDataLoader):
                seed(5)
                loader = kind(Numbers(ROWS), 3, sampler=sampler(ROWS), drop_last=drop_last)
                both.append(([listed(loader) for _ in range(2)], torch.rand(2).tolist(), random.random()))
            assert both[0] == both[1]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_pass_after_a_restored_one_is_the_same_with_a_generator(workers: dict[str, Any]) -> None:
    def make() -> Any:
        return DataLoader(Numbers(ROWS), 4, shuffle=True, generator=torch.Generator().manual_seed(1), **workers)

    loader = make()
    states = []
    for _ in loader:
        states.append(loader.state_dict())
    following = [listed(loader), listed(loader)]
    for state in states[::2]:
        restored = make()
        restored.load_state_dict(state)
        list(restored)
        assert [listed(restored), listed(restored)] == following


def test_workers_may_be_more_or_fewer_where_items_have_no_streams() -> None:
    seed(0)
    loader = DataLoader(Numbers(ROWS), 2, sampler=Shuffled(ROWS))
    moments = history(loader, 1)
    for num_workers, (state, rest) in zip((1, 2, 1), moments[1:], strict=False):
        restored = DataLoader(Numbers(ROWS), 2, sampler=Shuffled(ROWS), num_workers=num_workers)
        restored.load_state_dict(state)
        assert listed(restored) == rest


class OneWaits(Numbers):
    """Item 0 waits until it is told to go on."""

    def __init__(self, rows: int, event: Any) -> None:
        super().__init__(rows)
        self.event = event

    def __getitem__(self, index: int) -> int:
        if index == 0:
            self.event.wait(60)
        return index


def test_out_of_order_nothing_is_missing_and_nothing_comes_twice() -> None:
    event = torch.multiprocessing.get_context("fork").Event()

    def make() -> Any:
        data = OneWaits(ROWS, event)
        return DataLoader(data, 2, num_workers=2, in_order=False, multiprocessing_context="fork")

    loader = make()
    batches = iter(loader)
    seen: list[Any] = []
    states = []
    for step in range(7):
        if step == 2:
            event.set()
        seen += listed([next(batches)])
        states.append(json.loads(json.dumps(loader.state_dict())))
    assert [0, 1] not in seen[:2] and sorted(chain.from_iterable(seen)) == list(range(ROWS))
    assert states[1]["late"][0] == [0, 1]
    for step, state in enumerate(states):
        restored = make()
        restored.load_state_dict(state)
        assert sorted(seen[: step + 1] + listed(restored)) == sorted(seen)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_way_to_start_workers(method: str) -> None:
    def make() -> Any:
        return DataLoader(StatefulStream(9), 2, num_workers=1, multiprocessing_context=method)

    loader = make()
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    rest = listed(batches)
    restored = make()
    restored.load_state_dict(state)
    assert listed(restored) == rest and rest


def test_asking_for_a_state_pins_the_shuffle_of_the_next_pass() -> None:
    seed(1)
    loader = DataLoader(Numbers(ROWS), 3, shuffle=True)
    state = loader.state_dict()
    torch.rand(5)
    present = torch.get_rng_state()
    batches = listed(loader)
    assert torch.equal(torch.get_rng_state(), present)
    restored = DataLoader(Numbers(ROWS), 3, shuffle=True)
    restored.load_state_dict(state)
    assert listed(restored) == batches
    seed(1)
    assert listed(TorchDataLoader(Numbers(ROWS), 3, shuffle=True)) == batches


def test_asking_for_states_changes_nothing_where_nobody_else_draws() -> None:
    both = []
    for asks in (False, True):
        seed(2)
        loader = DataLoader(Numbers(ROWS), 3, shuffle=True)
        passes = []
        for _ in range(3):
            if asks:
                loader.state_dict()
            batches = []
            for batch in loader:
                batches.append(batch.tolist())
                if asks:
                    loader.state_dict()
            passes.append(batches)
        both.append((passes, torch.rand(1).item()))
    assert both[0] == both[1]


def test_break_leaves_the_position_and_an_empty_state_begins_anew() -> None:
    loader = DataLoader(Numbers(ROWS), 5)
    for _ in loader:
        break
    assert loader.state_dict()["batches"] == 1
    state = loader.state_dict()
    loader.load_state_dict({})
    assert len(list(loader)) == 3
    loader.load_state_dict(state)
    assert listed(loader) == [[5, 6, 7, 8, 9], [10, 11, 12]] and len(list(loader)) == 3


def test_set_epoch_of_another_epoch_begins_it_at_its_start() -> None:
    def make() -> Any:
        return DataLoader(Numbers(ROWS), 2, sampler=DistributedSampler(range(ROWS), 2, 0, seed=3))

    loader = make()
    loader.set_epoch(2)
    batches = listed(loader)
    next(iter(loader))
    state = loader.state_dict()
    for epoch, expected in ((2, batches[1:]), (None, batches[1:])):
        restored = make()
        restored.load_state_dict(state)
        if epoch is not None:
            restored.set_epoch(epoch)
        assert listed(restored) == expected
    restored = make()
    restored.load_state_dict(state)
    restored.set_epoch(3)
    assert len(list(restored)) == 4


def test_a_state_of_one_rank_is_one_of_all() -> None:
    """Lightning saves what rank 0 says, and gives it to every rank."""
    loaders = [DataLoader(Numbers(ROWS), 2, sampler=DistributedSampler(range(ROWS), 2, rank)) for rank in range(2)]
    passes = [iter(loader) for loader in loaders]
    for batches in passes * 2:
        next(batches)
    state, rests = loaders[0].state_dict(), [listed(batches) for batches in passes]
    for rank, rest in enumerate(rests):
        restored = DataLoader(Numbers(ROWS), 2, sampler=DistributedSampler(range(ROWS), 2, rank))
        restored.load_state_dict(state)
        assert listed(restored) == rest


def test_a_loader_pickles_and_copies_with_its_position() -> None:
    loader = DataLoader(Numbers(ROWS), 3, shuffle=True, generator=torch.Generator().manual_seed(0))
    batches = iter(loader)
    next(batches)
    twins = [pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)]  # noqa: S301
    rest = listed(batches)
    assert [listed(twin) for twin in twins] == [rest, rest]


def test_a_pass_that_runs_on_does_not_undo_a_restore() -> None:
    loader = DataLoader(Numbers(ROWS), 3)
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    next(running)
    loader.load_state_dict(state)
    next(running)
    assert loader.state_dict() == state


def test_a_failed_batch_is_tried_again() -> None:
    class Failing(Numbers):
        fails = True

        def __getitem__(self, index: int) -> int:
            if index == 4 and self.fails:
                raise KeyError("item 4")
            return index

    for num_workers in (0, 2):
        loader = DataLoader(Failing(ROWS), 3, num_workers=num_workers)
        batches = iter(loader)
        next(batches)
        with pytest.raises(KeyError, match="item 4"):
            next(batches)
        restored = DataLoader(Numbers(ROWS), 3)
        state = loader.state_dict()
        state["source"]["dataset"] = "Numbers"
        restored.load_state_dict(state)
        assert next(iter(restored)).tolist() == [3, 4, 5]


# -- states that are refused -------------------------------------------------------------------------------------------


def state_of(*args: Any, batches: int = 1, **options: Any) -> dict[str, Any]:
    loader = DataLoader(*args, **options)
    running = iter(loader)
    for _ in range(batches):
        next(running)
    return loader.state_dict()


def test_states_of_something_else_are_refused_and_change_nothing() -> None:
    loader = DataLoader(Numbers(ROWS), 3, shuffle=True)
    next(iter(loader))
    before = loader.state_dict()
    refused: list[tuple[Any, str]] = [
        (state_of(Numbers(ROWS + 1), 3, shuffle=True), "rows=14"),
        (state_of(Numbers(ROWS), 2, shuffle=True), "batch_size=2"),
        (state_of(Numbers(ROWS), 3), "SequentialSampler"),
        (state_of(Numbers(ROWS), 3, shuffle=True, drop_last=True), "drop_last=True"),
        (state_of(Stream(ROWS), 3), "kind='iterable'"),
        (state_of(Numbers(ROWS), 3, shuffle=True, generator=torch.Generator()), "1 random generators"),
        ({**before, "format": "lepton.loader-state"}, "its format is 'lepton.loader-state'"),
        ({**before, "version": 9}, "version 9"),
        ({"_snapshot": {}, "_steps_since_snapshot": 0}, "torchdata's StatefulDataLoader"),
        ({**before, "batches": -1}, "'batches'"),
        ({**before, "rng": {"torch": "AAAA"}}, "random generator"),
        ({**before, "rng": {"dice": before["rng"]["torch"]}}, "dice"),
        ({**before, "streams": [{}]}, "streams"),
        ({**before, "source": {}}, "source.kind"),
        ([], "its format is 'list'"),
    ]
    for state, message in refused:
        with pytest.raises(LoaderStateError, match=message):
            loader.load_state_dict(state)
        assert loader.state_dict() == before


def test_streams_need_as_many_workers() -> None:
    with pytest.raises(LoaderStateError, match="num_workers=2 and this loader has 1"):
        DataLoader(Stream(ROWS), 2, num_workers=1).load_state_dict(state_of(Stream(ROWS), 2, num_workers=2))


def test_a_sampler_that_gives_another_order_is_found_out() -> None:
    state = state_of(Numbers(ROWS), 3, sampler=Unseeded(ROWS), batches=2)
    loader = DataLoader(Numbers(ROWS), 3, sampler=Unseeded(ROWS))
    loader.load_state_dict(state)
    with pytest.raises(LoaderStateError, match=r"Unseeded.* do not give again the order in which 2 batches came"):
        iter(loader)


def test_a_state_without_a_taker_is_refused() -> None:
    loader = DataLoader(Numbers(ROWS), 3)
    with pytest.raises(LoaderStateError, match="a Counting, and the Numbers here has no load_state_dict"):
        loader.load_state_dict(state_of(Counting(ROWS), 3))
    loader.load_state_dict({**state_of(Numbers(ROWS), 3), "sampler": {"sampler": {"at": 3}}})
    with pytest.raises(LoaderStateError, match="SequentialSampler here, which has no load_state_dict"):
        iter(loader)
    for num_workers in (0, 2):
        loader = DataLoader(Stream(ROWS), 2, num_workers=num_workers)
        loader.load_state_dict(state_of(StatefulStream(ROWS), 2, num_workers=num_workers, batches=2))
        with pytest.raises(LoaderStateError, match="Stream here, which has no load_state_dict"):
            next(iter(loader))


def test_snapshot_every_n_steps_is_checked() -> None:
    with pytest.raises(ValueError, match="snapshot_every_n_steps"):
        DataLoader(Numbers(ROWS), snapshot_every_n_steps=-1)
