"""Batches by threads: in order, bounded, samples before batches, errors at their batch, threads gone when closed."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loaders.faults import SampleName, TooManyFaults  # noqa: E402
from loaders.order import FullOrder  # noqa: E402
from loaders.pipeline import Recipe, made_here  # noqa: E402
from loaders.source import ColumnSpec, Values  # noqa: E402
from loaders.step import Step  # noqa: E402
from loaders.threads import ThreadedBatches  # noqa: E402
from loaders.transforms.program import compile_chain  # noqa: E402
from loaders.tuning import Tuner  # noqa: E402

TEXT = ColumnSpec("text", "string", None, None)
ID = ColumnSpec("id", "", np.dtype(np.int64), ())


class Numbers:
    """Rows 0, 1, 2 ...: `id` is the row, `text` its digits. Counts what it is asked for."""

    name, commit, fingerprint = "numbers", "ab" * 32, "numbers"
    columns = cold = (ID, TEXT)
    plans = False

    def __init__(self, rows: int = 1_000) -> None:
        self.rows = rows
        self.asked: list[int] = []

    def gather(self, rows: np.ndarray) -> dict[str, Values]:
        self.asked.append(len(rows))
        return {"id": rows.copy(), "text": [str(row) for row in rows]}


def steps_of(batch_rows: int, count: int) -> Iterator[Step]:
    return (Step(0, at * batch_rows, np.arange(batch_rows) + at * batch_rows) for at in range(count))


def recipe_of(function: Callable[..., Any] | None = None, source: Any = None, **options: Any) -> Recipe:
    source = source or Numbers()
    programs = {} if function is None else {"text": compile_chain([function], TEXT)}
    options.setdefault("tensor", torch.from_numpy)
    return Recipe(source, FullOrder(False).bind(source), 0, programs, **options)


def tuned(threads: int, depth: int) -> Tuner:
    """Nothing is left to choose."""
    return Tuner(threads, None, threads, depth)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lepton-loader")]


def noise(text: str, rng: np.random.Generator) -> float:
    return float(text) + rng.random()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("depth", [1, 4, 8])
def test_threads_make_what_one_thread_makes(threads: int, depth: int) -> None:
    recipe = recipe_of(noise)
    expected = list(made_here(recipe, steps_of(7, 20), None))
    found = list(ThreadedBatches(recipe, steps_of(7, 20), tuned(threads, depth), 2))
    assert len(found) == 20 and not loader_threads()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["id"], other["id"]) and torch.equal(one["text"], other["text"])


def test_at_most_depth_are_made_ahead() -> None:
    taken: list[int] = []

    def steps() -> Iterator[Step]:
        for step in steps_of(2, 20):
            taken.append(step.start)
            yield step

    ahead = ThreadedBatches(recipe_of(), steps(), tuned(2, 4), flight=2)
    for n in range(5):
        assert next(ahead)["id"].tolist() == [2 * n, 2 * n + 1]
        assert n + 1 <= len(taken) <= n + 1 + 4
    ahead.close()


def test_steps_are_read_together_and_own_their_memory() -> None:
    source = Numbers()
    batches = list(ThreadedBatches(recipe_of(source=source), steps_of(10, 30), tuned(1, 8), flight=4))
    assert sum(source.asked) == 300 and source.asked[0] == 10 and 40 in source.asked
    assert all(batch["id"].untyped_storage().nbytes() == 80 for batch in batches)


def test_a_slow_sample_keeps_no_other_batch_waiting() -> None:
    """While one sample of step 0 takes its time, the other thread makes all the others that may be made ahead."""
    gate, others = threading.Event(), threading.Barrier(2)
    seen: set[int] = set()

    def slow(text: str) -> int:
        if text == "0":
            gate.wait(60)
            return 0
        seen.add(int(text))
        if len(seen) == 15:  # all of four steps of four
            others.wait(60)
        return int(text)

    batches = ThreadedBatches(recipe_of(slow), steps_of(4, 9), tuned(2, 4), flight=1)
    waiting = threading.Thread(target=lambda: (others.wait(60), gate.set()))
    waiting.start()
    assert [batch["text"].tolist() for batch in batches] == [list(range(4 * n, 4 * n + 4)) for n in range(9)]
    waiting.join()


def test_out_of_order_a_finished_batch_does_not_wait_for_an_earlier_one() -> None:
    gate = threading.Event()

    def slow(text: str) -> int:
        if text == "0":
            gate.wait(60)
        return int(text)

    batches = ThreadedBatches(recipe_of(slow), steps_of(4, 6), tuned(2, 4), in_order=False)
    first = next(batches)["text"].tolist()
    assert first[0] != 0
    gate.set()
    rest = [batch["text"][0].item() for batch in batches]
    assert sorted([first[0], *rest]) == [0, 4, 8, 12, 16, 20]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_at_its_batch_and_names_the_sample(threads: int) -> None:
    def broken(text: str) -> int:
        if text == "13":
            raise KeyError("thirteen")
        return int(text)

    recipe, steps = recipe_of(broken), steps_of(4, 9)
    batches = ThreadedBatches(recipe, steps, tuned(threads, 4), 2) if threads else made_here(recipe, steps, None)
    assert [next(batches)["id"][0].item() for _ in range(3)] == [0, 4, 8]
    with pytest.raises(KeyError, match="thirteen") as caught:
        next(batches)
    assert caught.value.sample == SampleName("numbers", "ab" * 32, 13, "text", 0, 13)  # type: ignore[attr-defined]
    assert "dataset 'numbers' commit abababababab row 13 column 'text'" in caught.value.__notes__[0]
    assert not loader_threads() and next(batches, None) is None


def test_an_error_of_the_steps_comes_after_what_was_before_it() -> None:
    def steps() -> Iterator[Step]:
        yield from steps_of(2, 2)
        raise OSError("no more")

    ahead = ThreadedBatches(recipe_of(), steps(), tuned(1, 8))
    assert len([next(ahead), next(ahead)]) == 2
    with pytest.raises(OSError, match="no more"):
        next(ahead)


def test_a_joined_read_that_fails_is_the_error_of_one_step() -> None:
    class Torn(Numbers):
        def gather(self, rows: np.ndarray) -> dict[str, Values]:
            if 25 in rows:
                raise OSError("row 25")
            return super().gather(rows)

    batches = ThreadedBatches(recipe_of(source=Torn()), steps_of(2, 20), tuned(1, 16), flight=8)
    for n in range(12):
        assert next(batches)["id"].tolist() == [2 * n, 2 * n + 1]
    with pytest.raises(OSError, match="row 25"):
        next(batches)


def test_dropping_it_ends_its_threads() -> None:
    batches = ThreadedBatches(recipe_of(noise), steps_of(2, 100), tuned(2, 4))
    next(batches)
    assert loader_threads()
    del batches
    gc.collect()
    assert not loader_threads()


def test_a_sample_that_hangs_is_named_and_nobody_waits_for_it() -> None:
    gate = threading.Event()

    def hang(text: str) -> int:
        if text == "9":
            gate.wait(60)
        return int(text)

    batches = ThreadedBatches(recipe_of(hang), steps_of(4, 9), tuned(2, 4), timeout_s=1.0)
    assert [next(batches)["id"][0].item() for _ in range(2)] == [0, 4]
    named = (
        r"timed out after 1\.0 seconds, waiting for dataset 'numbers' commit \w+ row 9 column 'text' .* for \d\.\d s"
    )
    with pytest.raises(RuntimeError, match=named):
        next(batches)
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("lepton-loader"):
            thread.join()


# -- policy ----------------------------------------------------------------------------------------------------------


def odd_one(text: str) -> int:
    if int(text) % 10 == 3:
        raise ValueError(f"{text} is bad")
    return int(text)


@pytest.mark.parametrize("threads", [0, 2])
def test_skip_keeps_a_row_without_weight(threads: int) -> None:
    told: list[tuple[Any, ...]] = []
    recipe, steps = recipe_of(odd_one, policy="skip"), steps_of(8, 5)
    batches = (
        ThreadedBatches(recipe, steps, tuned(threads, 4), 2, on_fault=lambda *fault: told.append(fault))
        if threads
        else made_here(recipe, steps, lambda *fault: told.append(fault))
    )
    for n, batch in enumerate(batches):
        rows = torch.arange(8 * n, 8 * n + 8)
        valid = rows % 10 != 3
        assert torch.equal(batch["_valid"], valid)
        assert torch.equal(batch["id"], rows * valid)
        assert torch.equal(batch["text"][valid], rows[valid])
    assert told == [(at, at, "text", "skip", f"ValueError: {at} is bad") for at in (3, 13, 23, 33)]


@pytest.mark.parametrize("threads", [0, 2])
def test_substitutes_are_a_function_of_the_position(threads: int) -> None:
    found: list[list[int]] = []
    for batch_rows, count in ((8, 5), (4, 10), (40, 1)):
        told: list[tuple[Any, ...]] = []
        recipe, steps = recipe_of(odd_one, policy="substitute"), steps_of(batch_rows, count)
        batches = list(
            ThreadedBatches(recipe, steps, tuned(threads, 4), 2, on_fault=lambda *fault, told=told: told.append(fault))
            if threads
            else made_here(recipe, steps, lambda *fault, told=told: told.append(fault))
        )
        ids = torch.cat([batch["id"] for batch in batches])
        assert torch.equal(ids, torch.cat([batch["text"] for batch in batches]))
        assert [(fault[0], fault[3]) for fault in told] == [(at, f"substitute:{ids[at]}") for at in (3, 13, 23, 33)]
        found.append(ids.tolist())
    assert found[0] == found[1] == found[2]
    assert all(row % 10 != 3 for row in found[0])
    assert [row for at, row in enumerate(found[0]) if at % 10 != 3] == [at for at in range(40) if at % 10 != 3]


def test_substitutes_are_of_the_same_source() -> None:
    class Mixed(Numbers):
        def peers(self, row: int) -> tuple[int, int]:
            return (0, 500) if row < 500 else (500, 1_000)

    source = Mixed()
    step = Step(0, 0, np.array([3, 503, 13, 993]))
    batch = recipe_of(odd_one, source, policy="substitute").make(step).batch
    assert [row < 500 for row in batch["id"].tolist()] == [True, False, True, False]


def test_a_policy_does_not_hide_that_everything_fails() -> None:
    def broken(text: str) -> int:
        raise ValueError("no")

    batches = made_here(recipe_of(broken, policy="skip"), steps_of(8, 100), None)
    with pytest.raises(TooManyFaults, match=r"40 of 40 samples .* column 'text': ValueError: no"):
        list(batches)
