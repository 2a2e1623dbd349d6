"""A part of a model that gets no gradients any more: its averages end at zero in a run that stopped as in one that did not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from training_data import quick_config, write_patterns

from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.loop import Trainer

LIVES_STEPS = 20
TINY = torch.finfo(torch.float32).tiny


class Dying(nn.Module):
    """Two linear models, of which the second one counts for the first steps only."""

    calls: Tensor

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.lasting, self.dying = nn.Linear(pixels, classes), nn.Linear(pixels, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        flat = images.flatten(1)
        outputs: Tensor = self.lasting(flat) + (self.calls <= LIVES_STEPS) * self.dying(flat)
        return outputs


def dying(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Dying(sample_shape[0] * sample_shape[1], classes)


def test_averages_of_what_has_died_are_zero_and_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    config = quick_config(
        model__reference=f"{__name__}:dying",
        model__params={},
        data__global_batch_size=1,
        epochs=24,
        evaluate_every_epochs=24,
    )
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        ds = write_patterns(store)
        Trainer(config, store, ds, run="whole").fit()
        Trainer(config, store, ds, run="stopped").fit(
            max_steps=850
        )  # where averages are subnormal, between two flushes
        middle = _averages(store, "stopped")
        Trainer(config, store, ds, run="stopped").fit(resume=True)
        whole, resumed = _averages(store, "whole"), _averages(store, "stopped")
    assert any(((values != 0) & (values.abs() < TINY)).any() for values in middle.values()), "the test shows nothing"
    assert all(torch.equal(whole[path], resumed[path]) for path in whole)
    dead = [values for path, values in whole.items() if path.startswith("optimizer/exp_avg/") and "dying" in path]
    assert len(dead) == 2 and all(bool((values == 0).all()) for values in dead)


def _averages(store: Store, run: str) -> dict[str, Tensor]:
    saved = checkpoints.load(store, run)
    paths = [path for path in saved.manifest["tensors"] if path.startswith(("optimizer/exp_avg", "model/"))]
    return {path: saved.tensor(path) for path in paths}
