"""`NumpyLoader`: the loader without torch. Batches are dicts of numpy arrays (and lists, for columns without a fixed width)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from loaders.faults import OnFault, Policy
from loaders.loader import Loader
from loaders.order import OrderStrategy
from loaders.orders.limits import Limit
from loaders.pipeline import Collate
from loaders.source import has_source
from loaders.stages import Transform, map_tree
from loaders.tuning import Auto, chosen


class NumpyLoader(Loader):
    """Order, shares, epochs, sizes and states of `loaders.DataLoader`, whose parameters these are; arrays instead of tensors.

    A state of one is a state of the other. Arrays have the dtypes and shapes of the tensors, unsigned ones included, and own their memory.
    Torch is neither needed nor imported. Rank and world size are given or found (`loaders.share.find_rank`).

    transforms, collate, policy, on_fault   by sample, as there; what they make with torch, where it is installed, becomes arrays.
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
        num_workers: int | Auto = 0,
        drop_last: bool = False,
        timeout: float = 0,
        *,
        prefetch_factor: int | Auto | None = None,
        seed: int = 0,
        order: OrderStrategy | None = None,
        limit_batches: Limit = None,
        overfit_batches: Limit = None,
        global_batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        columns: Sequence[str] | None = None,
        as_tuple: Sequence[str] | None = None,
        transform: Transform | None = None,
        transforms: Mapping[str, Sequence[Any]] | None = None,
        collate: Mapping[str, Collate] | None = None,
        policy: Policy = "raise",
        on_fault: OnFault | None = None,
        pad: bool = False,
        arena_bytes_max: int | None = None,
        prefetch_bytes_max: int | None = None,
        receipts: bool = True,
        follow: bool | str = False,
    ) -> None:
        if not has_source(dataset):
            raise TypeError(f"a {type(dataset).__name__} is no LeptonStore dataset, and torch's DataLoader is not here")
        if batch_size < 1:
            raise ValueError(f"batch_size should be a positive integer value, but got batch_size={batch_size}")
        workers = chosen(num_workers, prefetch_factor, prefetch_bytes_max)
        if workers.workers < 0 or timeout < 0:
            raise ValueError(f"num_workers={num_workers} and timeout={timeout} should be non-negative")
        self.dataset = dataset
        self.shuffle = shuffle
        self.num_workers, self.prefetch_factor, self.timeout = workers.workers, workers.prefetch, timeout
        self.auto_workers, self.auto_prefetch = workers.auto_workers, workers.auto_prefetch
        self.prefetch_bytes_max = prefetch_bytes_max
        self.drop_last = drop_last
        self.seed = seed
        self.order = order
        self.limit_batches, self.overfit_batches = limit_batches, overfit_batches
        self.global_batch_size = global_batch_size
        self.rank, self.world_size = rank, world_size
        self.columns = None if columns is None else tuple(columns)
        self.as_tuple = None if as_tuple is None else tuple(as_tuple)
        self.transform = transform
        self.transforms = None if transforms is None else dict(transforms)
        self.collate = None if collate is None else dict(collate)
        self.policy, self.on_fault = policy, on_fault
        self.pad = pad
        self.arena_bytes_max = arena_bytes_max
        self.receipts = receipts
        self.follow = follow
        self._require_sizes_fit(batch_size)
        self._open_source(dataset)
        self._start()
        self.batch_size = self._rows_per_rank(batch_size)
        self._epoch_order(0)  # refuses a bad seed or limit here, not at the first batch

    @property
    def _context(self) -> Transform | None:
        """Only where torch may have been at work: chains and collates stack values as its tensors."""
        return _arrays if self._programs or self.collate else None


def _arrays(batch: Any) -> Any:
    """The batch with torch's tensors as arrays over the same memory."""
    torch = sys.modules.get("torch")
    if torch is None:
        return batch
    return map_tree(lambda leaf: leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf, batch)
