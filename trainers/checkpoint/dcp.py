"""torch.distributed.checkpoint over the store: a StorageWriter and a StorageReader.

    writer = StoreWriter(store, "my-run")                    once, by every rank
    dcp.save(state, checkpoint_id="1000", storage_writer=writer)           the checkpoint of step 1000
    future = dcp.async_save(state, checkpoint_id="2000", storage_writer=writer)
    dcp.load(state, storage_reader=StoreReader(store, "my-run"))           the newest; or step=1000

The planner decides what each rank has; cells, what crosses ranks, and the commit are those of Checkpointer: the same state saved either
way shares its cells. Any sharding is loaded into any other: the reader serves any box of a tensor.

Nothing stored is unpickled. DCP pickles what is no tensor (BytesIO of torch.save), and its planner unpickles that with weights_only=False;
here it is kept as JSON (values.py), and what the planner unpickles was pickled a moment before, by the reader, from JSON. DCP's own
messages between ranks (plans) are pickled by DCP. A planner must have DefaultSavePlanner's `lookup_object` for what is no tensor.
"""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.store import Store
from trainers.checkpoint.cells import Box
from trainers.checkpoint.leaves import Leaf, torch_leaf
from trainers.checkpoint.put import put_threads
from trainers.checkpoint.read import Target
from trainers.checkpoint.retention import Retention
from trainers.checkpoint.saved import Checkpoint, branch_of, load, step_of
from trainers.checkpoint.saving import Described, Ready, Saving
from trainers.checkpoint.values import decode_value, encode_value

PLANNER = "planner_data"  # in the manifest: where in a nested state dict each flat name stood


class _World:
    def __init__(self) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.size = distributed.get_world_size() if joined else 1


class StoreWriter(StorageWriter):
    """Made by every rank of the default process group (a collective, which makes a gloo group of its own); used by one save at a time.

    step: of the next checkpoint; `checkpoint_id` of dcp.save replaces it. manifest: JSON that is kept with each checkpoint.
    retention: applied after each save. What is lost when a rank dies, and what an error leaves, is as of Checkpointer.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        step: int | None = None,
        *,
        manifest: dict[str, Any] | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.run, self.step, self.manifest = run, step, dict(manifest or {})
        self.commit = ""  # of the last checkpoint, on the coordinator
        self._saving = Saving(store, run, _World(), retention)
        self._written: tuple[Ready, list[bytes]] | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Called by DCP first, when it was given an id. Raises BadInput when that names no step."""
        if checkpoint_id is not None:
            self.step = _step_of(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Raises BadInput when no step is known."""
        if self.step is None:
            raise BadInput("which step is it? Give StoreWriter a step, or dcp.save a checkpoint_id such as 1000")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This rank's part, durable when it returns; a collective of all ranks."""
        self._saving.store.hand_over()  # the last one was published, or failed
        ready = self._saving.stage(lambda: _resolved(plan, planner), in_place=True)
        self._written = ready, self._saving.put(ready, put_threads(), flush=True)
        results: Future[list[WriteResult]] = Future()
        results.set_result([WriteResult(item.index, item.tensor_storage_size() or 0, None) for item in plan.items])
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The coordinator publishes the commit."""
        assert self._written is not None and self.step is not None
        (plan, _, scalars), digests = self._written
        places = {
            name: list(place)
            for name, place in (metadata.planner_data or {}).items()
            if name in metadata.state_dict_metadata
        }
        manifest = {**self.manifest, PLANNER: places, "run": self.run, "step": self.step, "scalars": scalars}
        self.commit = self._saving.publish(self.step, plan, digests, manifest, {})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it names a step."""
        try:
            _step_of(checkpoint_id)
        except BadInput:
            return False
        return True

    def close(self) -> None:
        """Leave the group."""
        self._saving.close()


class StoreReader(StorageReader):
    """Reads the newest checkpoint of a run, or that of `step` (`checkpoint_id` of dcp.load replaces it). One load at a time."""

    def __init__(self, store: Store, run: str, step: int | None = None) -> None:
        self.store, self.run, self.step = store, run, step
        self._checkpoint: Checkpoint | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Called by DCP first."""
        self._checkpoint = None
        if checkpoint_id is not None:
            self.step = _step_of(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Made from the layout: each tensor is one chunk of DCP's, of which any box can be had."""
        checkpoint = self._checkpoint = load(self.store, self.run, self.step)
        entries: dict[str, Any] = {}
        for path, tensor in checkpoint.opened.tensors.items():
            size = torch.Size(tensor.shape)
            properties = TensorProperties(dtype=getattr(torch, tensor.dtype))
            entries[path] = TensorStorageMetadata(
                properties, size, [ChunkStorageMetadata(torch.Size([0] * len(size)), size)]
            )
        entries.update({path: BytesStorageMetadata() for path in checkpoint.scalars})
        places = _places(checkpoint, entries)
        return Metadata(entries, places, {}, StorageMeta(checkpoint_id=checkpoint.branch))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Everything that this rank wants. Raises FormatDamaged, ChunkMissing or ChunkCorrupt, which name the tensor."""
        checkpoint = self._checkpoint
        assert checkpoint is not None
        targets, later = [], []
        for item in plan.items:
            path = item.storage_index.fqn
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, _pickled(checkpoint, path))
                continue
            tensor = checkpoint.described(path)
            target = planner.resolve_tensor(item).detach()
            here = target
            if target.device.type != "cpu" or target.dtype != getattr(torch, tensor.dtype):
                here = torch.empty(tuple(item.lengths), dtype=getattr(torch, tensor.dtype))
            box = Box(tuple(item.storage_offsets), tuple(item.lengths))
            if box.elements:
                targets.append(Target(path, box, torch_leaf(here, path).memory[0].read()))
            later.append((item, target, here))
        checkpoint.read(targets)
        for item, target, here in later:
            if here is not target:
                target.copy_(here)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it names a step."""
        return StoreWriter.validate_checkpoint_id(checkpoint_id)


def _step_of(checkpoint_id: str | os.PathLike[str]) -> int:
    text = os.fspath(checkpoint_id) if not isinstance(checkpoint_id, int) else str(checkpoint_id)
    step = step_of(text)
    if step is None and text.isascii() and text.isdigit():
        step = int(text)
    if step is None:
        raise BadInput(f"checkpoint_id {text!r} names no step: give 1000, or {branch_of(1000)!r}")
    return step


def _resolved(plan: SavePlan, planner: SavePlanner) -> Described:
    """What the plan says that this rank writes. Raises BadInput."""
    leaves: dict[str, Leaf] = {}
    scalars: dict[str, Any] = {}
    for item in plan.items:
        path = item.index.fqn
        if item.type == WriteItemType.BYTE_IO:
            look_up = getattr(planner, "lookup_object", None)
            if look_up is None:
                raise BadInput(
                    f"{path!r} is no tensor, and {type(planner).__name__} would pickle it: use DefaultSavePlanner"
                )
            scalars[path] = encode_value(look_up(item.index), path)
            continue
        data = planner.resolve_data(item)
        assert item.tensor_data is not None and isinstance(data, torch.Tensor)
        box = Box(tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.chunk.sizes))
        made = torch_leaf(data.detach(), path, tuple(item.tensor_data.size), box)
        known = leaves.get(path)
        leaves[path] = made if known is None else Leaf(made.tensor, known.memory + made.memory)
    return leaves, scalars


def _places(checkpoint: Checkpoint, entries: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
    """Where each flat name stands in a nested state dict, as DCP wants it."""
    found = checkpoint.manifest.get(PLANNER, {})
    if not isinstance(found, dict):
        raise FormatDamaged(f"the manifest of {checkpoint.whose} is damaged: {PLANNER}")
    places = {}
    for path in entries:
        place = found.get(path, path.split("/"))
        if (
            not isinstance(place, list)
            or not place
            or not all(isinstance(key, str) or type(key) is int for key in place)
        ):
            raise FormatDamaged(f"the manifest of {checkpoint.whose} is damaged: {PLANNER} of {path!r}")
        places[path] = tuple(place)
    return places


def _pickled(checkpoint: Checkpoint, path: str) -> io.BytesIO:
    """A value from JSON, as DCP's planner reads it."""
    data = io.BytesIO()
    torch.save(decode_value(checkpoint.scalars[path], f"{path!r} of {checkpoint.whose}"), data)
    data.seek(0)
    return data
