"""Ranks that share a batch make the step that one rank makes: micro-batches, clipping, counted targets, empty shares, bad losses, votes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from ranks import run_script

pytest.importorskip("torch")

CASES = ("plain", "accumulated", "clipped", "recomputed", "counted", "left out")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each rank of each world wrote, by "<ranks>-<rank>"."""
    folder = tmp_path_factory.mktemp("steps")
    run_script("step_run.py", folder)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def furthest(left: Any, right: Any) -> float:
    """The largest difference of two trees of numbers; everything else must be equal."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        return max(furthest(left[key], right[key]) for key in left)
    if isinstance(left, list):
        assert len(left) == len(right)
        return max((furthest(one, other) for one, other in zip(left, right, strict=True)), default=0.0)
    if isinstance(left, float):
        return abs(left - right)
    assert left == right
    return 0.0


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_make_the_step_of_one(found: dict[str, dict[str, Any]], ranks: int, case: str, kind: str) -> None:
    expected = found["1-0"][f"{case} ddp"]
    for rank in range(ranks):
        told = found[f"{ranks}-{rank}"][f"{case} {kind}"]
        assert furthest(told["weights"], expected["weights"]) < 2e-6
        assert furthest(told["outcomes"], expected["outcomes"]) < 2e-6
        assert told == found[f"{ranks}-0"][f"{case} {kind}"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_rank_without_rows_leaves_the_statistics_of_all_as_they_are(
    found: dict[str, dict[str, Any]], kind: str
) -> None:
    """The third batch has two rows: of three ranks the first has none, and its buffers are those that all take."""
    for rank in range(3):
        told = found[f"3-{rank}"][f"normed {kind}"]
        assert all(math.isfinite(value) for tensor in told["weights"].values() for value in flat(tensor))
        assert all(taken for _, _, taken, _ in told["outcomes"])
        assert told == found["3-0"][f"normed {kind}"]


def flat(tree: Any) -> list[float]:
    return [value for item in tree for value in flat(item)] if isinstance(tree, list) else [tree]


def test_the_cases_do_what_they_are_called(found: dict[str, dict[str, Any]]) -> None:
    outcomes = {case: found["1-0"][f"{case} ddp"]["outcomes"] for case in CASES}
    assert [taken for _, _, taken, _ in outcomes["left out"]] == [True, False, True, True]
    assert [stop for _, stop, _, _ in outcomes["plain"]] == [False, False, True, False]
    assert all(norm > 0.05 for _, _, _, norm in outcomes["clipped"])
    assert outcomes["counted"][0][0] != outcomes["plain"][0][0]
