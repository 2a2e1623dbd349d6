"""Which rows of a dataset are for training and which for validation."""

from __future__ import annotations

import numpy as np

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process.identity import split_side
from trainers.config import DataConfig

VALIDATION_SPLITS = ("val", "validation", "test")


def split_dataset(ds: Dataset, config: DataConfig) -> tuple[Dataset, Dataset]:
    """(training rows, validation rows). Without a `split` column, `validation_fraction` is held out by row identity,
    which gives the same sides as `leptonstore.process.preprocess.prepare`. Raises BadInput when a side is missing."""
    names = ds.splits()
    if not names:
        return _held_out(ds, config.validation_fraction)
    validation = config.validation_split or next((name for name in VALIDATION_SPLITS if name in names), None)
    for name in (config.train_split, validation):
        if name is None or name not in names:
            raise BadInput(f"{ds.name} has no split {name or 'for validation'!r}; it has {', '.join(names)}")
    assert validation is not None
    train, held_out = ds.split(config.train_split), ds.split(validation)
    for name, rows in ((config.train_split, len(train)), (validation, len(held_out))):
        if rows == 0:
            raise BadInput(f"split {name!r} of {ds.name} has no rows")
    return train, held_out


def _held_out(ds: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    batches = (batch for _, batch in ds.iter_batches(list(ds.identity)))
    sides = [split_side([batch.column(name) for name in ds.identity], fraction) for batch in batches]
    side = np.concatenate(sides) if sides else np.empty(0, np.uint8)
    train, validation = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if not train.size or not validation.size:
        raise BadInput(f"{ds.name} has {len(ds)} rows, too few to hold out {fraction:.0%}; add rows or a split column")
    return ds.select(train), ds.select(validation)
