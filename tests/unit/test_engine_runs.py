"""Which results count, what is still to be done, what is told of a runner that cannot run: without Daft."""

from __future__ import annotations

import os
import sys
import threading
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.errors import BadInput, ChunkCorrupt, ClusterLost, LeptonError, MissingExtra, SourceError
from leptonstore.process.engine import Runner
from leptonstore.process.engine.failures import Told, received, told
from leptonstore.process.engine.passes import chosen, missing
from leptonstore.process.engine.ray_driver import is_loss
from leptonstore.process.engine.workers import Lent

LENT = Lent("nobody's", "nowhere", None)


class Result(NamedTuple):
    first: int
    end: int


RANGES = st.lists(st.integers(1, 9), min_size=1, max_size=9).map(
    lambda sizes: [(sum(sizes[:at]), sum(sizes[: at + 1])) for at in range(len(sizes))]
)
RESULTS = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=9)


@given(RANGES, RESULTS)
def test_results_and_what_is_missing_cover_each_row_once(
    ranges: list[tuple[int, int]], some: list[tuple[int, int]]
) -> None:
    rows = ranges[-1][1]
    results = chosen([Result(first, min(first + size, rows)) for first, size in some if first < rows])
    todo = missing(ranges, results)
    covered = sorted(row for first, end in [*results, *todo] for row in range(first, end))
    assert covered == list(range(rows))
    assert all(any(first <= low and high <= end for first, end in ranges) for low, high in todo)  # tasks stay bounded
    assert chosen([*results, *results]) == results  # what is done twice counts once
    assert missing(ranges, chosen([*results, *(Result(*one) for one in todo)])) == []


@pytest.mark.parametrize(
    "error",
    [
        SourceError("x.jpg row 3 is unreadable"),
        ChunkCorrupt("ab" * 32, "c" * 32, "torn", "a@main row 3", "s3://b"),
        BadInput("no"),
    ],
)
def test_an_error_comes_back_as_itself_out_of_any_wrapping(error: LeptonError) -> None:
    try:
        with told(LENT):
            raise error
    except Told as sent:
        wrapped = RuntimeError(f"Error when running pipeline node LeptonStore: {sent} (pid=7)\n  stack…")
    got = received(wrapped)
    assert type(got) is type(error) and str(got) == str(error) and vars(got) == vars(error)


def test_what_is_no_error_of_ours_comes_back_with_its_name() -> None:
    with pytest.raises(Told) as sent, told(LENT):
        raise ZeroDivisionError("division by zero")
    got = received(sent.value)
    assert type(got) is LeptonError and str(got) == "ZeroDivisionError: division by zero"


def test_a_forked_child_does_not_talk_on_its_parents_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from leptonstore.process.engine import cluster

    monkeypatch.setattr(cluster, "_driver", object())
    with cluster._guard:
        child = os.fork()
        if not child:
            free: list[bool] = []
            thread = threading.Thread(target=lambda: free.append(cluster._guard.acquire(blocking=False)))
            thread.start()
            thread.join()
            os._exit(0 if cluster._driver is None and free == [True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_text_that_only_looks_like_an_error_is_told_as_unreadable() -> None:
    assert "cannot be read" in str(received(RuntimeError("lepton-error:bm90IGpzb24=:")))
    assert received(RuntimeError("lepton-error")) is None


def test_a_loss_is_known_by_name_also_where_only_its_text_is_left() -> None:
    inner = RuntimeError("ray::f() died: ActorDiedError: the actor died")
    outer = ValueError("failed")
    outer.__cause__ = inner
    assert is_loss(outer) and not is_loss(ValueError("row 3 is wrong")) and not is_loss(ClusterLost("gone"))


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"kind": "dask"}, "there is no runner 'dask'; there are: native, ray"),
        ({"kind": "native", "address": "head:6379"}, "takes no address"),
        ({"kind": "ray", "workers": 0}, "at least one worker"),
    ],
)
def test_a_runner_that_makes_no_sense_is_refused(given_: dict, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Runner(**given_)


@pytest.mark.parametrize(("kind", "module", "extra"), [("native", "daft", "process"), ("ray", "ray", "cluster")])
def test_a_runner_that_is_not_installed_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, kind: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf'the runner {kind} needs .*pip install "leptonstore\[{extra}\]"'):
        Runner(kind).require()
