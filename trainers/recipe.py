"""The default recipe: a TrainConfig that suits the size of the training set. Measured, not guessed.

The CNN of the main job, Adam, one-cycle to 3e-3, float32, two CPU threads; accuracy on the held-out rows:

    MNIST   60,000 rows, batch 128,  5 epochs   0.988 to 0.990 over seeds   (constant 1e-3, batch 32: 0.984 to 0.987)
                         batch  64,  2 epochs   0.986 to 0.987              (batch 128: 0.984 to 0.985)
    digits   1,440 rows, batch 16,  10 epochs   0.986 to 0.989 over seeds   (batch 128, 5 epochs: under 0.93)

A small set needs small batches, because it is the number of steps that learns; a large one is faster with larger ones.
"""

from __future__ import annotations

from trainers.config import DataConfig, TrainConfig

# An epoch has at least this many steps, as long as the batch can shrink.
STEPS_PER_EPOCH_MIN = 64
BATCH_SIZE_MIN, BATCH_SIZE_MAX = 16, 128
# From this many rows on, five epochs are enough.
LARGE_ROWS = 20_000
EPOCHS_SMALL, EPOCHS_LARGE = 10, 5


def default_batch_size(rows: int) -> int:
    """The largest power of two that leaves STEPS_PER_EPOCH_MIN steps in an epoch of `rows`, within the bounds."""
    size = BATCH_SIZE_MAX
    while size > BATCH_SIZE_MIN and rows // size < STEPS_PER_EPOCH_MIN:
        size //= 2
    return size


def default_config(rows: int, epochs: int | None = None, batch_size: int | None = None, seed: int = 0) -> TrainConfig:
    """The recipe for a training set of `rows`; what is given is kept."""
    if batch_size is None:
        batch_size = default_batch_size(rows)
    if epochs is None:
        epochs = EPOCHS_LARGE if rows >= LARGE_ROWS else EPOCHS_SMALL
    return TrainConfig(data=DataConfig(global_batch_size=batch_size), epochs=epochs, seed=seed)
