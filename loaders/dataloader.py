"""`DataLoader`: torch's, and a fast path with an exact order for LeptonStore datasets.

Which of three paths a loader takes is decided once, when it is made:

    torch    any dataset that is not LeptonStore's, and any given `sampler`, `batch_sampler` or `batch_size=None`:
             torch's own loader, with a state (`loaders.plain`). It is never sharded here: with a sampler, the sampler decides.
    rows     a LeptonStore dataset and a `collate_fn`: lists of row dicts, in the order and shares of this module, by
             torch's own loader or by worker processes (`loaders.workers`).
    gather   a LeptonStore dataset: one gather per column and batch; no per-sample Python but that of transforms.

On the last two it is a `loaders.loader.Loader`: ranks share each global batch (`loaders.share`), the order is a pure function
of (seed, epoch, position) (`loaders.order`), and `state_dict` says where the loader stands (`loaders.state`). On the gather path
a dataset that is read through the hot cache (`Dataset.cached`) is told of what comes next (`loaders.plan`).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Sampler

from loaders.batch import gatherer, pinned
from loaders.device import Device, ahead_on, device_of
from loaders.faults import OnFault, Policy
from loaders.loader import Loader, Windows, compiled, wanted
from loaders.mesh import MeshPlace, context_slice, place_on
from loaders.order import EpochOrder, OrderStrategy, Rows
from loaders.orders.limits import Limit
from loaders.pad import VALID
from loaders.pipeline import Collate
from loaders.plain.position import Position
from loaders.row_collate import RowCollate
from loaders.rows import RowsMaker
from loaders.share import Share, row_windows, same_world
from loaders.source import Source, has_source, source_of
from loaders.stages import Batch, Transform, picked
from loaders.stall import StageClock
from loaders.step import Step
from loaders.tuning import Auto, chosen
from loaders.worker import Maker
from loaders.worker_batches import WorkerBatches
from loaders.workers import WorkerPool

Path = Literal["torch", "rows", "gather"]
WorkerMode = Literal["thread", "process"]


class DataLoader(Loader, TorchDataLoader[Any]):
    """`torch.utils.data.DataLoader`, with an exact, shared and resumable order for LeptonStore datasets.

    The parameters of torch keep their names, defaults and meaning. For any dataset that is not LeptonStore's, and with
    a `sampler` or `batch_sampler`, it is torch's loader, batch for batch, and the parameters below are refused (but for columns,
    as_tuple and transform, which make the batches of a LeptonStore dataset with any sampler). It has
    `state_dict` and `load_state_dict` as torchdata's StatefulDataLoader has, and its `snapshot_every_n_steps`: how many
    steps lie at most between two states that worker processes send of a stateful dataset (None: one in each pass).

    On a LeptonStore dataset a batch is a dict {column: tensor} (strings, bytes and other values without a fixed width:
    a list; structs: a dict of fields; `loaders.collate` says more), and

    batch_size         rows per rank, as in torch: the global batch is batch_size x world size.
    global_batch_size  rows of all ranks together, instead of batch_size: the same batches at any world size.
    order              how rows are ordered (`loaders.orders`), instead of `shuffle`.
    limit_batches      n: the first n global batches of each epoch, on every rank. A float in (0, 1]: that share, rounded down.
    overfit_batches    n (or a share): every epoch is the first n global batches of epoch 0, in their order, which `shuffle` and `order`
                       decide as ever. (Lightning takes the first rows of the dataset: where those are all of one class, they
                       say little.)
    seed               decides the order with the epoch; equal on every rank. `generator` has no say in the order.
    rank, world_size   which share of each global batch is read here. Default: torch.distributed when initialised, else
                       RANK and WORLD_SIZE of the environment, else 0 of 1; found anew at each `iter()`.
    columns            names of the columns to read (default: all, or those of `as_tuple`).
    as_tuple           names of columns: a batch is the tuple of them, e.g. ("image", "label"), and not a dict.
    transform          called with each batch; what it returns is the batch. In threads when num_workers > 0.
    transforms         {column: [transform, ...]}: what is done with each value of a column (`loaders.transforms`), before batches.
    collate            {column: function}: makes what stands in the batch of the list of a column's values, transformed: pad, ragged,
                       stack, keep and struct of `loaders.collate`, or any callable.
    policy             what becomes of a sample that cannot be read or transformed (`loaders.faults`): "raise"; "skip": zeros,
                       and False in the batch's column `_valid`; "substitute": another row, the same for the same position.
    on_fault           called with (position, row, column, action, reason) for each skip and substitute, as its batch comes.
    decoded_cache      True: keep what the first, deterministic transforms of a chain make (decode, resize) in the hot cache of the host
                       (`loaders.decoded`), so that the next epoch decodes nothing. For `dataset.cached(place)`; RAM of the pixels.
    arena_bytes_max    bytes that decoded columns may occupy (default: limits.ARENA_BYTES_MAX): in this process, or once for
                       the host when the dataset is read through its hot cache (`dataset.cached(place)`).
    num_workers        n: threads that read and transform ahead (`prefetch_factor` batches each; `timeout` holds).
                       "auto": as many as help, up to the cores, found while it runs (`loaders.tuning`); so are the batches
                       ahead, with "auto" as prefetch_factor too. `prefetching` says what it has come to.
                       Columns that lie decoded in memory and have no transform are gathered in the caller's thread,
                       which is faster. 0: everything in the caller's thread, when a batch is asked for.
    worker_mode        "process": worker processes instead of threads, for Python code that holds the GIL, or that draws from the
                       global generators (they are seeded there for each sample). A `worker_init_fn` or a `collate_fn` means it
                       too. Workers that die are restarted, and their batches made again. `persistent_workers` and
                       `multiprocessing_context` (fork, spawn, forkserver) are as in torch. Under a policy other than "raise", a
                       sample that takes longer than `timeout` is left out.
    prefetch_bytes_max bytes that batches made ahead by threads may occupy (default: tuning.PREFETCH_BYTES_MAX); fewer are made
                       ahead than num_workers x prefetch_factor when they would be more.
    pin_memory         as in torch, when CUDA is available.
    receipts           whether `receipt()` says what was handed out (`loaders.receipt`; 3 us a step). Not with `in_order=False`.
    device             where batches shall lie ("cuda", "mps", ...): the next one is copied while this one is used (`loaders.device`).
    pad                True: batches of one static shape, with the mask "_valid" (`loaders.pad`). A tuple must name it.
    mesh               a torch DeviceMesh: only its data dimensions share global batches, ranks along others get equal batches
                       (`loaders.mesh`). Instead of rank and world_size; batch_size is then per data rank.
    data_dims          names of the mesh's data dimensions. Default: found by their names ("dp", "fsdp", "dp_shard", "data", ...).
    context_dim, sequence_columns
                       the mesh's context-parallel dimension, e.g. "cp", and {column: dimension of its tensor} of the columns of which each
                       rank along it gets its slice, e.g. {"tokens": 1}. A length that does not divide is refused.

    follow             True: each epoch reads the newest version of the branch that the dataset was opened by (a name: of that branch), if
                       it goes on from the one before; `loader.dataset` is what the open epoch reads. Its columns are those that the
                       loader began with (`loaders.follow`).

    A dataset that is read through the hot cache is also planned: `iter()` tells the cache which values this rank reads in this
    epoch and in the next, about 3 us for each, so that what is needed soonest stays. (Not where worker
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
        num_workers: int | Auto = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | Auto | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        snapshot_every_n_steps: int | None = 1,
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
        worker_mode: WorkerMode | None = None,
        decoded_cache: bool = False,
        arena_bytes_max: int | None = None,
        prefetch_bytes_max: int | None = None,
        receipts: bool = True,
        pad: bool = False,
        device: Device = None,
        mesh: Any = None,
        data_dims: Sequence[str] | None = None,
        context_dim: str | None = None,
        sequence_columns: Mapping[str, int] | None = None,
        follow: bool | str = False,
    ) -> None:
        if isinstance(collate_fn, RowCollate):  # of a loader that is rebuilt from its attributes
            collate_fn = None
        own_order = sampler is None and batch_sampler is None and (batch_size, global_batch_size) != (None, None)
        path: Path = "torch"
        if has_source(dataset) and own_order:
            path = "gather" if collate_fn is None else "rows"
        self._path = path
        self.shuffle = bool(shuffle)
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
        self.worker_mode = worker_mode
        self._pool: WorkerPool | None = None  # persistent workers
        self.decoded_cache = decoded_cache
        self.arena_bytes_max = arena_bytes_max
        self.receipts = receipts and in_order
        self.pad = pad
        self.device = device_of(device)
        self.mesh = mesh
        self.data_dims = None if data_dims is None else tuple(data_dims)
        self.context_dim = context_dim
        self.sequence_columns = None if sequence_columns is None else dict(sequence_columns)
        self.prefetch_bytes_max = prefetch_bytes_max
        workers = chosen(num_workers, prefetch_factor, prefetch_bytes_max)
        self.auto_workers, self.auto_prefetch = workers.auto_workers, workers.auto_prefetch
        self.follow = follow
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self._row_sampler = _RowSampler()
        self._start()
        collated = collate_fn is None and (batch_size is not None or batch_sampler is not None)
        self._require_extras_fit(batch_size, num_workers, worker_init_fn, has_source(dataset) and collated)
        self._plain = Position(snapshot_every_n_steps)
        self._place = self._find_place()
        if path != "torch":
            self._open_source(dataset)
            assert self._source is not None
            batch_size = self._rows_per_rank(batch_size)
            shuffle = bool(shuffle) and self._source.rows > 0  # torch's sampler, which is not asked, refuses no rows
        if has_source(dataset) and collated:
            collate_fn = self._row_collate(dataset)
        TorchDataLoader.__init__(
            self,
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            workers.workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=workers.prefetch,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )
        if path != "torch":
            self._epoch_order(0)  # refuses a bad seed or limit here, not at the first batch

    # -- torch's protocol --------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        if self._path != "torch":
            return Loader.__iter__(self)
        return self._plain.iterate(self, super(Loader, self).__iter__)

    def _get_iterator(self) -> Any:
        if self._path != "torch":
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return self._plain.open(self)

    def __len__(self) -> int:
        """Batches of a whole epoch, also where a restored one goes on in its middle."""
        return TorchDataLoader.__len__(self) if self._path == "torch" else Loader.__len__(self)

    def warm(self) -> None:
        """Begin to decode what the first `iter()` would wait for, in a thread; returns at once.

        For a training script: call it before the model is built. Does nothing where no arena is used.
        """
        if self._path == "gather":
            super().warm()

    def batch_at(self, epoch: int, step: int) -> Any:
        """The batch that this rank gets at a step of an epoch, made anew. Raises as `rows_at` does, and as reading does."""
        if self._path != "rows":
            return super().batch_at(epoch, step)
        dataset: Any = self.dataset
        return self.collate_fn(dataset.__getitems__(self.rows_at(epoch, step).tolist()))

    @property
    def _index_sampler(self) -> Any:
        """What torch's iterators draw from: the same hook that torch uses for `sampler` and `batch_sampler`."""
        return self._row_sampler if self._path == "rows" else super()._index_sampler

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` opens `epoch` at its start, or where a state of that very epoch was loaded.

        On torch's path it is handed to the sampler, when that has a `set_epoch`; else it does nothing.
        """
        if self._path != "torch":
            return super().set_epoch(epoch)
        for sampler in (self.sampler, self.batch_sampler):
            hand_over = getattr(sampler, "set_epoch", None)
            if hand_over is not None:
                hand_over(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where training would continue: after the batches handed out so far, or at the start of the next epoch.

        After `break` it is still the position in the epoch that was left; `set_epoch` moves on. On the fast path it is JSON-able,
        below 1 KiB, and the same on every rank and for every framework; on torch's path it is this rank's (`loaders.plain`), and
        JSON-able where the states of its dataset and sampler are.
        """
        return self._plain.state(self) if self._path == "torch" else super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next `iter()` continues at the batch after the state; on the fast path at any world size.

        Raises LoaderStateError, and changes nothing, when the state is of another dataset version, view, seed, order
        or drop_last, or of another format or version of it; on torch's path, of another kind or length of dataset, other
        samplers, another batch size, or (where workers read streams of their own) another number of workers.
        """
        if self._path == "torch":
            return self._plain.load(self, state_dict)
        super().load_state_dict(state_dict)

    def _row_collate(self, dataset: Any) -> RowCollate:
        """What makes this loader's batches of row dicts: on torch's path, and where a framework rebuilds the loader."""
        source, transforms, collate = self._source, self.transforms or {}, self.collate or {}
        if source is None:
            source = source_of(dataset, wanted(self.columns, self.as_tuple, self._masked), self.arena_bytes_max)
        # Programs over the decoded-column cache take what only its source gives.
        whole = self._source is not None and not self.decoded_cache
        programs = self._programs if whole else compiled(source, transforms, collate)
        picks = [] if self.as_tuple is None else [picked(tuple(name for name in self.as_tuple if name != VALID))]
        stages = [*picks, *([] if self.transform is None else [self.transform])]
        return RowCollate(source.columns, programs, collate, stages)

    # -- what torch decides ------------------------------------------------------------------------------------

    def _find_place(self) -> MeshPlace | None:
        if self.mesh is None:
            return None
        return place_on(self.mesh, self.data_dims, self.context_dim)

    def _rank(self) -> tuple[int, int]:
        return super()._rank() if self._place is None else (self._place.rank, self._place.world_size)

    def _world_check(self) -> Callable[[], None] | None:
        if self._place is not None or (self.rank is not None and self.world_size is not None):
            return None
        return same_world()

    @property
    def _in_company(self) -> bool:
        return super()._in_company or self._place is not None  # ranks of other dimensions get the same batches

    def _batches(
        self, epoch: int, order: EpochOrder, share: Share, steps_in: Callable[[Windows], Iterator[Step]]
    ) -> Iterator[Any]:
        if self._path == "gather":
            return super()._batches(epoch, order, share, steps_in)
        if self.num_workers > 0:
            assert self._source is not None and self.collate_fn is not None
            maker = RowsMaker(self.dataset, self._source, self.collate_fn, self.seed)
            return self._feed(self._by_processes(maker, steps_in(row_windows(order, share)), None))
        self._row_sampler.open(lambda: steps_in(row_windows(order, share)))
        return self._feed(TorchDataLoader.__iter__(self))

    @property
    def _in_processes(self) -> bool:
        return self.num_workers > 0 and (self.worker_mode == "process" or self.worker_init_fn is not None)

    @property
    def _reads_here(self) -> bool:
        return not self._in_processes

    def _made(self, source: Source, steps: Iterator[Step], workers: int, note: OnFault | None) -> Iterator[Any]:
        if not (workers and self._in_processes):
            return super()._made(source, steps, workers, note)
        if (self.multiprocessing_context or multiprocessing).get_start_method() == "fork":
            with self.stats.clock.stage("fill"):
                source.fill()  # the workers share it
        # In workers nothing is pinned, and their clocks count for themselves.
        return self._by_processes(dataclasses.replace(self._recipe(source), pin=None, clock=StageClock()), steps, note)

    def _by_processes(self, maker: Maker, steps: Iterator[Step], note: OnFault | None) -> WorkerBatches:
        pool = self._pool
        if pool is not None and not pool.serves(maker):
            pool.close()
            pool = None
        if pool is None:
            pool = WorkerPool(
                maker,
                self.num_workers,
                self.prefetch_factor or 1,
                self.multiprocessing_context or multiprocessing.get_context(),
                self.stats,
                self.policy,
                self.worker_init_fn,
                self.dataset,
            )
        if self.persistent_workers:
            self._pool = pool
        return WorkerBatches(pool, steps, self.timeout, self.in_order, self._pin, self.persistent_workers, note)

    def _gatherer(self, source: Source) -> Callable[[Rows], Batch]:
        return gatherer(source)

    @property
    def _tensor(self) -> Transform:
        return torch.from_numpy

    @property
    def _context(self) -> Transform | None:
        if self._place is None or not self.sequence_columns:
            return None
        return context_slice(self.sequence_columns, self._place)

    @property
    def _pin(self) -> Transform | None:
        # A batch that goes to a device is packed into a pinned slab there.
        return pinned if self.pin_memory and self.device is None and torch.cuda.is_available() else None

    def _feed(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches if self.device is None else ahead_on(self.device, batches, self.stats.clock)

    # -- checking arguments ------------------------------------------------------------------------------------

    def _require_extras_fit(
        self, batch_size: int | None, num_workers: int | Auto, worker_init_fn: object, rows_collated: bool
    ) -> None:
        every = self.snapshot_every_n_steps
        if every is not None and (type(every) is not int or every < 0):
            raise ValueError(f"snapshot_every_n_steps should be a positive integer or None, but got {every!r}")
        given = [name for name in _EXTRAS if getattr(self, name) is not _EXTRAS[name]] + ["seed"] * (self.seed != 0)
        given = [_AS_GIVEN.get(name, name) for name in given]
        if self._path == "torch":
            refused = [name for name in given if not (rows_collated and name in _OF_ROWS)]
            if refused:
                raise ValueError(
                    f"{', '.join(refused)}: only for a LeptonStore dataset without sampler, batch_sampler or "
                    "batch_size=None, and this loader is torch's own (a framework that brings a sampler: Lightning's "
                    "use_distributed_sampler=False and Accelerate without prepare() leave order and shares to the loader)"
                )
        if self.worker_mode not in (None, "thread", "process"):
            raise ValueError(f"worker_mode is 'thread' or 'process', not {self.worker_mode!r}")
        if self.worker_mode == "process" and not num_workers:
            raise ValueError("worker_mode='process' needs num_workers > 0")
        if self.prefetch_bytes_max is not None and (self.worker_mode == "process" or worker_init_fn is not None):
            raise ValueError(
                "prefetch_bytes_max is for threads: worker processes have prefetch_factor batches each, in slabs"
            )
        if self.worker_mode == "thread" and (worker_init_fn is not None or self._path == "rows"):
            raise ValueError("worker_init_fn and collate_fn run in worker processes: leave out worker_mode='thread'")
        made_here = [name for name in given if name not in _OF_THE_ORDER]
        if self._path == "rows" and made_here:
            raise ValueError(f"{', '.join(made_here)} and collate_fn exclude each other: collate_fn makes the batch")
        self._require_sizes_fit(batch_size)
        if self.mesh is None:
            of_mesh = [name for name in ("data_dims", "context_dim", "sequence_columns") if name in given]
            if of_mesh:
                raise ValueError(f"{', '.join(of_mesh)}: only with mesh=")
        elif self.rank is not None or self.world_size is not None:
            raise ValueError("mesh, and rank or world_size, exclude each other: the mesh says which rank this is")
        if (self.context_dim is None) != (self.sequence_columns is None):
            raise ValueError("context_dim= and sequence_columns= belong together: where, and what, to slice")


# Parameters that torch does not have, and what they are when they are not given.
_EXTRAS: dict[str, object] = {
    "order": None,
    "limit_batches": None,
    "overfit_batches": None,
    "global_batch_size": None,
    "rank": None,
    "world_size": None,
    "columns": None,
    "as_tuple": None,
    "transform": None,
    "transforms": None,
    "collate": None,
    "policy": "raise",
    "on_fault": None,
    "worker_mode": None,
    "decoded_cache": False,
    "arena_bytes_max": None,
    "auto_workers": False,
    "auto_prefetch": False,
    "prefetch_bytes_max": None,
    "pad": False,
    "device": None,
    "mesh": None,
    "data_dims": None,
    "context_dim": None,
    "sequence_columns": None,
    "follow": False,
}
# What a RowCollate does of them, whatever the sampler.
_OF_ROWS = ("columns", "as_tuple", "transform", "transforms", "collate", "arena_bytes_max")
_AS_GIVEN = {"auto_workers": 'num_workers="auto"', "auto_prefetch": 'prefetch_factor="auto"'}
_OF_THE_ORDER = (
    "order",
    "limit_batches",
    "overfit_batches",
    "global_batch_size",
    "rank",
    "world_size",
    "seed",
    "worker_mode",
    "device",
    "mesh",
    "data_dims",
    "context_dim",
    "follow",
)


class _RowSampler(Sampler[list[int]]):
    """Row numbers of each batch of the open epoch, for torch's fetchers."""

    def open(self, steps: Callable[[], Iterator[Step]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[list[int]]:
        return (step.rows.tolist() for step in self._steps())
