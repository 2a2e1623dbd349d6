"""The digest of a model's weights: equal exactly when names, dtypes, shapes and all bits are.

    BLAKE3 derive_key("lepton.weights.v1") over, for each tensor in the order of its name's bytes:
        canonical JSON [name, dtype, shape] and a newline, then its bytes in C order, little-endian

It says nothing of the optimizer, and is the same for a checkpoint, a model and a safetensors file with these tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from blake3 import blake3
from torch import Tensor

from leptonstore.format.framed import canonical_json
from trainers.checkpoint import Checkpoint

CONTEXT = "lepton.weights.v1"
PREFIX = "model/"


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """64 hex digits. Tensors on any device, in any layout."""
    return digest_by_name(weights, weights.__getitem__)


def digest_by_name(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """The same with one tensor at a time in memory. read: gives the tensor of a name."""
    hasher = blake3(derive_key_context=CONTEXT)
    for name in sorted(names, key=lambda name: name.encode()):
        tensor = read(name)
        hasher.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]) + b"\n")
        hasher.update(_bytes_of(tensor))
    return hasher.hexdigest()


def weight_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors of the model in a checkpoint: weights and buffers."""
    return [path.removeprefix(PREFIX) for path in checkpoint.manifest["tensors"] if path.startswith(PREFIX)]


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Of a checkpoint's model. Raises FormatDamaged, ChunkCorrupt or ChunkMissing."""
    return digest_by_name(weight_names(checkpoint), lambda name: checkpoint.tensor(PREFIX + name))


def _bytes_of(tensor: Tensor) -> memoryview:
    """In C order; zero-copy for a contiguous one on the CPU."""
    flat = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
