"""Models on one to four gloo ranks: gradients of the whole batch, bit-exact resumes, meshes, and who is told what when it does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ranks import run_script

pytest.importorskip("torch")

MESH, HYBRID = "4-dataxtensor", "4-replicatexshard"
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank of each world wrote, by "<ranks>-<mesh><rank>"."""
    folder = tmp_path_factory.mktemp("wrap")
    run_script("wrap_run.py", folder)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def ranks_of(found: Found, world: str) -> list[dict[str, Any]]:
    return [found[f"{world}{rank}"] for rank in range(int(world[0]))]


def furthest(left: Any, right: Any) -> float:
    """The largest difference of two trees of numbers that have the same shape."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        return max(furthest(left[key], right[key]) for key in left)
    if isinstance(left, list):
        assert len(left) == len(right)
        return max((furthest(*pair) for pair in zip(left, right, strict=True)), default=0.0)
    return abs(float(left) - float(right))


@pytest.mark.parametrize("world", ["1-", "2-", "3-", HYBRID])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_those_of_one_rank(found: Found, world: str, kind: str, accumulate: int) -> None:
    """Batches of 10 and of 2 rows (an empty rank among three), divided by tokens that differ in number from row to row."""
    expected = found["1-0"]["gradients ddp 1"]
    for rank in ranks_of(found, world):
        assert furthest(rank[f"gradients {kind} {accumulate}"], expected) < 1e-6


@pytest.mark.parametrize("world", ["2-", "3-", HYBRID])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_state_that_goes_on_in_new_objects_is_bit_exact(found: Found, world: str, kind: str, accumulate: int) -> None:
    for rank in ranks_of(found, world):
        assert all(rank[f"resumed {kind} {accumulate} {at}"] for at in (1, 4))


def test_without_settled_buckets_ddp_is_not_bit_exact_and_fsdp2_is(found: Found) -> None:
    """Why there is `settle`: should the first line fail, torch has changed, and it may go."""
    assert not any(rank["unsettled ddp"] for rank in ranks_of(found, "3-"))
    assert all(rank["unsettled fsdp2"] for world in ("2-", "3-", HYBRID) for rank in ranks_of(found, world))


def test_fsdp2_in_16_bits_resumes_bit_exact(found: Found) -> None:
    assert all(rank["bf16"] for world in ("2-", "3-", HYBRID) for rank in ranks_of(found, world))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_running_statistics_are_those_of_rank_0(found: Found, kind: str) -> None:
    for world in ("2-", "3-", HYBRID):
        ranks = [rank[f"statistics {kind}"] for rank in ranks_of(found, world)]
        assert all(rank["shared"] == ranks[0]["own"] for rank in ranks)
        assert any(rank["own"] != ranks[0]["own"] for rank in ranks)
    assert found["3-0"]["statistics ddp"] == found["3-0"]["statistics fsdp2"]


def test_tensor_ranks_see_equal_batches_and_give_the_gradients_of_one_rank(found: Found) -> None:
    ranks = ranks_of(found, MESH)
    assert [rank["place"] for rank in ranks] == [[0, 2, True], [0, 2, False], [1, 2, True], [1, 2, False]]
    assert ranks[0]["batch"] == ranks[1]["batch"] and ranks[2]["batch"] == ranks[3]["batch"]
    assert ranks[0]["batch"] != ranks[2]["batch"]
    assert all(rank["sum"] == [2, 4, 2] for rank in ranks)  # two shares, four votes
    assert all(furthest(rank["gradients"], found["1-0"]["gradients ddp 1"]) < 1e-6 for rank in ranks)
    assert all(rank["resumed"] and rank["losses"] == ranks[0]["losses"] for rank in ranks)


def test_what_does_not_go_together_is_named(found: Found) -> None:
    for rank in ranks_of(found, MESH):
        assert "set it to fsdp2" in rank["ddp"]
        assert "no module of the model has tensor_plan()" in rank["no plan"]
        assert "parallel.mesh is {'data': 5}, which does not make 4 ranks" in rank["mesh"]
    for rank in ranks_of(found, "3-"):
        assert "take no part in the model's outputs: unused.weight, unused.bias" in rank["idle"]


def test_ranks_that_are_left_say_so_in_one_line(found: Found) -> None:
    assert {name for name in found if name.startswith("ended")} == {"ended0", "ended2"}
    for told in (found["ended0"], found["ended2"]):
        assert isinstance(told, str) and "\n" not in told
        assert "another rank has ended or does not answer" in told and "--resume" in told
