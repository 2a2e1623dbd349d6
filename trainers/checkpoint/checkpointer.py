"""Checkpointer: saves states of one run, at once or in the background, from any number of ranks, as one commit each.

    save   describe what each rank holds -> plan (the same on all ranks, kept until that changes) -> stage
    then   exchange what crosses ranks -> each rank puts its cells and flushes -> rank 0 publishes one commit -> retention

asynchronous: `save` returns when everything is staged; what follows runs in a thread, over a gloo group of its own. One save is in
flight: the next one waits for it. An error of it is raised by the next `save` or `wait`.

Atomic: the commit is published when every rank's cells are durable, in one log entry. A rank or a host that dies before, a disk that
fills: the run has the checkpoints that it had; what was written is garbage that gc removes. A failure of one rank is an error on all.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from leptonstore import errors
from leptonstore.dataset import StoredValue, write_files
from leptonstore.digest import DIGEST_BYTES, Digest
from leptonstore.errors import BadInput, LeptonError
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.store import Store
from trainers.checkpoint.layout import held_from_json, held_to_json
from trainers.checkpoint.leaves import Flat, State, flatten
from trainers.checkpoint.manifest import LAYOUT, cell_path, encode_layout, lineage_of
from trainers.checkpoint.plan import Plan, make_plan
from trainers.checkpoint.put import put_cells
from trainers.checkpoint.ranks import Ranks
from trainers.checkpoint.retention import Retention, apply_retention
from trainers.checkpoint.saved import branch_of
from trainers.checkpoint.staging import Buffer, Staged, stage

# Of a save in the background: the other cores compute.
BACKGROUND_THREADS = 1
FOREGROUND_THREADS = 8  # at most


class RankOf(Protocol):
    """What is asked of a World (trainers/parallel.py)."""

    @property
    def rank(self) -> int:
        """From 0 on."""

    @property
    def size(self) -> int:
        """How many ranks."""


class Checkpointer:
    """Made, used and closed by every rank (each of them a collective), by one thread of it.

    store: each rank's own Store object, all of the same store. run: its name; checkpoints are the refs checkpoint/<run>/step-<9 digits>.
    world: the ranks; None: this process alone, without torch.distributed. retention: applied after each save; None keeps all.
    Closed with the process group that it was made in still there.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        world: RankOf | None = None,
        retention: Retention | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.store, self.run, self.retention, self.asynchronous = store, run, retention, asynchronous
        self._ranks = world if isinstance(world, Ranks) else Ranks() if world is None else Ranks(world.rank, world.size)
        if asynchronous and not self._ranks.background:
            raise BadInput("these ranks cannot save in the background: their messages go the way of the training's own")
        self._plan: tuple[bytes, Plan] | None = None  # with what this rank told, when it was made
        self._buffer = Buffer()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last: tuple[int, str] | None = None

    def save(
        self, step: int, state: State, manifest: Mapping[str, Any], metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Save `state` as the checkpoint of `step`. Asynchronous: returns when the state may change; else when it is durable.

        manifest: JSON; kept in the commit's lineage, with "run", "step" and the state's scalars. metrics: beside the commit, in the log.
        Of both, and of the scalars, those of rank 0 count.
        Raises BadInput (a state that cannot be saved), StoreFull, or what the last save in the background met.
        """
        self.wait()
        flat, plan = self._described(state)
        staged = stage(
            plan, flat.leaves, self._ranks.rank, self._ranks.size, self._buffer, in_place=not self.asynchronous
        )
        lineage = lineage_of({**manifest, "run": self.run, "step": step, "scalars": flat.scalars})
        canonical_json(lineage)  # says now, and not in the background, what cannot be kept
        told = dict(metrics or {})
        if not self.asynchronous:
            self._last = step, self._write(step, plan, staged, lineage, told)
            return
        lineage = parse_json(canonical_json(lineage), "lineage")  # a copy: the caller's lists go on growing

        def work() -> None:
            try:
                self._last = step, self._write(step, plan, staged, lineage, told)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="lepton-checkpoint")
        self._thread.start()

    def wait(self) -> tuple[int, str] | None:
        """(step, commit) of the last save, which is durable now; None before the first. Raises what a save in the background met."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._last

    @property
    def saving(self) -> bool:
        """Whether a save is going on in the background."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Wait for what is in flight, and leave the group. Raises what that save met."""
        try:
            self.wait()
        finally:
            self._ranks.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # what ended the run says why
            self.close()

    # -- one save ------------------------------------------------------------------------------------------------

    def _described(self, state: State) -> tuple[Flat, Plan]:
        """The state, flat, and the plan for what the ranks hold of it. One small message where nothing changed since the last one."""
        flat: Flat | None = None
        mine = b""

        def describe() -> bytes:
            nonlocal flat, mine
            flat = flatten(state)
            mine = canonical_json(held_to_json({path: leaf.held for path, leaf in flat.leaves.items()}))
            return b"same" if self._plan is not None and self._plan[0] == mine else b"new"

        known = all(one == b"same" for one in self._together(describe))
        assert flat is not None
        if self._plan is None or not known:
            told = self._ranks.gather(mine)
            plan = make_plan(
                [held_from_json(parse_json(one, f"rank {at}"), f"rank {at}") for at, one in enumerate(told)]
            )
            self._plan = mine, plan
        return flat, self._plan[1]

    def _write(self, step: int, plan: Plan, staged: Staged, lineage: dict[str, Any], metrics: dict[str, Any]) -> str:
        """Everything after staging; the commit (hex), on every rank."""
        staged.exchange(self._ranks)
        digests = self._together(lambda: self._put(staged))
        commit = self._together(lambda: self._publish(step, plan, digests, lineage, metrics))[0].decode()
        self.store.hand_over()
        return commit

    def _put(self, staged: Staged) -> bytes:
        """This rank's cells, durable where another rank publishes; their digests."""
        # Before anything is looked up: what garbage collection condemned until rank 0 opened its store must be known here, too.
        self.store.refresh()
        cores = len(os.sched_getaffinity(0))
        threads = BACKGROUND_THREADS if self.asynchronous else min(FOREGROUND_THREADS, cores)
        digests = put_cells(self.store, staged.own, threads)
        if self._ranks.rank != 0:
            self.store.flush()
        return b"".join(digests)

    def _publish(
        self, step: int, plan: Plan, digests: list[bytes], lineage: dict[str, Any], metrics: dict[str, Any]
    ) -> bytes:
        if self._ranks.rank != 0:
            return b""
        commit = publish(self.store, self.run, branch_of(step), plan, digests, lineage, metrics)
        if self.retention is not None:
            apply_retention(self.store, self.run, self.retention)
        return commit.encode()

    def _together(self, work: Callable[[], bytes]) -> list[bytes]:
        """What `work` gives on each rank; where it fails on one, all raise."""
        failure: BaseException | None = None
        told = b"="
        try:
            told += work()
        except Exception as error:
            failure = error
            told = canonical_json([type(error).__name__, str(error)[:2_000]])
        results = self._ranks.gather(told)
        if failure is not None:
            raise failure
        for rank, result in enumerate(results):
            if result[:1] != b"=":
                raise _failure_of(rank, result)
        return [result[1:] for result in results]


def publish(
    store: Store,
    run: str,
    branch: str,
    plan: Plan,
    digests: list[bytes],
    lineage: dict[str, Any],
    metrics: dict[str, Any],
) -> str:
    """One commit of cells that are durable (those of other ranks) or put by `store`; its digest (hex).

    digests: of each rank its cells' digests, in the order of the plan, one after another.
    """
    step = lineage["step"]
    found = [iter(split_digests(one)) for one in digests]
    files: list[tuple[str, bytes | StoredValue]] = [(LAYOUT, encode_layout(plan.tensors))]
    for cell in plan.cells:
        length = (cell.stop - cell.start) * plan.tensors[cell.path].item_bytes
        files.append((cell_path(cell.path, cell.number), StoredValue(next(found[cell.owner]), length)))
    table = write_files(store, "checkpoint", run, files, lineage, f"step {step}", branch, metrics, apart=True)
    return table.commit


def split_digests(data: bytes) -> list[Digest]:
    """Digests that were told one after another. Raises BadInput."""
    if len(data) % DIGEST_BYTES:
        raise BadInput(f"a rank told {len(data)} bytes, which are no digests")
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def _failure_of(rank: int, told: bytes) -> LeptonError:
    """What another rank met, as an error of the same kind where that takes a message alone."""
    name, message = parse_json(told, f"rank {rank}")
    kinds = {"StoreFull": errors.StoreFull, "BadInput": errors.BadInput, "Conflict": errors.Conflict}
    return kinds.get(str(name), LeptonError)(f"rank {rank} could not save its part: {message} ({name})")
