"""Two ranks under torchrun: stopped in mid-epoch and resumed, every loss and weight is that of the undisturbed run."""

from __future__ import annotations

from pathlib import Path

import torch
from training_data import quick_config, quick_options, train_command, write_patterns

from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.metrics import read_metrics


def losses(log: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_metrics(log) if event["event"] == "step"]


def test_two_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    store, environment = tmp_path / "store", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Store.create(store, cache_dir=tmp_path / "cache") as opened:
        write_patterns(opened)
    options = quick_options(quick_config())
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    train_command(2, store, ["--run-name", "whole", "--metrics", str(whole), *options], environment)
    train_command(2, store, ["--run-name", "parts", "--metrics", str(parts), "--max-steps", "7", *options], environment)
    train_command(2, store, ["--run-name", "parts", "--metrics", str(parts), "--resume"], environment)
    assert len(losses(whole)) == 15
    assert losses(parts) == losses(whole)
    with Store.open(store, cache_dir=tmp_path / "cache") as opened:
        left, right = checkpoints.load(opened, "whole"), checkpoints.load(opened, "parts")
        assert left.manifest["step"] == right.manifest["step"] == 15
        for path in left.manifest["tensors"]:
            assert torch.equal(left.tensor(path), right.tensor(path)), path
        assert left.manifest["history"] == right.manifest["history"]
