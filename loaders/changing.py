"""What may change while a loader runs: the weights of a mixture, and the version of a dataset that grows.

Both change the order, and nothing else of a loader knows of it: a change is made between two batches that are handed out, and from there on
the pass, or the next one, is made of another order or another source.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from loaders.epoch import EpochIterator, Progress
from loaders.follow import Follower, agreed, is_dataset, require_kept
from loaders.ledger import Entries
from loaders.order import BoundOrder, OrderStrategy
from loaders.orders.limits import Limit, Limits
from loaders.plan import Planner
from loaders.share import Share
from loaders.source import Source
from loaders.state import LoaderState
from loaders.transforms.program import Program


class Reading(NamedTuple):
    """What a loader reads, and in which order.

    columns:  the source of the dataset's columns, as they are stored.
    source:   where batches are read from: `columns`, or what keeps decoded values of them. `programs` belong to it.
    """

    dataset: Any
    columns: Source
    source: Source
    programs: Mapping[str, Program]
    order: OrderStrategy
    bound: BoundOrder


class Changing:
    """Part of `loaders.loader.Loader`. Used by one thread."""

    dataset: Any
    _strategy: OrderStrategy | None
    seed: int
    num_workers: int
    in_order: bool = True
    follow: bool | str = False
    overfit_batches: Limit = None

    _progress: Progress
    _columns: Source
    _source: Source | None
    _programs: Mapping[str, Program]
    _bound_order: BoundOrder | None
    _planner: Planner | None
    _entries: Entries | None
    _limits: Limits
    _running: weakref.ref[EpochIterator] | None = None  # the newest pass
    _follower: Follower | None = None
    _told_commit: str | None = None  # what the next epoch shall read

    def __getstate__(self) -> dict[str, Any]:
        """With the position, without the passes."""
        return {**self.__dict__, "_running": None, "_entries": None}

    if TYPE_CHECKING:  # of Loader

        def _rank(self) -> tuple[int, int]: ...

        def _compile(self, source: Source) -> tuple[Source, Mapping[str, Program]]: ...

        def _begun(
            self, epoch: int, consumed: int
        ) -> tuple[Iterator[Any], Share, list[tuple[int, int]], Entries | None]: ...

    # -- the weights of a mixture --------------------------------------------------------------------------------------

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Over a `Mixture`: other weights, one for every source, from the next global batch on. Call it on every rank at the same step.

        In a running pass that is the batch after the last one handed out: what was made ahead of it is dropped and made again. The
        change belongs to the order from then on: it stands in states and receipts, and a restored loader makes it at the same sample.
        Where the run was set back, changes made later than where it stands now are taken back.

        Raises ValueError for weights that do not fit, and for a loader that does not read a mixture in its own order.
        """
        change: Callable[..., OrderStrategy] | None = getattr(self._strategy, "changed", None)
        if change is None:
            raise ValueError("set_weights: only for a loader over a Mixture, in the order of the mixture")
        if self.overfit_batches is not None:
            raise ValueError("set_weights: with overfit_batches every epoch has the first batches of epoch 0")
        now = self._reading()
        running = None if self._running is None else self._running()
        if running is not None and not running.running:
            running = None
        if running is not None and self.num_workers and not self.in_order:
            raise ValueError(
                "set_weights: with in_order=False, what was handed out is no position: set them between epochs"
            )
        position = self._progress.position
        order = change(position.epoch, position.consumed, weights)
        bound = order.bind(now.columns)
        bound.epoch(self.seed, position.epoch)  # refuses here what cannot be, before anything changes
        self._strategy, self._bound_order = order, bound
        if running is not None:
            running.close()
            running.go_on_with(*self._begun(*position))

    # -- a dataset that grows ------------------------------------------------------------------------------------------

    def newest(self) -> str:
        """The commit that the next epoch would read (`follow`). Raises ValueError without `follow`, else as `iter()`."""
        return self._following().newest(self.dataset)

    def follow_to(self, commit: str) -> None:
        """The next epoch reads this commit, which goes on from the one last read: for several ranks without torch.distributed, each
        of which has to be told the same (what `newest()` says on one of them). Raises ValueError without `follow`."""
        self._following()
        self._told_commit = commit

    def _following(self) -> Follower:
        if self._follower is None:
            raise ValueError("this loader reads one version of its dataset: make it with follow=True")
        return self._follower

    @property
    def _in_company(self) -> bool:
        """Whether other processes have to read the same version."""
        return self._rank()[1] > 1

    def _read_newest(self) -> None:
        """An epoch begins: the newest version, where that is asked for."""
        follower, dataset, commit = self._follower, self.dataset, self._told_commit
        if follower is None:
            return
        if commit is None and self._in_company:
            commit = agreed(lambda: follower.newest(dataset))
            if commit is None:
                raise ValueError(
                    "follow: several ranks have to read the same version, and torch.distributed is not initialised to agree on it: "
                    "call follow_to(commit) on every rank before each epoch, with what newest() says on one of them"
                )
        commit = commit or follower.newest(dataset)
        now = self._reading()
        if commit != now.source.commit:
            self._read_on(self._at(follower.version(dataset, commit), now.order))
        self._told_commit = None

    # -- both ----------------------------------------------------------------------------------------------------------

    def _reading(self) -> Reading:
        assert self._source is not None and self._strategy is not None and self._bound_order is not None
        return Reading(self.dataset, self._columns, self._source, self._programs, self._strategy, self._bound_order)

    def _at(self, dataset: Any, order: OrderStrategy) -> Reading:
        """The columns of this loader in another version of its dataset."""
        of_version: Callable[[Any], Source] = getattr(self._columns, "of_version")  # noqa: B009  (only what is followed has it)
        columns = of_version(dataset)
        source, programs = self._compile(columns)
        return Reading(dataset, columns, source, programs, order, order.bind(columns))

    def _read_on(self, reading: Reading) -> None:
        """From the next pass on, this version in this order."""
        if reading.source is not self._source:
            self._planner = None  # it is of one source
        vars(self)["dataset"] = reading.dataset  # torch's loader has it frozen
        self._columns, self._source, self._programs = reading.columns, reading.source, reading.programs
        self._strategy, self._bound_order = reading.order, reading.bound
        self._told_commit = None

    def _reading_of(self, saved: LoaderState) -> Reading:
        """What has to be read to continue from a state: its version, where one is followed, and its changes of weights.

        What else differs is left to the comparison of states. Raises LoaderStateError.
        """
        now = self._reading()
        order, source = now.order, now.source
        restored: Callable[[Mapping[str, Any]], OrderStrategy] | None = getattr(order, "restored", None)
        if restored is not None:
            order = restored(self._limits.inner(saved.order))
        if saved.dataset == source.name and saved.commit != source.commit and is_dataset(now.dataset):
            if self._follower is not None:
                return self._at(self._follower.restored(now.dataset, saved), order)
            require_kept(now.dataset, saved)  # says so when the version is gone
        return now if order is now.order else now._replace(order=order, bound=order.bind(now.columns))
