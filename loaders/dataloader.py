"""`DataLoader`: torch's, and a fast path with an exact order for LeptonStore datasets.

Which of three paths a loader takes is decided once, when it is made:

    torch    any dataset that is not LeptonStore's, and any given `sampler`, `batch_sampler` or `batch_size=None`:
             torch's own loader, with a state (`loaders.plain`). It is never sharded here: with a sampler, the sampler decides.
    rows     a LeptonStore dataset and a `collate_fn`: torch's loader (worker processes included) over lists of row
             dicts, in the order and shares of this module.
    gather   a LeptonStore dataset: one gather per column and batch; no per-sample Python.

On the last two, ranks share each global batch (`loaders.share`), the order is a pure function of (seed, epoch,
position) (`loaders.order`), and `state_dict` says where the loader stands (`loaders.state`). On the gather path a dataset
that is read through the hot cache (`Dataset.cached`) is told of what comes next (`loaders.plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Sampler

from loaders.batch import Transform, gatherer, maker
from loaders.epoch import EpochIterator, LoaderStats, Position, Progress
from loaders.order import SEED_MAX, BoundOrder, EpochOrder, FullOrder, OrderStrategy
from loaders.plain.position import Position as PlainPosition
from loaders.plan import Pass, Planner
from loaders.prefetch import Prefetcher
from loaders.share import Share, find_rank, row_windows, steps_of
from loaders.source import Source, has_source, source_of
from loaders.state import LoaderState

Path = Literal["torch", "rows", "gather"]


class DataLoader(TorchDataLoader[Any]):
    """`torch.utils.data.DataLoader`, with an exact, shared and resumable order for LeptonStore datasets.

    The parameters of torch keep their names, defaults and meaning. For any dataset that is not LeptonStore's, and with
    a `sampler` or `batch_sampler`, it is torch's loader, batch for batch, and the parameters below are refused. It has
    `state_dict` and `load_state_dict` as torchdata's StatefulDataLoader has, and its `snapshot_every_n_steps`: how many
    steps lie at most between two states that worker processes send of a stateful dataset (None: one in each pass).

    On a LeptonStore dataset a batch is a dict {column: tensor} (strings, bytes and other values without a fixed width:
    a list), and

    batch_size         rows per rank, as in torch: the global batch is batch_size x world size.
    global_batch_size  rows of all ranks together, instead of batch_size: the same batches at any world size.
    order              how rows are ordered (`loaders.orders`), instead of `shuffle`.
    seed               decides the order with the epoch; equal on every rank. `generator` has no say in the order.
    rank, world_size   which share of each global batch is read here. Default: torch.distributed when initialised, else
                       RANK and WORLD_SIZE of the environment, else 0 of 1; found anew at each `iter()`.
    columns            names of the columns to read (default: all, or those of `as_tuple`).
    as_tuple           names of columns: a batch is the tuple of them, e.g. ("image", "label"), and not a dict.
    transform          called with each batch; what it returns is the batch. In threads when num_workers > 0.
    arena_bytes_max    bytes that decoded columns may occupy (default: limits.ARENA_BYTES_MAX): in this process, or once for
                       the host when the dataset is read through its hot cache (`dataset.cached(place)`).
    num_workers        n: threads that read and transform ahead (`prefetch_factor` batches each; `timeout` holds).
                       Columns that lie decoded in memory and have no transform are gathered in the caller's thread,
                       which is faster. With a `collate_fn`: worker processes, as in torch. `worker_init_fn`,
                       `persistent_workers` and `multiprocessing_context` concern worker processes only.
    pin_memory         as in torch, when CUDA is available.

    A dataset that is read through the hot cache is also planned: `iter()` tells the cache which values this rank reads in this
    epoch and in the next, about 3 us for each, so that what is needed soonest stays. (Not with a `collate_fn`, whose worker
    processes read.)

    All ranks take equal steps; where the last global batch has fewer rows than ranks, some batches have zero rows (and
    `collate_fn` is called with an empty list): `drop_last=True` avoids that.

    `iter()` opens the epoch given to `set_epoch`, else the one after the last that was opened; leaving a loop early
    closes its epoch. Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        snapshot_every_n_steps: int | None = 1,
        seed: int = 0,
        order: OrderStrategy | None = None,
        global_batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        columns: Sequence[str] | None = None,
        as_tuple: Sequence[str] | None = None,
        transform: Transform | None = None,
        arena_bytes_max: int | None = None,
    ) -> None:
        own_order = sampler is None and batch_sampler is None and (batch_size, global_batch_size) != (None, None)
        path: Path = "torch"
        if has_source(dataset) and own_order:
            path = "gather" if collate_fn is None else "rows"
        self._path = path
        self.shuffle = bool(shuffle)
        self.seed = seed
        self.order = order
        self.global_batch_size = global_batch_size
        self.rank, self.world_size = rank, world_size
        self.columns = None if columns is None else tuple(columns)
        self.as_tuple = None if as_tuple is None else tuple(as_tuple)
        self.transform = transform
        self.arena_bytes_max = arena_bytes_max
        self.stats = LoaderStats(batches=0, rows=0, wait_s=0.0)
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self._plain = PlainPosition(snapshot_every_n_steps)
        self._progress = Progress()
        self._source: Source | None = None
        self._bound_order: BoundOrder | None = None
        self._planner: Planner | None = None
        self._row_sampler = _RowSampler()
        self._require_extras_fit(batch_size)
        if path != "torch":
            self._source = source_of(dataset, _wanted(self.columns, self.as_tuple), arena_bytes_max)
            if order is None:
                own = getattr(dataset, "__lepton_order__", None)
                self.order = FullOrder(self.shuffle) if own is None else own()
            assert self.order is not None
            self._bound_order = self.order.bind(self._source)
            self._epoch_order(0)  # refuses a bad seed here, not at the first batch
            batch_size = self._rows_per_rank(batch_size)
            shuffle = bool(shuffle) and self._source.rows > 0  # torch's sampler, which is not asked, refuses no rows
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )

    # -- torch's protocol --------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        if self._path == "torch":
            return self._plain.iterate(self, super().__iter__)
        began = perf_counter()
        epoch, consumed = self._progress.next
        order = self._epoch_order(epoch)
        share = self._share(order, consumed)
        if self._path == "rows":
            self._row_sampler.open(order, share)
            batches: Iterator[Any] = super().__iter__()
        else:
            next_order = self._epoch_order((epoch + 1) & SEED_MAX)
            batches = self._gathered(epoch, (order, share), (next_order, self._share(next_order)))
        self._progress.open()  # now that nothing can fail: an error above leaves the position where it was
        self.stats["wait_s"] += perf_counter() - began  # filling the arena
        return EpochIterator(batches, share, epoch, self._progress, self.stats)

    def _get_iterator(self) -> Any:
        if self._path != "torch":
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return self._plain.open(self)

    def warm(self) -> None:
        """Begin to decode what the first `iter()` would wait for, in a thread; returns at once.

        For a training script: call it before the model is built. Does nothing where no arena is used.
        """
        if self._path == "gather" and self._source is not None:
            self._source.fill_ahead()

    def __len__(self) -> int:
        """Batches of a whole epoch, also where a restored one goes on in its middle."""
        return (
            super().__len__()
            if self._path == "torch"
            else self._share(self._epoch_order(self._progress.next.epoch)).steps
        )

    @property
    def _index_sampler(self) -> Any:
        """What torch's iterators draw from: the same hook that torch uses for `sampler` and `batch_sampler`."""
        return self._row_sampler if self._path == "rows" else super()._index_sampler

    # -- epochs and state --------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` opens `epoch` at its start, or where a state of that very epoch was loaded.

        On torch's path it is handed to the sampler, when that has a `set_epoch`; else it does nothing.
        """
        if self._path == "torch":
            for sampler in (self.sampler, self.batch_sampler):
                hand_over = getattr(sampler, "set_epoch", None)
                if hand_over is not None:
                    hand_over(epoch)
            return
        if not 0 <= epoch <= SEED_MAX:
            raise ValueError(f"epoch must be between 0 and {SEED_MAX}, not {epoch}")
        following = self._progress.next
        restored = following.epoch == epoch and following.consumed > 0
        self._progress.start_at(following if restored else Position(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where training would continue: after the batches handed out so far, or at the start of the next epoch.

        After `break` it is still the position in the epoch that was left; `set_epoch` moves on. JSON-able, below 1 KiB,
        the same on every rank.

        On torch's path it is the protocol of torchdata's StatefulDataLoader, and a state of this rank (`loaders.plain`).
        """
        if self._path == "torch":
            return self._plain.state(self)
        return self._state().to_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next `iter()` continues at the batch after the state, at any world size.

        Raises LoaderStateError, and changes nothing, when the state is of another dataset version, view, seed, order
        or drop_last, or of another format or version of it.
        """
        if self._path == "torch":
            return self._plain.load(self, state_dict)
        here = self._state()
        saved = LoaderState.from_dict(state_dict)
        saved.require_same_order(here)
        self._progress.restore(Position(saved.epoch, saved.consumed))

    def _state(self) -> LoaderState:
        assert self._source is not None and self.order is not None
        position, source = self._progress.position, self._source
        order = self._epoch_order(position.epoch)
        return LoaderState(
            dataset=source.name,
            commit=source.commit,
            fingerprint=source.fingerprint,
            length=order.length,
            seed=self.seed,
            epoch=position.epoch,
            consumed=position.consumed,
            global_batch=self._share(order).global_batch,
            order=self.order.spec(),
            drop_last=self.drop_last,
        )

    # -- making batches ----------------------------------------------------------------------------------------

    def _gathered(self, epoch: int, current: Pass, following: Pass) -> Iterator[Any]:
        source = self._source
        assert source is not None
        source.fill()
        pin = self.pin_memory and torch.cuda.is_available()
        make = maker(gatherer(source), self.as_tuple, self.transform, pin)
        windows = row_windows(*current)
        if source.plans:
            self._planner = self._planner or Planner(source)
            self._planner.open(current, following)
            windows = self._planner.windows(current)
        steps = steps_of(epoch, current[1], windows)
        if self.num_workers == 0 or not (source.cold or self.transform):
            return map(make, steps)
        depth = self.num_workers * (self.prefetch_factor or 1)
        return Prefetcher(make, steps, self.num_workers, depth, self.timeout)

    def _epoch_order(self, epoch: int) -> EpochOrder:
        assert self._bound_order is not None
        return self._bound_order.epoch(self.seed, epoch)

    def _share(self, order: EpochOrder, consumed: int = 0) -> Share:
        assert self.batch_size is not None
        rank, world_size = find_rank(self.rank, self.world_size)
        global_batch = self.global_batch_size or self.batch_size * world_size
        return Share(order.length, global_batch, rank, world_size, self.drop_last, consumed)

    # -- checking arguments ------------------------------------------------------------------------------------

    def _rows_per_rank(self, batch_size: int | None) -> int | None:
        """What the attribute `batch_size` says: the most rows that a batch of this rank can have."""
        if self.global_batch_size is None:
            return batch_size
        return -(-self.global_batch_size // find_rank(self.rank, self.world_size)[1])

    def _require_extras_fit(self, batch_size: int | None) -> None:
        extras = (
            "order",
            "global_batch_size",
            "rank",
            "world_size",
            "columns",
            "as_tuple",
            "transform",
            "arena_bytes_max",
        )
        every = self.snapshot_every_n_steps
        if every is not None and (type(every) is not int or every < 0):
            raise ValueError(f"snapshot_every_n_steps should be a positive integer or None, but got {every!r}")
        given = [name for name in extras if getattr(self, name) is not None] + ["seed"] * (self.seed != 0)
        if self._path == "torch" and given:
            raise ValueError(
                f"{', '.join(given)}: only for a LeptonStore dataset without sampler, batch_sampler or "
                "batch_size=None, and this loader is torch's own"
            )
        if self.order is not None and self.shuffle:
            raise ValueError("shuffle and order exclude each other: order= says how rows are ordered")
        made_here = [name for name in ("columns", "as_tuple", "transform", "arena_bytes_max") if name in given]
        if self._path == "rows" and made_here:
            raise ValueError(f"{', '.join(made_here)} and collate_fn exclude each other: collate_fn makes the batch")
        if self.global_batch_size is None:
            return
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size should be a positive integer value, but got {self.global_batch_size}")
        if batch_size not in (1, None):
            raise ValueError("batch_size (rows per rank) and global_batch_size (rows of all ranks) exclude each other")


class _RowSampler(Sampler[list[int]]):
    """Row numbers of each batch of the open epoch, for torch's fetchers."""

    def open(self, order: EpochOrder, share: Share) -> None:
        self._order, self._share = order, share

    def __iter__(self) -> Iterator[list[int]]:
        return (step.rows.tolist() for step in steps_of(0, self._share, row_windows(self._order, self._share)))

    def __len__(self) -> int:
        return self._share.steps


def _wanted(columns: Sequence[str] | None, as_tuple: Sequence[str] | None) -> list[str] | None:
    wanted = columns if columns is not None else as_tuple
    if wanted is None:
        return None
    for name in as_tuple or ():
        if name not in wanted:
            raise ValueError(f"as_tuple names {name!r}, which is not in columns={list(wanted)}")
    return list(dict.fromkeys(wanted))
