"""Who a rank is on a device mesh: which part of the data it reads, and which slice of each sequence. Arithmetic; needs no torch.

    dims            which rows                          which part of them
    data            a share of each global batch        all
    context         those of its data rank              its slice of the sequence columns, when asked for; else all
    all others      those of its data rank              all: tensor- and pipeline-parallel ranks need equal batches

Several data dimensions (dp_replicate x dp_shard) are one, counted row by row in the order in which the mesh has them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Words of the names that torchtitan, FSDP, Megatron, Accelerate, Lightning and JAX's users give to dimensions ("dp_shard").
DATA_WORDS = frozenset({"dp", "ddp", "fsdp", "hsdp", "data", "batch", "replicate", "replica", "shard"})
MODEL_WORDS = frozenset(
    {
        "tp",
        "pp",
        "cp",
        "sp",
        "ep",
        "etp",
        "mp",
        "model",
        "tensor",
        "pipe",
        "pipeline",
        "stage",
        "context",
        "sequence",
        "seq",
        "expert",
    }
)


class MeshPlace(NamedTuple):
    """rank, world_size: among those that share a global batch. context_rank, context_size: among those that share a sequence."""

    rank: int
    world_size: int
    context_rank: int = 0
    context_size: int = 1


def data_names(names: Sequence[str], given: Sequence[str] | None) -> tuple[str, ...]:
    """The data dimensions among those of a mesh, in its order: the given ones, else those known by their names.

    Raises ValueError for a name that the mesh does not have, and when a name says neither data nor model, or both.
    """
    if given is None:
        data = []
        for name in names:
            words = set(name.lower().split("_"))
            if bool(words & DATA_WORDS) == bool(words & MODEL_WORDS):
                raise ValueError(
                    f"dimension {name!r} of the mesh {tuple(names)}: its name does not say whether its ranks share out the data. "
                    "Name the dimensions that do, e.g. data_dims=('dp',)"
                )
            data += [name] if words & DATA_WORDS else []
        return tuple(data)
    for name in given:
        if name not in names:
            raise ValueError(f"the mesh has no dimension {name!r}; it has {', '.join(names)}")
    return tuple(name for name in names if name in given)


def place_on(mesh: Any, data_dims: Sequence[str] | None = None, context_dim: str | None = None) -> MeshPlace:
    """The place of this process on a `torch.distributed.device_mesh.DeviceMesh`.

    data_dims: names of the data dimensions (default: found by name); () gives every rank the whole of each batch.
    Raises ValueError for a mesh without names (unless it has one dimension: data), dimensions that it does not have, a context
    dimension that is also a data dimension, and where this process is no part of the mesh.
    """
    names = mesh.mesh_dim_names or (("dp",) if mesh.ndim == 1 else None)
    if names is None:
        raise ValueError("the mesh has several dimensions without names: make it with mesh_dim_names=('dp', 'tp', ...)")
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("this process is no part of the mesh: make its loader with a mesh that it belongs to")
    data = data_names(names, data_dims)
    sizes = dict(zip(names, (mesh.size(at) for at in range(len(names))), strict=True))
    here = dict(zip(names, coordinate, strict=True))
    rank, world_size = 0, 1
    for name in data:
        rank, world_size = rank * sizes[name] + here[name], world_size * sizes[name]
    if context_dim is None:
        return MeshPlace(rank, world_size)
    if context_dim not in names:
        raise ValueError(f"the mesh has no dimension {context_dim!r}; it has {', '.join(names)}")
    if context_dim in data:
        raise ValueError(f"the mesh's dimension {context_dim!r} cannot be both a data dimension and context_dim")
    return MeshPlace(rank, world_size, here[context_dim], sizes[context_dim])


def context_slice(columns: Mapping[str, int], place: MeshPlace) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function from a batch to the part of it that a context-parallel rank sees.

    That is slice `context_rank` of `context_size` equal, consecutive ones of each named column, along the given dimension of
    its tensor (0 is the rows). Other columns are left whole. "text.values" is the tensor "values" of a column that was collated
    to a dict.

    The function raises ValueError for a column that is not there or is no array, and for a length that does not divide.
    """
    return functools.partial(_slice_columns, dict(columns), place)


def _slice_columns(columns: dict[str, int], place: MeshPlace, batch: dict[str, Any]) -> dict[str, Any]:
    for name, dim in columns.items():
        where, key = batch, name
        while key not in where and "." in key:
            head, _, key = key.partition(".")
            inside = where.get(head)
            where = inside if isinstance(inside, dict) else {}
        where[key] = _part(where.get(key), name, dim, place)
    return batch


def _part(values: Any, name: str, dim: int, place: MeshPlace) -> Any:
    if not hasattr(values, "shape"):
        what = "not in the batch" if values is None else f"a {type(values).__name__} and no tensor: collate it to one"
        raise ValueError(f"sequence column {name!r} is {what}")
    if not 0 < dim < len(values.shape):
        raise ValueError(f"sequence column {name!r} of shape {tuple(values.shape)} has no dimension {dim} to slice")
    length, size = values.shape[dim], place.context_size
    if length % size:
        raise ValueError(
            f"sequence column {name!r} has length {length}, which {size} context-parallel ranks cannot share equally: "
            f"pad it to {-(-length // size) * size}"
        )
    each = length // size
    part = values[(slice(None),) * dim + (slice(place.context_rank * each, (place.context_rank + 1) * each),)]
    return part.clone() if hasattr(part, "clone") else part.copy()  # without the rest, and consecutive in memory
