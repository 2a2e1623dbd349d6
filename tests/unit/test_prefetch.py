"""The prefetcher: in order, bounded, errors at their batch, threads gone when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from loaders.prefetch import Prefetcher


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lepton-loader")]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_results_come_in_order(threads: int, depth: int) -> None:
    assert list(Prefetcher(lambda n: n * n, iter(range(50)), threads, depth)) == [n * n for n in range(50)]
    assert not loader_threads()


def test_at_most_depth_are_made_ahead() -> None:
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for n in range(20):
            taken.append(n)
            yield n

    ahead = Prefetcher(lambda n: n, inputs(), threads=2, depth=4)
    for n in range(5):
        assert next(ahead) == n
        assert len(taken) == n + 1 + 4
    ahead.close()


def test_an_error_is_raised_at_its_batch() -> None:
    def make(n: int) -> int:
        if n == 3:
            raise KeyError("row 3")
        return n

    ahead = Prefetcher(make, iter(range(10)), threads=2, depth=6)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="row 3"):
        next(ahead)
    assert not loader_threads()
    assert next(ahead, None) is None


def test_an_error_of_the_inputs_comes_after_what_was_before_it() -> None:
    def inputs() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("no more")

    ahead = Prefetcher(lambda n: n, inputs(), threads=1, depth=8)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="no more"):
        next(ahead)


def test_close_forgets_what_has_not_begun_and_joins() -> None:
    gate, made = threading.Event(), []

    def make(n: int) -> int:
        if n:
            gate.wait()
        made.append(n)
        return n

    ahead = Prefetcher(make, iter(range(100)), threads=1, depth=50)
    assert next(ahead) == 0
    gate.set()
    ahead.close()
    ahead.close()
    assert not loader_threads()
    assert len(made) < 100
    assert list(ahead) == []


def test_a_batch_that_takes_too_long_is_a_runtime_error() -> None:
    gate = threading.Event()
    ahead = Prefetcher(lambda n: gate.wait(), iter(range(2)), threads=1, depth=1, timeout_s=0.01)
    with pytest.raises(RuntimeError, match=r"timed out after 0\.01 seconds"):
        next(ahead)
    gate.set()
