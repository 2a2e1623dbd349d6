"""A checkpoint into a torch module: memory of its own is filled in place, everything else goes through the module's load_state_dict.

What a module's state_dict has that is not its memory: extra state (get_extra_state: the amax history of FP8 layers, counters), and tensors
that a hook of its state_dict made (clones). To fill these changes nothing of the module, which must be told.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leptonstore.errors import BadInput
from trainers.checkpoint.restore import restore
from trainers.checkpoint.saved import Checkpoint

EXTRA = "_extra_state"  # what the keys of extra state end in: torch's own word


def restore_module(checkpoint: Checkpoint, section: str, module: nn.Module) -> None:
    """Fill `module` with what the checkpoint has in `section`. Each rank reads what it holds; no collective.

    Raises BadInput, naming the tensor, when it is another module; what `restore` raises. BadInput also when the module does not take its
    own state back: then its weights were filled.
    """
    state = module.state_dict()
    own = {_memory(one) for one in (*module.parameters(), *module.buffers())}
    foreign = [key for key, value in state.items() if key.endswith(EXTRA) or not _is_own(value, own)]
    if foreign and any(type(one).__name__ == "FullyShardedDataParallel" for one in module.modules()):
        # Its load_state_dict gathers weights over the ranks, some of which may have no state at all (rank0_only): they would wait forever.
        raise BadInput(
            f"{section!r} is in FullyShardedDataParallel, into which nothing can be restored in place: shard it with fully_shard, or "
            "restore the plain module and wrap it then"
        )
    for key in foreign:
        if key.endswith(EXTRA):
            state[key] = _as_stored(checkpoint, f"{section}/{key}", state[key])
    restore(checkpoint, {section: state})
    if not foreign:
        return
    # The whole of it, as hooks of the module expect it. Safe for DTensors (fully_shard, tensor parallelism), too: each rank copies its own
    # shard to where it is already, in the same placements, and talks to nobody; so ranks need not agree on what is foreign.
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise BadInput(
            f"{section!r} does not take back {foreign[0]!r} of its own state_dict, mend its load_state_dict or set_extra_state: {told}"
        ) from None


def _is_own(value: Any, own: set[tuple[torch.device, int] | None]) -> bool:
    """Whether to fill the tensor is to fill the module. One without elements (an empty shard) has nothing to fill."""
    if not isinstance(value, Tensor):
        return False
    memory = _memory(value)
    return memory is None or memory in own


def _memory(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Where its storage is, on this rank; None where there is none (no elements; not run yet; what `restore` refuses)."""
    if is_lazy(tensor):
        return None
    local: Any = tensor.detach()
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(local, DTensor):
            local = local.to_local()
    try:
        at = local.untyped_storage().data_ptr() if local.numel() else 0
    except RuntimeError:  # sparse
        return None
    return (local.device, at) if at else None


def _as_stored(checkpoint: Checkpoint, path: str, value: Any) -> Any:
    """Extra state as it is here, with room for what is stored: its shapes and kinds may have changed since the module was made.

    Made anew: `set_extra_state` gets it when all of it has been read, and what the module has stays as it is until then.
    """
    stored = checkpoint.opened.tensors.get(path)
    if stored is not None:
        if isinstance(value, np.ndarray | np.generic) and value.dtype.name == stored.dtype:
            return np.empty(stored.shape, value.dtype)
        if isinstance(value, Tensor) and tuple(value.shape) == stored.shape:
            return torch.empty_like(value, dtype=getattr(torch, stored.dtype))
        device = value.device if isinstance(value, Tensor) else None
        return torch.empty(stored.shape, dtype=getattr(torch, stored.dtype), device=device)
    if path in checkpoint.manifest["scalars"]:
        return None  # `restore` sets it
    if isinstance(value, Mapping):
        return {key: _as_stored(checkpoint, f"{path}/{key}", one) for key, one in value.items()}
    return value
