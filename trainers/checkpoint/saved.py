"""A checkpoint that was saved: opened, its tensors read and checked on demand. Nothing of it is ever unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from leptonstore.dataset import FileTable, RefInfo, StoredValue, list_refs
from leptonstore.errors import (
    ChunkCorrupt,
    ChunkMissing,
    Damaged,
    FormatDamaged,
    LeptonWarning,
    MissingExtra,
    RefMissing,
)
from leptonstore.store import Store
from trainers.checkpoint.cells import Bits, cell_count, cell_elements, whole
from trainers.checkpoint.layout import BITS, Described
from trainers.checkpoint.manifest import Opened, cell_path, open_manifest
from trainers.checkpoint.read import Target, read_targets

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.config import TrainConfig
    from trainers.tasks import Task


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: layout and manifest were parsed, tensors are read (and checked) on demand. Any thread.

    manifest: what the run was doing (trainers/checkpoint/manifest.py), with "tensors": {path: {"dtype", "shape"}} and "scalars".
    """

    run: str
    branch: str
    commit: str
    manifest: dict[str, Any]
    files: FileTable
    store: Store
    opened: Opened
    _stored: dict[str, StoredValue | bytes] = field(default_factory=dict, repr=False)

    @property
    def whose(self) -> str:
        """What errors call it."""
        return f"checkpoint {self.branch} of run {self.run!r}"

    @property
    def step(self) -> int:
        """Optimizer steps that were done."""
        return int(self.manifest["step"])

    @property
    def paths(self) -> list[str]:
        """Paths of all tensors, sorted."""
        return sorted(self.opened.tensors)

    @property
    def scalars(self) -> dict[str, Any]:
        """What of the state is no tensor, by path."""
        return dict(self.manifest["scalars"])

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run. Raises BadInput."""
        from trainers.config import from_dict

        return from_dict(self.manifest.get("config", {}))

    @property
    def task(self) -> Task:
        """What the run learnt. Raises FormatDamaged."""
        from trainers.tasks import task_from_dict

        return task_from_dict(self.manifest.get("task", {}))

    def described(self, path: str) -> Described:
        """Dtype and shape. Raises FormatDamaged when there is no such tensor."""
        found = self.opened.tensors.get(path)
        if found is None:
            raise FormatDamaged(f"{self.whose} has no tensor {path!r}")
        return found

    def bits(self, path: str) -> Bits:
        """A tensor as unsigned integers as wide as its elements. Raises FormatDamaged, ChunkMissing or ChunkCorrupt."""
        tensor = self.described(path)
        bits = np.empty(tensor.shape, BITS[tensor.item_bytes])
        self.read([Target(path, whole(tensor.shape), bits)])
        return bits

    def array(self, path: str) -> np.ndarray[Any, Any]:
        """A tensor as numpy has it; what numpy lacks (bfloat16, float8) needs ml_dtypes. Raises as `bits`, MissingExtra."""
        bits, name = self.bits(path), self.described(path).dtype
        if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            try:
                import ml_dtypes
            except ImportError:
                raise MissingExtra(f"{name} as a numpy array", "jax", "ml_dtypes") from None
            return bits.view(np.dtype(getattr(ml_dtypes, name)))
        return bits.view(np.dtype(name))

    def tensor(self, path: str) -> Tensor:
        """A tensor on the CPU, which owns its memory. Raises as `bits`."""
        import torch

        tensor = self.described(path)
        out = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        if tensor.elements:
            as_int = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.item_bytes]
            bits = out.view(as_int).numpy().view(BITS[tensor.item_bytes])
            self.read([Target(path, whole(tensor.shape), bits)])
        return out

    def read(self, targets: Sequence[Target]) -> None:
        """Fill boxes of tensors. Raises FormatDamaged, ChunkMissing or ChunkCorrupt, which name the checkpoint and the tensor."""
        read_targets(self, targets)

    def cell(self, path: str, number: int) -> StoredValue | bytes:
        """Where the bytes of a cell are. Raises FormatDamaged when there is no such file."""
        if not self._stored:
            self._stored.update(self.files.stored())
        found = self._stored.get(path if self.opened.version == 1 else cell_path(path, number))
        if found is None:
            raise FormatDamaged(f"{self.whose} lacks cell {number} of tensor {path!r}")
        return found

    def cells(self, path: str) -> list[StoredValue | bytes]:
        """All cells of a tensor, in order: equal ones have equal content, so that checkpoints can be compared without reading them."""
        if self.opened.version == 1:
            return [self.cell(path, 0)]
        tensor = self.described(path)
        each = cell_elements(tensor.shape, tensor.item_bytes, self.opened.cell_bytes)
        return [self.cell(path, number) for number in range(cell_count(tensor.shape, each))]

    def verify(self) -> None:
        """Read everything, and keep nothing. Raises FormatDamaged, ChunkMissing or ChunkCorrupt for the first thing that is wrong."""
        for path in self.paths:
            self.bits(path)


def branch_of(step: int) -> str:
    """The branch of a checkpoint, in an order that sorts as text."""
    return f"step-{step:09d}"


def step_of(branch: str) -> int | None:
    """The step of a branch that `branch_of` named, None for any other."""
    digits = branch.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdigit() and branch == branch_of(int(digits)) else None


def run_and_step(spec: str) -> tuple[str, int | None]:
    """RUN, RUN@step-N or RUN@N, also after "checkpoint/": the run, and the step when one is named. Raises ValueError for anything else."""
    run, _, branch = spec.removeprefix("checkpoint/").partition("@")
    digits = branch.removeprefix("step-")
    if branch and not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{spec!r} names no step")
    return run, int(digits) if branch else None


def load(store: Store, run: str, step: int | None = None, fallback: bool = False) -> Checkpoint:
    """Open the newest checkpoint of `run`, or that of `step`. A branch of somebody's own (`lepton branch`) is none of these while there is
    one that is named by its step.

    fallback: read all of it first, and where something is missing or corrupt, warn (LeptonWarning names it) and take the one before. What
    is in the damaged pack is written again by whoever saves it with this Store object; `lepton repair` takes the pack out of use.
    Raises RefMissing (no such run or step), FormatDamaged, FormatTooNew; with fallback the newest one's error when none is whole.
    """
    store.refresh()
    refs = saved_by_age(store, run)
    if not refs:
        runs = sorted({ref.name for ref in list_refs(store, "checkpoint")})
        raise RefMissing(f"there is no checkpoint of run {run!r}; runs with checkpoints: {', '.join(runs) or 'none'}")
    branch = refs[-1].branch if step is None else branch_of(step)
    known = [ref.branch for ref in refs]
    if branch not in known:
        raise RefMissing(f"run {run!r} has no checkpoint {branch}; it has {', '.join(sorted(known))}")
    if not fallback:
        return open_checkpoint(store, run, branch)
    error: Damaged | ChunkMissing | None = None
    for earlier in reversed(known[: known.index(branch) + 1]):
        try:
            found = open_checkpoint(store, run, earlier)
            found.verify()
            return found
        except (Damaged, ChunkMissing) as caught:
            import warnings

            warnings.warn(f"checkpoint {earlier} of run {run!r} is damaged: {caught}", LeptonWarning, stacklevel=2)
            error = error or caught
            if isinstance(caught, ChunkCorrupt):  # what is saved again must not be taken for stored there
                store.damaged_packs[caught.pack] = caught.why
    assert error is not None
    raise error


def open_checkpoint(store: Store, run: str, branch: str) -> Checkpoint:
    """The checkpoint under a branch, a tag or a commit. Raises RefMissing, FormatDamaged, FormatTooNew."""
    whose = f"checkpoint {branch} of run {run!r}"
    try:
        files = FileTable.open(store, "checkpoint", f"{run}@{branch}")
        opened = open_manifest(files, whose)
    except ChunkCorrupt as error:
        raise error.at(whose) from None
    except ChunkMissing as error:
        raise ChunkMissing(error.digest, whose) from None
    tensors = {path: tensor.to_json() for path, tensor in opened.tensors.items()}
    return Checkpoint(run, branch, files.commit, {**opened.manifest, "tensors": tensors}, files, store, opened)


def by_age(store: Store, run: str) -> list[RefInfo]:
    """The checkpoints of a run, oldest first, somebody's own branches among them. Tags are other names of them, which retention keeps."""
    refs = [ref for ref in list_refs(store, "checkpoint", run) if not ref.tag]
    return sorted(refs, key=lambda ref: ref.sequence)


def saved_by_age(store: Store, run: str) -> list[RefInfo]:
    """Those that a save named by its step, oldest first; all of them where there is none.

    A branch of somebody's own is newer than what it was made from: taken for the newest, a run would go back to where it leads.
    """
    refs = by_age(store, run)
    return [ref for ref in refs if step_of(ref.branch) is not None] or refs


def exists(store: Store, run: str) -> bool:
    """Whether the run has any checkpoint."""
    store.refresh()
    return bool(saved_by_age(store, run))
