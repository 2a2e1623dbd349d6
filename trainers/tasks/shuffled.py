"""What a run learns from: shuffled epochs of global batches, shared out over the data ranks."""

from __future__ import annotations

from typing import Any

from loaders import DataLoader
from trainers.config import DataConfig
from trainers.parallel import World


def shuffled_loader(rows: Any, config: DataConfig, seed: int, world: World, **options: Any) -> DataLoader:
    """A loader over rows or windows, as `config` and the ranks say. options: of DataLoader."""
    return DataLoader(
        rows,
        shuffle=True,
        seed=seed,
        global_batch_size=config.global_batch_size,
        rank=world.data_rank,
        world_size=world.data_size,
        num_workers=config.workers,
        **options,
    )
