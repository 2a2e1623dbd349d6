"""`NumpyLoader`: the loader without torch. Batches are dicts of numpy arrays (and lists, for columns without a fixed width)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loaders.loader import Loader
from loaders.order import OrderStrategy
from loaders.source import has_source
from loaders.stages import Transform


class NumpyLoader(Loader):
    """Order, shares, epochs, sizes and states of `loaders.DataLoader`, whose parameters these are; arrays instead of tensors.

    A state of one is a state of the other. Arrays have the dtypes and shapes of the tensors, unsigned ones included, and own their memory.
    Torch is neither needed nor imported. Rank and world size are given or found (`loaders.share.find_rank`).

    num_workers    n: threads that read and transform ahead, `prefetch_factor` batches each.
    timeout        seconds that a batch may keep its caller waiting, 0 for no limit; then RuntimeError.
    pad            True: batches of one static shape with the mask "_valid" (`loaders.pad`).

    Raises ValueError for arguments that do not fit together, TypeError for a dataset that is not LeptonStore's.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        num_workers: int = 0,
        drop_last: bool = False,
        timeout: float = 0,
        *,
        prefetch_factor: int | None = None,
        seed: int = 0,
        order: OrderStrategy | None = None,
        global_batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        columns: Sequence[str] | None = None,
        as_tuple: Sequence[str] | None = None,
        transform: Transform | None = None,
        pad: bool = False,
        arena_bytes_max: int | None = None,
        receipts: bool = True,
    ) -> None:
        if not has_source(dataset):
            raise TypeError(f"a {type(dataset).__name__} is no LeptonStore dataset, and torch's DataLoader is not here")
        if batch_size < 1:
            raise ValueError(f"batch_size should be a positive integer value, but got batch_size={batch_size}")
        if num_workers < 0 or timeout < 0:
            raise ValueError(f"num_workers={num_workers} and timeout={timeout} should be non-negative")
        self.dataset = dataset
        self.shuffle = shuffle
        self.num_workers, self.prefetch_factor, self.timeout = num_workers, prefetch_factor, timeout
        self.drop_last = drop_last
        self.seed = seed
        self.order = order
        self.global_batch_size = global_batch_size
        self.rank, self.world_size = rank, world_size
        self.columns = None if columns is None else tuple(columns)
        self.as_tuple = None if as_tuple is None else tuple(as_tuple)
        self.transform = transform
        self.pad = pad
        self.arena_bytes_max = arena_bytes_max
        self.receipts = receipts
        self._require_sizes_fit(batch_size)
        self._open_source(dataset)
        self._start()
        self.batch_size = self._rows_per_rank(batch_size)
