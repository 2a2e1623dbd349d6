"""`Loader`: what every loader of LeptonStore data is, whatever framework its batches are for. Needs numpy only.

    order -> shares -> steps -> (padding) -> batches -> feed          loaders.order, share, step, pad, stages
      \\_ epochs, position, state                                      loaders.epoch, state

`loaders.DataLoader` (torch), `loaders.NumpyLoader` and `loaders.jax.JaxLoader` are Loaders: they say who this rank is, how rows
become arrays, and where a finished batch goes. Order, shares, epochs, states are those of this class, so they are equal in all.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from loaders.batched import column_batched
from loaders.changing import Changing, Reading
from loaders.decoded import DecodedColumns
from loaders.epoch import EpochIterator, Position, Progress
from loaders.faults import POLICIES, OnFault, Policy
from loaders.follow import Follower
from loaders.grouped import group_size, in_groups
from loaders.ledger import Entries, Ledger
from loaders.order import SEED_MAX, BoundOrder, EpochOrder, FullOrder, OrderStrategy, Rows
from loaders.orders.limits import Limit, Limits
from loaders.pad import VALID, padded, padded_rows, valid_rows
from loaders.pipeline import Collate, Recipe, made_here
from loaders.plan import PLAN_KEYS_MAX, Planner
from loaders.receipt import Origin, Receipt
from loaders.share import Share, find_rank, row_windows, steps_of
from loaders.skips import Skip, Skips, gaps_of, without
from loaders.source import Source, source_of
from loaders.stages import Batch, Transform, maker, picked
from loaders.stall import LoaderStats, telling, timed
from loaders.state import LoaderState, LoaderStateError
from loaders.step import Step
from loaders.threads import ThreadedBatches
from loaders.transforms.program import Program, compile_chain
from loaders.tuning import Tuner
from loaders.window_reader import read_ahead

FLIGHT_STEPS = 4  # read together at most, when nobody names a prefetch_factor
Windows: TypeAlias = Iterator[tuple[Rows, list[int]]]


class Loader(Changing):
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
    transforms: Mapping[str, Sequence[Any]] | None = None
    collate: Mapping[str, Collate] | None = None
    policy: Policy = "raise"
    on_fault: OnFault | None = None
    decoded_cache: bool = False
    in_order: bool = True
    auto_workers: bool = False
    auto_prefetch: bool = False
    prefetch_bytes_max: int | None = None
    pad: bool
    arena_bytes_max: int | None
    limit_batches: Limit = None
    overfit_batches: Limit = None
    receipts: bool = True
    follow: bool | str = False

    _source: Source | None = None
    _entries: Entries | None = None  # of the pass that began last
    _strategy: OrderStrategy | None = None  # `order`, or what holds when it is not given
    _bound_order: BoundOrder | None = None
    _planner: Planner | None = None
    _tuner: Tuner | None = None

    def _open_source(self, dataset: Any) -> None:
        """The data and its order. Raises ValueError for a column that does not exist, a bad seed, columns that do not fit together."""
        if self.policy not in POLICIES:
            raise ValueError(f"policy is one of {', '.join(POLICIES)}, not {self.policy!r}")
        columns = source_of(dataset, wanted(self.columns, self.as_tuple, self._masked), self.arena_bytes_max)
        if self._masked and any(spec.name == VALID for spec in columns.columns):
            raise ValueError(f"the dataset has a column {VALID!r}, which is the mask of {self._masked}: rename it")
        self._columns = columns
        self._source, self._programs = self._compile(columns)
        own = getattr(dataset, "__lepton_order__", None)
        self._strategy = self.order or (FullOrder(self.shuffle) if own is None else own())
        self._bound_order = self._strategy.bind(columns)
        self._limits = Limits(self.limit_batches, self.overfit_batches)
        if self.follow:
            self._follower = Follower(dataset, self.follow)

    def _compile(self, columns: Source) -> tuple[Source, Mapping[str, Program]]:
        """What batches are read from (some columns may lie decoded in the hot cache), and the programs of columns with a chain."""
        transforms, collate = self.transforms or {}, self.collate or {}
        if not self.decoded_cache:
            return columns, compiled(columns, transforms, collate)
        require_loaded(columns, transforms, collate)
        decoded = DecodedColumns(columns, transforms, collate)
        return decoded.of(columns), decoded.programs

    # -- what a framework decides --------------------------------------------------------------------------------------

    def _rank(self) -> tuple[int, int]:
        """(rank, world size) of this process among those that share global batches; asked anew at each `iter()`."""
        return find_rank(self.rank, self.world_size)

    def _world_check(self) -> Callable[[], None] | None:
        """What is called before each step of a pass, and raises when who shares the batches has changed since it began."""
        return None

    @property
    def _masked(self) -> str:
        """What gives batches the column "_valid"; "" when nothing does."""
        return "pad mode" if self.pad else 'policy="skip"' if self.policy == "skip" else ""

    def _gatherer(self, source: Source) -> Callable[[Rows], Batch]:
        """How rows become the columns of a batch; the source is filled."""
        if all(spec.fixed for spec in source.columns):
            return source.gather
        tensor, name = self._tensor, source.name
        return lambda rows: {
            column: column_batched(values, tensor, name, rows, column) for column, values in source.gather(rows).items()
        }

    @property
    def _tensor(self) -> Transform:
        """What makes of a numpy array what stands in a batch."""
        return np.asarray

    @property
    def _context(self) -> Transform | None:
        """The slice of a context-parallel rank."""
        return None

    @property
    def _pin(self) -> Transform | None:
        """The last stage of a batch."""
        return None

    @property
    def _reads_here(self) -> bool:
        """Whether this process reads the batches: only then does it fill the source, and plan for the hot cache."""
        return True

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
        if consumed == 0:
            self._read_newest()
        batches, share, gaps, entries = self._begun(epoch, consumed)
        self._progress.open()  # now that nothing can fail: an error above leaves the position where it was
        took = perf_counter() - began  # filling the arena
        self.stats["wait_s"] += took
        self.stats["open_s"] += took
        running = EpochIterator(
            batches, share, epoch, self._progress, self.stats, gaps, entries, self._row_bytes, self._world_check()
        )
        self._running = weakref.ref(running)
        return running

    def _begun(self, epoch: int, consumed: int) -> tuple[Iterator[Any], Share, list[tuple[int, int]], Entries | None]:
        """A pass from a position on: its batches, this rank's share, the steps that are left out, its place in the ledger."""
        order = self._epoch_order(epoch)
        share = self._share(order, consumed)
        gaps = gaps_of(share, epoch, self._skips.ranges(share.global_batch))
        entries = self._ledger.enter(self._origin(), epoch, order, share, gaps) if self.receipts else None

        def steps(windows: Windows) -> Iterator[Step]:
            taken = without(steps_of(epoch, share, timed(windows, "order", self.stats.clock)), gaps)
            return taken if entries is None else entries.watch(taken)

        self._entries = entries
        return self._batches(epoch, order, share, steps), share, gaps, entries

    def __len__(self) -> int:
        """Batches of a whole epoch, also where a restored one goes on in its middle; with `follow`, of the version last read."""
        epoch = self._progress.next.epoch
        order = self._epoch_order(epoch)
        share = self._share(order)
        return share.steps - sum(stop - first for first, stop in gaps_of(share, epoch, self._skip_ranges(order)))

    # -- any batch again -----------------------------------------------------------------------------------------------

    def rows_at(self, epoch: int, step: int, all_ranks: bool = False) -> Rows:
        """The rows (int64) of this rank's batch at a step of an epoch, or of the global batch. Steps are counted from the epoch's start.

        Nothing is read, and the loader stays where it is. Any epoch, any step: a number, not a replay. Raises IndexError for
        a step that the epoch does not have, LoaderStateError on torch's path.
        """
        order, share = self._pass_at(epoch, step)
        return order.rows_at(*(share.batch_positions(step) if all_ranks else share.positions(step)))

    def batch_at(self, epoch: int, step: int) -> Any:
        """The batch that this rank gets at a step of an epoch, made anew. Raises as `rows_at` does, and as reading does."""
        order, share = self._pass_at(epoch, step)
        start, stop = share.positions(step)
        source = self._source
        assert source is not None
        source.fill()
        steps = self._in_shape(iter([Step(epoch, start, order.rows_at(start, stop))]), order, share)
        return next(self._feed(self._made(source, steps, 0, None)))

    def _pass_at(self, epoch: int, step: int) -> tuple[EpochOrder, Share]:
        self._require_own_order()
        order = self._epoch_order(epoch)
        share = self._share(order)
        if not 0 <= step < share.steps:
            raise IndexError(f"step {step} is not in epoch {epoch}, which has {share.steps} steps")
        return order, share

    def warm(self) -> None:
        """Begin to decode what the first `iter()` would wait for, in a thread; returns at once.

        For a training script: call it before the model is built. Does nothing where no arena is used.
        """
        if self._source is not None:
            self._source.fill_ahead()

    def _batches(
        self, epoch: int, order: EpochOrder, share: Share, steps_in: Callable[[Windows], Iterator[Step]]
    ) -> Iterator[Any]:
        """The batches of one pass, one for each of the steps that `steps_in` makes of windows of rows."""
        source, clock = self._source, self.stats.clock
        assert source is not None
        if self._reads_here:
            with clock.stage("fill"):
                source.fill()
        windows = row_windows(order, share)
        if source.plans and self._reads_here:
            self._planner = self._planner or Planner(source, getattr(source, "plan_keys_max", None) or PLAN_KEYS_MAX)
            following = self._epoch_order((epoch + 1) & SEED_MAX)
            self._planner.open((order, share), (following, self._share(following)))
            windows = self._planner.windows((order, share))
        steps = steps_in(windows)
        if self._reads_here:
            steps = read_ahead(source, order, share, steps, self.num_workers > 0)
        steps = self._in_shape(steps, order, share)
        note = functools.partial(self._note_fault, self._entries)
        made = self._made(source, steps, self.num_workers, note)
        teller = source.teller() if self._reads_here and hasattr(source, "teller") else None
        return self._feed(made if teller is None else telling(made, self.stats, epoch, teller))

    def _in_shape(self, steps: Iterator[Step], order: EpochOrder, share: Share) -> Iterator[Step]:
        if not self.pad:
            return steps
        return padded(steps, order, padded_rows(share.global_batch, share.world_size, self._rows_multiple))

    def _made(self, source: Source, steps: Iterator[Step], workers: int, note: OnFault | None) -> Iterator[Any]:
        """The batches of `steps`, the quickest way."""
        by_sample = bool(self._programs or self.collate or self.policy != "raise")
        threads = workers if source.cold or self.transform or by_sample else 0
        if not threads and not by_sample:
            picks = None if self.as_tuple is None else picked(self.as_tuple)
            timed_stages = [
                ("transform", self._context),
                ("collate", picks),
                ("transform", self.transform),
                ("pin", self._pin),
            ]
            clock = self.stats.clock
            stages = [clock.around(name, stage) for name, stage in timed_stages if stage is not None]
            gather = clock.around("fetch" if source.cold else "gather", self._gatherer(source))
            made = map(maker(gather, stages, self._valid if self.pad else None), steps)
            # A batch transform of the user's is called when its batch is asked for, and not before.
            size = 1 if source.cold or self.transform else group_size(self._batch_bytes)
            return made if size == 1 else in_groups(made, size)
        recipe = self._recipe(source)
        if not threads:
            return made_here(recipe, steps, note)
        if self._tuner is None:
            self._tuner = self._new_tuner(threads)
        ahead = FLIGHT_STEPS if self.auto_prefetch else self.prefetch_factor or 1
        return ThreadedBatches(recipe, steps, self._tuner, ahead, self.timeout, self.in_order, on_fault=note)

    def _new_tuner(self, threads: int) -> Tuner:
        """Kept from pass to pass: the next one begins with what was found to be good."""
        depth = threads * (self.prefetch_factor or 1)
        return Tuner(
            threads,
            self.prefetch_bytes_max,
            None if self.auto_workers else threads,
            None if self.auto_prefetch else depth,
        )

    @property
    def prefetching(self) -> tuple[int, int]:
        """(threads, batches ahead) of the pass that began last, or of the next: what "auto" has come to."""
        tuner = self._tuner or self._new_tuner(max(self.num_workers, 1))
        return (tuner.threads, tuner.depth) if self.num_workers else (0, 0)

    def _valid(self, step: Step) -> Any:
        return self._tensor(valid_rows(step))

    def _recipe(self, source: Source) -> Recipe:
        assert self._bound_order is not None
        collate = {name: made for name, made in (self.collate or {}).items() if name not in self._programs}
        return Recipe(
            source=source,
            order=self._bound_order,
            seed=self.seed,
            programs=self._programs,
            collate=collate,
            as_tuple=self.as_tuple,
            transform=self.transform,
            tensor=self._tensor,
            padded=self.pad,
            context=self._context,
            pin=self._pin,
            policy=self.policy,
            clock=self.stats.clock,
        )

    def _note_fault(
        self, entries: Entries | None, position: int, row: int, column: str, action: str, reason: str
    ) -> None:
        self.stats["faults"] += 1
        if entries is not None:
            entries.note(position, row, column, action, reason)
        if self.on_fault is not None:
            self.on_fault(position, row, column, action, reason)

    def _epoch_order(self, epoch: int) -> EpochOrder:
        """What an epoch consists of, within the limits that were asked for."""
        assert self._bound_order is not None
        return self._limits.epoch(self._bound_order, self.seed, epoch, self._share)

    def _share(self, order: EpochOrder, consumed: int = 0) -> Share:
        assert self.batch_size is not None
        rank, world_size = self._rank()
        global_batch = self.global_batch_size or self.batch_size * world_size
        return Share(order.length, global_batch, rank, world_size, self.drop_last, consumed)

    # -- epochs and state ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.stats = LoaderStats()
        self._progress = Progress()
        self._ledger = Ledger()
        self._skips = Skips()

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
        the same on every rank and for every framework. Raises LoaderStateError in mid-epoch where batches come out of order: what was
        handed out is then no position.
        """
        current = self._progress.current
        if not self.in_order and self.num_workers and current is not None and current.consumed:
            raise LoaderStateError(
                "with in_order=False, what was handed out of an epoch is no position in it, and this epoch is not over: "
                "take the state between epochs, or make the loader with in_order=True"
            )
        return self._state(self._progress.position).to_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next `iter()` continues at the batch after the state, at any world size.

        With `follow` a state of an earlier version of the branch is taken, too: the rest of its epoch comes from that version.

        Raises LoaderStateError, and changes nothing, when the state is of another dataset version, view, seed, order
        or drop_last, or of another format or version of it.
        """
        self._require_own_order()
        saved = LoaderState.from_dict(state_dict)
        position, reading = Position(saved.epoch, saved.consumed), self._reading_of(saved)
        saved.require_same_order(self._state_at(position, reading))
        try:
            self._skips.add([(epoch, start, stop) for epoch, start, stop in saved.skips])
        except ValueError as error:
            raise LoaderStateError(str(error)) from None
        self._read_on(reading)
        told = saved.receipt
        self._ledger = Ledger(bytes.fromhex(told["head"]), told["steps"]) if told else Ledger()
        self._progress.restore(position)

    def _require_own_order(self) -> None:
        if self._source is None:
            raise LoaderStateError(
                f"this loader over a {type(self.dataset).__name__} draws from torch's samplers and has no state: "
                "give it a LeptonStore dataset, without sampler, batch_sampler or batch_size=None"
            )

    def _state(self, position: Position) -> LoaderState:
        self._require_own_order()
        return self._state_at(position, self._reading())

    def _state_at(self, position: Position, reading: Reading) -> LoaderState:
        source, epoch_order = reading.source, self._limits.epoch(reading.bound, self.seed, position.epoch, self._share)
        return LoaderState(
            dataset=source.name,
            commit=source.commit,
            fingerprint=source.fingerprint,
            length=epoch_order.length,
            seed=self.seed,
            epoch=position.epoch,
            consumed=position.consumed,
            global_batch=self._share(epoch_order).global_batch,
            order=self._limits.spec(reading.order.spec()),
            drop_last=self.drop_last,
            receipt={"head": self._ledger.head.hex(), "steps": self._ledger.steps} if self.receipts else {},
            skips=[list(skip) for skip in self._skip_ranges(epoch_order) if skip[0] >= position.epoch],
        )

    # -- receipts ------------------------------------------------------------------------------------------------------

    def receipt(self) -> Receipt:
        """What was handed out since this loader was made, or restored (loaders.receipt). The same on every rank, but for its notes.

        Raises LoaderStateError on torch's path, with `receipts=False` and with `in_order=False`.
        """
        if self._source is None or not self.receipts:
            raise LoaderStateError(
                "this loader keeps no receipt: that takes a LeptonStore dataset, without sampler, batch_sampler or "
                "batch_size=None, receipts=True and in_order=True"
            )
        return self._ledger.receipt(self._skip_ranges(self._epoch_order(self._progress.position.epoch)))

    def skip(self, epoch: int, first: int, stop: int) -> None:
        """Leave steps [first, stop) of an epoch out, counted from the epoch's start: they made the loss jump, say.

        Holds from the next `iter()` on, is kept in states (of that epoch and those before it), and stands in the receipt. To be
        called on every rank. Raises ValueError for no such range, or too many; LoaderStateError on torch's path.
        """
        self._require_own_order()
        self._skips.ask(epoch, first, stop)

    def _skip_ranges(self, order: EpochOrder) -> list[Skip]:
        return self._skips.ranges(self._share(order).global_batch)

    def _origin(self) -> Origin:
        source = self._source
        assert source is not None and self._strategy is not None
        order = self._limits.spec(self._strategy.spec())
        return Origin(source.name, source.commit, source.fingerprint, source.rows, self.seed, order)

    @property
    def _row_bytes(self) -> int:
        """Of the columns with a fixed width."""
        assert self._source is not None
        return sum(spec.row_bytes for spec in self._source.columns if spec.fixed)

    @property
    def _batch_bytes(self) -> int:
        """Of those columns, in a batch of this rank."""
        return self._row_bytes * (self._rows_per_rank(self.batch_size) or 1)

    # -- checking arguments --------------------------------------------------------------------------------------------

    def _rows_per_rank(self, batch_size: int | None) -> int | None:
        """What the attribute `batch_size` says: the most rows that a batch of this rank can have."""
        if self.global_batch_size is None:
            return batch_size
        return -(-self.global_batch_size // self._rank()[1])

    def _require_sizes_fit(self, batch_size: int | None) -> None:
        if self.order is not None and (isinstance(self.order, type) or not hasattr(self.order, "bind")):
            raise ValueError(
                f"order must be an order strategy, such as loaders.orders.BlockShuffle(), not {self.order!r}"
            )
        if self.order is not None and self.shuffle:
            raise ValueError("shuffle and order exclude each other: order= says how rows are ordered")
        if self.global_batch_size is None:
            return
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size should be a positive integer value, but got {self.global_batch_size}")
        if batch_size not in (1, None):
            raise ValueError("batch_size (rows per rank) and global_batch_size (rows of all ranks) exclude each other")


def require_loaded(source: Source, transforms: Mapping[str, Sequence[Any]], collate: Mapping[str, Collate]) -> None:
    """Raise ValueError for a column that is named and not loaded."""
    names = [spec.name for spec in source.columns]
    for what, given in (("transforms", transforms), ("collate", collate)):
        for name in given:
            if name not in names:
                raise ValueError(f"{what} names {name!r}, which is not loaded; the loader has {', '.join(names)}")


def compiled(
    source: Source, transforms: Mapping[str, Sequence[Any]], collate: Mapping[str, Collate]
) -> dict[str, Program]:
    """The programs of the columns that have a chain. Raises ValueError for columns that are not loaded."""
    require_loaded(source, transforms, collate)
    specs = {spec.name: spec for spec in source.columns}
    return {name: compile_chain(chain, specs[name], collate.get(name)) for name, chain in transforms.items()}


def wanted(columns: Sequence[str] | None, as_tuple: Sequence[str] | None, masked: str) -> list[str] | None:
    """The columns to read; None for all. masked: what gives batches a column "_valid"."""
    if masked and as_tuple is not None and VALID not in as_tuple:
        raise ValueError(
            f"as_tuple={tuple(as_tuple)} leaves out {VALID!r}, which says which rows of a batch count: "
            f"add it (as a sample weight, for instance), or do without {masked}"
        )
    named = [name for name in as_tuple or () if not (masked and name == VALID)]
    if columns is None:
        return None if as_tuple is None else list(dict.fromkeys(named))
    for name in named:
        if name not in columns:
            raise ValueError(f"as_tuple names {name!r}, which is not in columns={list(columns)}")
    return list(dict.fromkeys(columns))
