"""`Loader`: what every loader of LeptonStore data is, whatever framework its batches are for. Needs numpy only.

    order -> shares -> steps -> (padding) -> batches -> feed          loaders.order, share, step, pad, stages
      \\_ epochs, position, state                                      loaders.epoch, state

`loaders.DataLoader` (torch), `loaders.NumpyLoader` and `loaders.jax.JaxLoader` are Loaders: they say who this rank is, how rows
become arrays, and where a finished batch goes. Order, shares, epochs, states are those of this class, so they are equal in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

from loaders.epoch import EpochIterator, LoaderStats, Position, Progress
from loaders.order import SEED_MAX, BoundOrder, EpochOrder, FullOrder, OrderStrategy, Rows
from loaders.pad import VALID, padded, padded_rows, valid_rows
from loaders.plan import Planner
from loaders.prefetch import Prefetcher
from loaders.share import Share, find_rank, row_windows, steps_of
from loaders.source import Source, source_of
from loaders.stages import Batch, Transform, maker, picked
from loaders.state import LoaderState


class Loader:
    """Batches of a dataset, in an exact, shared and resumable order. Used by one thread.

    A subclass sets the attributes below (they are its parameters of the same names, see `loaders.DataLoader`), then calls `_open_source`.
    """

    dataset: Any
    batch_size: int | None
    num_workers: int
    prefetch_factor: int | None
    timeout: float
    drop_last: bool
    shuffle: bool
    seed: int
    order: OrderStrategy | None
    global_batch_size: int | None
    rank: int | None
    world_size: int | None
    columns: tuple[str, ...] | None
    as_tuple: tuple[str, ...] | None
    transform: Transform | None
    pad: bool
    arena_bytes_max: int | None

    _source: Source | None = None
    _strategy: OrderStrategy | None = None  # `order`, or what holds when it is not given
    _bound_order: BoundOrder | None = None
    _planner: Planner | None = None

    def _open_source(self, dataset: Any) -> None:
        """The data and its order. Raises ValueError for a column that does not exist, a bad seed, columns that do not fit together."""
        self._source = source_of(dataset, wanted(self.columns, self.as_tuple, self.pad), self.arena_bytes_max)
        if self.pad and any(spec.name == VALID for spec in self._source.columns):
            raise ValueError(f"the dataset has a column {VALID!r}, which is the mask of pad mode: rename it")
        own = getattr(dataset, "__lepton_order__", None)
        self._strategy = self.order or (FullOrder(self.shuffle) if own is None else own())
        self._bound_order = self._strategy.bind(self._source)
        self._epoch_order(0)  # refuses a bad seed here, not at the first batch

    # -- what a framework decides --------------------------------------------------------------------------------------

    def _rank(self) -> tuple[int, int]:
        """(rank, world size) of this process among those that share global batches; asked anew at each `iter()`."""
        return find_rank(self.rank, self.world_size)

    def _gatherer(self, source: Source) -> Callable[[Rows], Batch]:
        """How rows become the columns of a batch; the source is filled."""
        return source.gather

    def _valid(self, step: Any) -> Any:
        """The column "_valid" of a step."""
        return valid_rows(step)

    def _stages(self) -> list[Transform]:
        """What is done with the columns of a batch."""
        stages = [picked(self.as_tuple)] if self.as_tuple is not None else []
        return [*stages, self.transform] if self.transform is not None else stages

    def _feed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Where finished batches go. What is drawn ahead here is not yet consumed: the position counts what is handed out."""
        return batches

    @property
    def _rows_multiple(self) -> int:
        """In pad mode, the rows of a batch are a multiple of this."""
        return 1

    # -- iteration -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        began = perf_counter()
        epoch, consumed = self._progress.next
        order = self._epoch_order(epoch)
        share = self._share(order, consumed)
        batches = self._batches(epoch, order, share)
        self._progress.open()  # now that nothing can fail: an error above leaves the position where it was
        self.stats["wait_s"] += perf_counter() - began  # filling the arena
        return EpochIterator(batches, share, epoch, self._progress, self.stats)

    def __len__(self) -> int:
        """Batches of a whole epoch, also where a restored one goes on in its middle."""
        return self._share(self._epoch_order(self._progress.next.epoch)).steps

    def warm(self) -> None:
        """Begin to decode what the first `iter()` would wait for, in a thread; returns at once.

        For a training script: call it before the model is built. Does nothing where no arena is used.
        """
        if self._source is not None:
            self._source.fill_ahead()

    def _batches(self, epoch: int, order: EpochOrder, share: Share) -> Iterator[Any]:
        """The batches of one pass."""
        source = self._source
        assert source is not None
        source.fill()
        make = maker(self._gatherer(source), self._stages(), self._valid if self.pad else None)
        windows = row_windows(order, share)
        if source.plans:
            self._planner = self._planner or Planner(source)
            following = self._epoch_order((epoch + 1) & SEED_MAX)
            self._planner.open((order, share), (following, self._share(following)))
            windows = self._planner.windows((order, share))
        steps = steps_of(epoch, share, windows)
        if self.pad:
            steps = padded(steps, order, padded_rows(share.global_batch, share.world_size, self._rows_multiple))
        if self.num_workers == 0 or not (source.cold or self.transform):
            return self._feed(map(make, steps))
        depth = self.num_workers * (self.prefetch_factor or 1)
        return self._feed(Prefetcher(make, steps, self.num_workers, depth, self.timeout))

    def _epoch_order(self, epoch: int) -> EpochOrder:
        assert self._bound_order is not None
        return self._bound_order.epoch(self.seed, epoch)

    def _share(self, order: EpochOrder, consumed: int = 0) -> Share:
        assert self.batch_size is not None
        rank, world_size = self._rank()
        global_batch = self.global_batch_size or self.batch_size * world_size
        return Share(order.length, global_batch, rank, world_size, self.drop_last, consumed)

    # -- epochs and state ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.stats = LoaderStats(batches=0, rows=0, wait_s=0.0)
        self._progress = Progress()

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` opens `epoch` at its start, or where a state of that very epoch was loaded."""
        if not 0 <= epoch <= SEED_MAX:
            raise ValueError(f"epoch must be between 0 and {SEED_MAX}, not {epoch}")
        following = self._progress.next
        restored = following.epoch == epoch and following.consumed > 0
        self._progress.start_at(following if restored else Position(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where training would continue: after the batches handed out so far, or at the start of the next epoch.

        After `break` it is still the position in the epoch that was left; `set_epoch` moves on. JSON-able, below 1 KiB,
        the same on every rank and for every framework.
        """
        return self._state().to_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next `iter()` continues at the batch after the state, at any world size.

        Raises LoaderStateError, and changes nothing, when the state is of another dataset version, view, seed, order
        or drop_last, or of another format or version of it.
        """
        here = self._state()
        saved = LoaderState.from_dict(state_dict)
        saved.require_same_order(here)
        self._progress.restore(Position(saved.epoch, saved.consumed))

    def _state(self) -> LoaderState:
        assert self._source is not None and self._strategy is not None
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
            order=self._strategy.spec(),
            drop_last=self.drop_last,
        )

    # -- checking arguments --------------------------------------------------------------------------------------------

    def _rows_per_rank(self, batch_size: int | None) -> int | None:
        """What the attribute `batch_size` says: the most rows that a batch of this rank can have."""
        if self.global_batch_size is None:
            return batch_size
        return -(-self.global_batch_size // self._rank()[1])

    def _require_sizes_fit(self, batch_size: int | None) -> None:
        if self.order is not None and self.shuffle:
            raise ValueError("shuffle and order exclude each other: order= says how rows are ordered")
        if self.global_batch_size is None:
            return
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size should be a positive integer value, but got {self.global_batch_size}")
        if batch_size not in (1, None):
            raise ValueError("batch_size (rows per rank) and global_batch_size (rows of all ranks) exclude each other")


def wanted(columns: Sequence[str] | None, as_tuple: Sequence[str] | None, pad: bool) -> list[str] | None:
    """The columns to read; None for all."""
    if pad and as_tuple is not None and VALID not in as_tuple:
        raise ValueError(
            f"as_tuple={tuple(as_tuple)} leaves out {VALID!r}, which tells padded rows from real ones: "
            f"add it (as a sample weight, for instance), or do without pad"
        )
    named = [name for name in as_tuple or () if not (pad and name == VALID)]
    if columns is None:
        return None if as_tuple is None else list(dict.fromkeys(named))
    for name in named:
        if name not in columns:
            raise ValueError(f"as_tuple names {name!r}, which is not in columns={list(columns)}")
    return list(dict.fromkeys(columns))
