"""`DataLoader`: torch's, and a fast path with an exact order for LeptonStore datasets.

Which of three paths a loader takes is decided once, when it is made:

    torch    any dataset that is not LeptonStore's, and any given `sampler`, `batch_sampler` or `batch_size=None`:
             torch's own loader, unchanged. It is never sharded here: with a sampler, the sampler decides.
    rows     a LeptonStore dataset and a `collate_fn`: torch's loader (worker processes included) over lists of row
             dicts, in the order and shares of this module.
    gather   a LeptonStore dataset: one gather per column and batch; no per-sample Python.

On the last two, ranks share each global batch (`loaders.share`), the order is a pure function of (seed, epoch,
position) (`loaders.order`), and `state_dict` says where the loader stands (`loaders.state`). On the gather path a dataset
that is read through the hot cache (`Dataset.cached`) is told of what comes next (`loaders.plan`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Sampler

from loaders.batch import Transform, gatherer, maker
from loaders.epoch import EpochIterator, LoaderStats, Position, Progress
from loaders.faults import MASK, POLICIES, OnFault, Policy
from loaders.order import SEED_MAX, BoundOrder, EpochOrder, FullOrder, OrderStrategy
from loaders.pipeline import Collate, Recipe, made_here
from loaders.plan import Pass, Planner
from loaders.rows import RowsMaker
from loaders.share import Share, find_rank, row_windows, steps_of
from loaders.source import Source, has_source, source_of
from loaders.state import LoaderState, LoaderStateError
from loaders.step import Step
from loaders.threads import ThreadedBatches
from loaders.transforms.program import Program, compile_chain
from loaders.worker import Maker
from loaders.workers import WorkerBatches, WorkerPool

Path = Literal["torch", "rows", "gather"]
WorkerMode = Literal["thread", "process"]


class DataLoader(TorchDataLoader[Any]):
    """`torch.utils.data.DataLoader`, with an exact, shared and resumable order for LeptonStore datasets.

    The parameters of torch keep their names, defaults and meaning. For any dataset that is not LeptonStore's, and with
    a `sampler` or `batch_sampler`, nothing else happens: it is torch's loader, and the parameters below are refused.

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
    transforms         {column: [transform, ...]}: what is done with each value of a column (`loaders.transforms`), before batches.
    collate            {column: function}: makes what stands in the batch of the list of a column's values.
    policy             what becomes of a sample that cannot be read or transformed (`loaders.faults`): "raise"; "skip": zeros,
                       and False in the batch's column `_valid`; "substitute": another row, the same for the same position.
    on_fault           called with (position, row, column, action, reason) for each skip and substitute, as its batch comes.
    arena_bytes_max    bytes that decoded columns may occupy (default: limits.ARENA_BYTES_MAX): in this process, or once for
                       the host when the dataset is read through its hot cache (`dataset.cached(place)`).
    num_workers        n: threads that read and transform ahead (`prefetch_factor` batches each; `timeout` holds).
                       Columns that lie decoded in memory and have no transform are gathered in the caller's thread,
                       which is faster. 0: everything in the caller's thread, when a batch is asked for.
    worker_mode        "process": worker processes instead of threads, for Python code that holds the GIL, or that draws from the
                       global generators (they are seeded there for each sample). A `worker_init_fn` or a `collate_fn` means it
                       too. Workers that die are restarted, and their batches made again. `persistent_workers` and
                       `multiprocessing_context` (fork, spawn, forkserver) are as in torch.
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
        seed: int = 0,
        order: OrderStrategy | None = None,
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
        worker_mode: WorkerMode | None = None,
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
        self.transforms = None if transforms is None else dict(transforms)
        self.collate = None if collate is None else dict(collate)
        self.policy, self.on_fault = policy, on_fault
        self.worker_mode = worker_mode
        self.arena_bytes_max = arena_bytes_max
        self.stats = LoaderStats(batches=0, rows=0, wait_s=0.0, faults=0, restarts=0)
        self._progress = Progress()
        self._source: Source | None = None
        self._bound_order: BoundOrder | None = None
        self._planner: Planner | None = None
        self._programs: dict[str, Program] = {}
        self._pool: WorkerPool | None = None  # persistent workers
        self._row_sampler = _RowSampler()
        self._require_extras_fit(batch_size, num_workers, worker_init_fn)
        if path != "torch":
            self._source = source_of(dataset, _wanted(self.columns, self.as_tuple, policy), arena_bytes_max)
            self._programs = _compiled(self._source, self.transforms or {}, self.collate or {})
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
            return super().__iter__()
        began = perf_counter()
        epoch, consumed = self._progress.next
        order = self._epoch_order(epoch)
        share = self._share(order, consumed)
        if self._path == "rows" and self.num_workers == 0:
            self._row_sampler.open(order, share)
            batches: Iterator[Any] = super().__iter__()
        elif self._path == "rows":
            assert self._source is not None and self.collate_fn is not None
            steps = steps_of(epoch, share, row_windows(order, share))
            batches = self._by_processes(RowsMaker(self.dataset, self._source, self.collate_fn, self.seed), steps)
        else:
            next_order = self._epoch_order((epoch + 1) & SEED_MAX)
            batches = self._gathered(epoch, (order, share), (next_order, self._share(next_order)))
        self._progress.open()  # now that nothing can fail: an error above leaves the position where it was
        self.stats["wait_s"] += perf_counter() - began  # filling the arena
        return EpochIterator(batches, share, epoch, self._progress, self.stats)

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
        the same on every rank. Raises LoaderStateError on torch's path.
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
        if self._source is None or self.order is None:
            raise LoaderStateError(
                f"this loader over a {type(self.dataset).__name__} draws from torch's samplers and has no state: "
                "give it a LeptonStore dataset, without sampler, batch_sampler or batch_size=None"
            )
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
        processes = self.num_workers > 0 and (self.worker_mode == "process" or self.worker_init_fn is not None)
        if not (processes and self._start_method() != "fork"):  # forked workers share what is filled here
            source.fill()
        windows = row_windows(*current)
        if source.plans:
            self._planner = self._planner or Planner(source)
            self._planner.open(current, following)
            windows = self._planner.windows(current)
        steps = steps_of(epoch, current[1], windows)
        if processes:
            return self._by_processes(self._recipe(pin=False), steps)
        pin = self.pin_memory and torch.cuda.is_available()
        by_sample = bool(self._programs or self.collate or self.policy != "raise")
        threads = self.num_workers if source.cold or self.transform or by_sample else 0
        if not threads and not by_sample:
            return map(maker(gatherer(source), self.as_tuple, self.transform, pin), steps)
        recipe = self._recipe(pin)
        if not threads:
            return made_here(recipe, steps, self._note_fault)
        ahead = self.prefetch_factor or 1
        depth = threads * ahead
        return ThreadedBatches(
            recipe, steps, threads, depth, ahead, self.timeout, self.in_order, on_fault=self._note_fault
        )

    def _by_processes(self, maker: Maker, steps: Iterator[Step]) -> WorkerBatches:
        pool = self._pool
        if pool is None:
            pool = WorkerPool(
                maker,
                self.num_workers,
                self.prefetch_factor or 1,
                self.multiprocessing_context or multiprocessing.get_context(),
                self.worker_init_fn,
                self.dataset,
                self.policy,
                self.stats,
            )
        if self.persistent_workers:
            self._pool = pool
        pin = self.pin_memory and torch.cuda.is_available()
        return WorkerBatches(
            pool, steps, self.timeout, self.in_order, pin, self.persistent_workers, on_fault=self._note_fault
        )

    def _start_method(self) -> str:
        return str((self.multiprocessing_context or multiprocessing).get_start_method())

    def __getstate__(self) -> dict[str, Any]:
        """Without the worker processes: another process has its own."""
        return {**self.__dict__, "_pool": None}

    def _recipe(self, pin: bool) -> Recipe:
        assert self._source is not None and self._bound_order is not None
        collate = {name: made for name, made in (self.collate or {}).items() if name not in self._programs}
        return Recipe(
            source=self._source,
            order=self._bound_order,
            seed=self.seed,
            programs=self._programs,
            collate=collate,
            as_tuple=self.as_tuple,
            transform=self.transform,
            pin=pin,
            policy=self.policy,
        )

    def _note_fault(self, position: int, row: int, column: str, action: str, reason: str) -> None:
        self.stats["faults"] += 1
        if self.on_fault is not None:
            self.on_fault(position, row, column, action, reason)

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

    def _require_extras_fit(self, batch_size: int | None, num_workers: int, worker_init_fn: object) -> None:
        extras = (
            "order",
            "global_batch_size",
            "rank",
            "world_size",
            "columns",
            "as_tuple",
            "transform",
            "transforms",
            "collate",
            "on_fault",
            "worker_mode",
            "arena_bytes_max",
        )
        given = [name for name in extras if getattr(self, name) is not None] + ["seed"] * (self.seed != 0)
        given += ["policy"] * (self.policy != "raise")
        if self.policy not in POLICIES:
            raise ValueError(f"policy is one of {', '.join(POLICIES)}, not {self.policy!r}")
        if self._path == "torch" and given:
            raise ValueError(
                f"{', '.join(given)}: only for a LeptonStore dataset without sampler, batch_sampler or "
                "batch_size=None, and this loader is torch's own"
            )
        if self.order is not None and self.shuffle:
            raise ValueError("shuffle and order exclude each other: order= says how rows are ordered")
        if self.worker_mode not in (None, "thread", "process"):
            raise ValueError(f"worker_mode is 'thread' or 'process', not {self.worker_mode!r}")
        if self.worker_mode == "process" and not num_workers:
            raise ValueError("worker_mode='process' needs num_workers > 0")
        if self.worker_mode == "thread" and (worker_init_fn is not None or self._path == "rows"):
            raise ValueError("worker_init_fn and collate_fn run in worker processes: leave out worker_mode='thread'")
        of_batches = {"worker_mode", "order", "global_batch_size", "rank", "world_size", "seed"}
        made_here = [name for name in given if name not in of_batches]
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


def _wanted(columns: Sequence[str] | None, as_tuple: Sequence[str] | None, policy: Policy) -> list[str] | None:
    made = (MASK,) if policy == "skip" else ()
    if as_tuple is not None and not set(made) <= set(as_tuple):
        raise ValueError(
            f'policy="skip" marks the rows that count in the column {MASK!r}: name it in as_tuple, and use it'
        )
    wanted = columns if columns is not None else as_tuple
    if wanted is None:
        return None
    for name in as_tuple or ():
        if name not in wanted and name not in made:
            raise ValueError(f"as_tuple names {name!r}, which is not in columns={list(wanted)}")
    return [name for name in dict.fromkeys(wanted) if name not in made]


def _compiled(
    source: Source, transforms: Mapping[str, Sequence[Any]], collate: Mapping[str, Collate]
) -> dict[str, Program]:
    specs = {spec.name: spec for spec in source.columns}
    for what, given in (("transforms", transforms), ("collate", collate)):
        for name in given:
            if name not in specs:
                raise ValueError(f"{what} names {name!r}, which is not loaded; the loader has {', '.join(specs)}")
    return {name: compile_chain(chain, specs[name], collate.get(name)) for name, chain in transforms.items()}
