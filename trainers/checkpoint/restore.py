"""A checkpoint into a state: tensors and DTensors are filled in place, at any number of ranks, in any sharding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leptonstore.errors import BadInput
from trainers.checkpoint.cells import Bits
from trainers.checkpoint.layout import BITS
from trainers.checkpoint.leaves import Leaf, State, flatten
from trainers.checkpoint.read import Target
from trainers.checkpoint.saved import Checkpoint

PER_RANK = "rng"  # the section of which each rank has its own part


def restore(checkpoint: Checkpoint, state: State, strict: bool = True) -> None:
    """Fill the tensors of `state` in place and set its scalars. Each rank reads what it holds; no collective.

    strict: a section of the state ("model", "optimizer", …) must have the very tensors and scalars that the checkpoint has of it (except
    "rng": each rank has its own). Otherwise the checkpoint may have more.
    Raises BadInput, naming the tensor, when the state does not fit: then nothing was changed. FormatDamaged, ChunkMissing and ChunkCorrupt
    name the tensor that cannot be read: then part of the state may have been filled.
    """
    flat = flatten(state)
    stored, scalars = checkpoint.opened.tensors, checkpoint.scalars
    for path, leaf in flat.leaves.items():
        _require_fit(checkpoint, path, leaf)
    for path in flat.scalars:
        if path not in scalars:
            raise BadInput(f"{checkpoint.whose} does not fit: it has no {path!r}")
    if strict:
        sections = {path.partition("/")[0] for path in (*flat.leaves, *flat.scalars)} - {PER_RANK}
        for path in sorted({*stored, *scalars} - {*flat.leaves, *flat.scalars}):
            if path.partition("/")[0] in sections:
                raise BadInput(f"{checkpoint.whose} does not fit: it has {path!r}, which is not here")
    targets: list[Target] = []
    writes: list[tuple[Callable[[Bits], None], Bits]] = []
    for path, leaf in flat.leaves.items():
        for memory in leaf.memory:
            if memory.write is None:
                bits = memory.read()
                if not bits.flags.writeable:
                    raise BadInput(f"{path!r} of the state is read-only: nothing can be restored into it")
            else:
                bits = np.empty(memory.box.sizes, BITS[leaf.tensor.item_bytes])
                writes.append((memory.write, bits))
            targets.append(Target(path, memory.box, bits))
    checkpoint.read(targets)
    for write, bits in writes:
        write(bits)
    for path in flat.scalars:
        flat.set_scalar(path, scalars[path])


def _require_fit(checkpoint: Checkpoint, path: str, leaf: Leaf) -> None:
    stored = checkpoint.opened.tensors.get(path)
    if stored is None:
        raise BadInput(f"{checkpoint.whose} does not fit: it has no tensor {path!r}")
    if stored != leaf.tensor:
        raise BadInput(f"{checkpoint.whose} does not fit: {path!r} is {stored} there and {leaf.tensor} here")
