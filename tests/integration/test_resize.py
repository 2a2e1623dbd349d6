"""One training by two, three and one ranks in turn (and by other kinds and a mesh) is, row for row, the training of one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_script

from loaders.receipt import Receipt
from trainers.metrics import read_metrics

pytest.importorskip("torch")

RESIZED = ["ddp", "fsdp2", "mixed", "mesh"]
STEPS = 18


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all runs left: see resize_run.py."""
    made = tmp_path_factory.mktemp("resize")
    run_script("resize_run.py", made)
    return made


def told(path: Path) -> Any:
    return json.loads(path.read_text())


def batches(folder: Path) -> list[list[str]]:
    """The rows of each step, all shares of the data one after another, as the models of the ranks saw them."""
    found: list[list[str]] = []
    for number in range(9):
        ranks = [told(path) for path in sorted(folder.glob(f"{number}-*.json"))]
        shares = sorted((rank for rank in ranks if rank["counts"]), key=lambda rank: rank["data_rank"])
        found += [
            [row for share in step for row in share] for step in zip(*(rank["seen"] for rank in shares), strict=True)
        ]
    return found


def steps(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_metrics(folder / "log.jsonl") if event["event"] == "step"]


def furthest(left: Any, right: Any) -> float:
    if isinstance(left, list):
        return max((furthest(*pair) for pair in zip(left, right, strict=True)), default=0.0)
    return abs(float(left) - float(right))


@pytest.mark.parametrize("name", RESIZED)
def test_models_see_the_rows_that_one_rank_sees(folder: Path, name: str) -> None:
    alone = batches(folder / "alone")
    assert [len(rows) for rows in alone] == [10, 10, 10, 10, 10, 2] * 3
    assert len({row for rows in alone[:6] for row in rows}) == 52
    assert batches(folder / name) == alone


def test_tensor_ranks_see_equal_batches(folder: Path) -> None:
    seen = [told(folder / "mesh" / f"0-{rank}.json")["seen"] for rank in range(4)]
    assert seen[0] == seen[1] and seen[2] == seen[3] and seen[0] != seen[2]
    assert len(seen[0]) == 7


@pytest.mark.parametrize("name", RESIZED)
def test_receipts_are_those_of_one_rank(folder: Path, name: str) -> None:
    receipts = [Receipt.from_dict(told(folder / one / "manifest.json")["receipt"]) for one in ("alone", name)]
    assert receipts[0].steps == STEPS
    assert (receipts[1].head, receipts[1].steps) == (receipts[0].head, receipts[0].steps)
    assert [(each.epoch, each.start, each.stop) for each in receipts[0].segments] == [
        (0, 0, 52),
        (1, 0, 52),
        (2, 0, 52),
    ]


@pytest.mark.parametrize("name", RESIZED)
def test_losses_and_weights_are_those_of_one_rank_but_for_the_last_bits(folder: Path, name: str) -> None:
    """18 steps, all of whose gradients are clipped: what differs is the order of additions."""
    alone, other = steps(folder / "alone"), steps(folder / name)
    assert all(event["grad_norm"] > 0.05 for event in alone)
    assert [event["step"] for event in other] == list(range(1, STEPS + 1))
    assert furthest([event["loss"] for event in alone], [event["loss"] for event in other]) < 1e-5
    assert furthest([event["grad_norm"] for event in alone], [event["grad_norm"] for event in other]) < 1e-5
    left, right = told(folder / "alone" / "weights.json"), told(folder / name / "weights.json")
    assert left.keys() == right.keys()
    assert max(furthest(left[path], right[path]) for path in left) < 1e-5


def test_fsdp2_in_16_bits_trains_and_evaluates(folder: Path) -> None:
    alone, low = steps(folder / "alone"), steps(folder / "bf16")
    assert 0 < furthest([event["loss"] for event in alone], [event["loss"] for event in low]) < 0.05
    histories = [told(folder / name / "0-0.json")["history"] for name in ("alone", "bf16")]
    assert furthest(*([epoch["val_loss"] for epoch in history] for history in histories)) < 0.05


def test_evaluation_is_identical_by_one_two_and_three_ranks(folder: Path) -> None:
    """23 + 52 rows, of which no number of ranks gets equal shares."""
    found = [told(path) for path in sorted((folder / "alone").glob("evaluate-*.json"))]
    assert len(found) == 6 and found[0]["rows"] == 75
    assert all(one == found[0] for one in found)
