"""One save, in steps, for whoever drives it (Checkpointer, torch.distributed.checkpoint): all collectives but `publish`.

    stage     describe what each rank holds -> plan (the same on all ranks, kept until that changes) -> bytes that are safe
    put       exchange what crosses ranks -> each rank puts its cells and flushes
    publish   one rank makes one commit of all of them -> retention

Garbage collection: each rank's cells are flushed under its own claims; the publishing rank looks each of them up in its newest state and
relies on it like on its own work; the others let go (`Store.hand_over`) when the commit is there, or at their next save.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from leptonstore.dataset import StoredValue, write_files
from leptonstore.digest import DIGEST_BYTES, Digest
from leptonstore.errors import BadInput, Conflict, FormatDamaged, LeptonError, StoreFull
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.store import Store
from trainers.checkpoint.layout import held_from_json, held_to_json
from trainers.checkpoint.leaves import Leaf
from trainers.checkpoint.manifest import LAYOUT, cell_path, encode_layout, lineage_of
from trainers.checkpoint.plan import Plan, make_plan
from trainers.checkpoint.put import put_cells
from trainers.checkpoint.ranks import Ranks
from trainers.checkpoint.retention import Retention, apply_retention
from trainers.checkpoint.saved import branch_of
from trainers.checkpoint.staging import Buffer, Staged, stage

# Errors that are raised as what they are on the other ranks, too; all others as a LeptonError that names them.
_TOLD: dict[str, type[LeptonError]] = {"StoreFull": StoreFull, "BadInput": BadInput, "Conflict": Conflict}
MESSAGE_CHARS_MAX = 2_000
Described = tuple[dict[str, Leaf], dict[str, Any]]  # tensors and scalars of this rank, by path


class RankOf(Protocol):
    """What is asked of a World (trainers/parallel.py)."""

    @property
    def rank(self) -> int:
        """From 0 on."""

    @property
    def size(self) -> int:
        """How many ranks."""


class Ready(NamedTuple):
    """A staged state: the plan, this rank's bytes, and the scalars of all ranks (of two with one path, the lower rank's)."""

    plan: Plan
    staged: Staged
    scalars: dict[str, Any]


class Saving:
    """One save at a time. Made and closed by every rank, a collective."""

    def __init__(self, store: Store, run: str, world: RankOf | None, retention: Retention | None) -> None:
        self.store, self.run, self.retention = store, run, retention
        self._ranks = world if isinstance(world, Ranks) else Ranks() if world is None else Ranks(world.rank, world.size)
        self._plan: tuple[bytes, Plan] | None = None  # with what this rank told, when it was made
        self._buffer = Buffer()

    @property
    def background(self) -> bool:
        """Whether a save may go on beside the training's own messages."""
        return self._ranks.background

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self._ranks.rank == 0

    def stage(self, describe: Callable[[], Described], in_place: bool) -> Ready:
        """in_place: the tensors do not change until `put` returned. Raises what `describe` raises, on all ranks; BadInput."""
        leaves: dict[str, Leaf] = {}
        mine = b""

        def tell() -> bytes:
            nonlocal leaves, mine
            leaves, scalars = describe()
            mine = canonical_json(held_to_json({path: leaf.held for path, leaf in leaves.items()}))
            known = self._plan is not None and self._plan[0] == mine
            return canonical_json([known, scalars])

        told = [parse_json(one, f"rank {rank}") for rank, one in enumerate(self.together(tell))]
        if self._plan is None or not all(known for known, _ in told):
            every = self._ranks.gather(mine)
            held = [held_from_json(parse_json(one, f"rank {rank}"), f"rank {rank}") for rank, one in enumerate(every)]
            self._plan = mine, make_plan(held)
        plan = self._plan[1]
        scalars = {path: value for _, found in reversed(told) for path, value in found.items()}
        staged = stage(plan, leaves, self._ranks.rank, self._ranks.size, self._buffer, in_place)
        return Ready(plan, staged, scalars)

    def put(self, ready: Ready, threads: int, flush: bool) -> list[bytes]:
        """Every rank's digests, by rank, of cells that are durable; flush: also those of rank 0, which else are when it publishes."""
        ready.staged.exchange(self._ranks)

        def put() -> bytes:
            # Before anything is looked up: what garbage collection condemned until rank 0 opened its store must be known here, too.
            self.store.refresh()
            digests = put_cells(self.store, ready.staged.own, threads)
            if flush or not self.is_main:
                self.store.flush()
            return b"".join(digests)

        return self.together(put)

    def publish(
        self, step: int, plan: Plan, digests: list[bytes], manifest: dict[str, Any], metrics: dict[str, Any]
    ) -> str:
        """On one rank: the commit (hex). Raises StoreFull, Conflict or ChunkMissing."""
        found = [iter(_split(one)) for one in digests]
        files: list[tuple[str, bytes | StoredValue]] = [(LAYOUT, encode_layout(plan.tensors))]
        for cell in plan.cells:
            length = (cell.stop - cell.start) * plan.tensors[cell.path].item_bytes
            files.append((cell_path(cell.path, cell.number), StoredValue(next(found[cell.owner]), length)))
        lineage, branch = lineage_of(manifest), branch_of(step)
        table = write_files(
            self.store, "checkpoint", self.run, files, lineage, f"step {step}", branch, metrics, apart=True
        )
        if self.retention is not None:
            apply_retention(self.store, self.run, self.retention)
        return table.commit

    def together(self, work: Callable[[], bytes]) -> list[bytes]:
        """What `work` gives on each rank, by rank; where it fails on one, all raise."""
        failure: Exception | None = None
        try:
            told = b"=" + work()
        except Exception as error:
            failure = error
            kind = next((one for one in _TOLD if isinstance(error, _TOLD[one])), type(error).__name__)
            told = canonical_json([kind, str(error)[:MESSAGE_CHARS_MAX]])
        results = self._ranks.gather(told)
        if failure is not None:
            raise failure
        for rank, result in enumerate(results):
            if result[:1] != b"=":
                raise _failure_of(rank, result)
        return [result[1:] for result in results]

    def close(self) -> None:
        """Leave the group."""
        self._ranks.close()


def _split(data: bytes) -> list[Digest]:
    if len(data) % DIGEST_BYTES:
        raise FormatDamaged(f"a rank told {len(data)} bytes, which are no digests")
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def _failure_of(rank: int, told: bytes) -> LeptonError:
    """What another rank met, as an error of the same kind where that takes a message alone."""
    name, message = parse_json(told, f"rank {rank}")
    return _TOLD.get(str(name), LeptonError)(f"rank {rank} could not save its part: {message} ({name})")
