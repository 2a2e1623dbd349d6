"""Checkpoints of JAX trainings: pytrees of arrays, on any mesh, into the store and back onto any other. No torch is imported.

    with Checkpointer(store, "my-run", JaxRanks()) as checkpointer:
        checkpointer.save(step, state_of_tree(tree), manifest={"loader": loader.state_dict()})
    saved = load(store, "my-run")
    tree = restore_tree(saved, like)        # `like`: a tree of arrays that have the wanted shapes, dtypes and shardings

A leaf is a jax.Array of any sharding, also a typed PRNG key; numpy arrays and numbers are kept, too. Its name is its place in the tree:
"params/dense/kernel", "moments/0/dense/kernel". What several devices hold alike is saved once, spread over the processes; what they hold
in parts is saved by whoever has it, on a grid of the whole array (trainers/checkpoint). So the mesh and the number of processes of a
restore are its own, and equal arrays of any two of them are the same cells in the store.

A TPU is a device like any other here. What was tested: eight forced CPU devices, and two jax.distributed processes of four.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from leptonstore.errors import BadInput, MissingExtra
from trainers.checkpoint import Checkpoint, Checkpointer, Retention, Shards, load, restore
from trainers.checkpoint.ranks import Ranks
from trainers.revision import code_revision

try:
    import jax
    from jax.experimental import multihost_utils
    from jax.sharding import Sharding
except ModuleNotFoundError as error:
    raise MissingExtra("training with JAX", "jax", error.name or "jax") from error

__all__ = [
    "Checkpoint",
    "Checkpointer",
    "JaxRanks",
    "Retention",
    "load",
    "provenance_of",
    "restore_tree",
    "state_of_tree",
]

Tree = TypeVar("Tree")
Offsets: TypeAlias = tuple[int, ...]
Host: TypeAlias = np.ndarray[Any, Any]


class JaxRanks(Ranks):
    """The processes of a jax.distributed program, as a Checkpointer's `world`. Alone, nobody is asked.

    What they tell each other goes over the devices, like the training's own collectives, and must keep one order with them: saves of
    several processes are not made in the background.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = jax.process_index(), jax.process_count()
        self.background = self.size == 1

    def _all(self, mine: bytes) -> list[bytes]:
        every = np.asarray(multihost_utils.process_allgather(np.frombuffer(mine, np.uint8)))
        return [row.tobytes() for row in every.reshape(self.size, len(mine))]

    def exchange(
        self,
        out: Sequence[np.ndarray[Any, np.dtype[np.uint8]] | None],
        into: Sequence[np.ndarray[Any, np.dtype[np.uint8]] | None],
    ) -> None:
        """Send out[r] to each process r, and fill into[r]. Everybody sees everything: only cells across edges of shards are sent."""
        if self.size == 1:
            return
        sizes = np.asarray([0 if one is None else len(one) for one in out], np.int64)
        every = self.gather(sizes.tobytes() + b"".join(one.tobytes() for one in out if one is not None))
        for buffer, told in zip(into, every, strict=True):
            if buffer is not None:
                lengths = np.frombuffer(told, np.int64, self.size)
                start = lengths.nbytes + int(lengths[: self.rank].sum())
                buffer[:] = np.frombuffer(told, np.uint8, len(buffer), start)


def state_of_tree(tree: Any) -> dict[str, Any]:
    """A pytree as a state for `Checkpointer.save`: {place in the tree: the parts that this process holds}.

    Arrays are not copied where they are on the host already. Raises BadInput for two leaves with one name.
    """
    state: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _name(path)
        if name in state:
            raise BadInput(f"two leaves of the tree are called {name!r}")
        if not isinstance(leaf, jax.Array):
            state[name] = leaf
            continue
        if _is_key(leaf):
            state[f"{name}.kind"] = _kind(leaf)
            leaf = jax.random.key_data(leaf)
        parts = {_offsets(one.index): np.asarray(one.data) for one in leaf.addressable_shards}
        state[name] = Shards(leaf.dtype.name, leaf.shape, list(parts.items()))
    return state


def restore_tree(saved: Checkpoint, like: Tree) -> Tree:
    """The tree that was saved, each leaf with the sharding of `like`'s; each process reads what its devices hold.

    like: a tree of the same structure, shapes and dtypes: arrays (which are left as they are), or jax.ShapeDtypeStruct with a sharding; of
    PRNG keys, keys.
    Raises BadInput, naming the leaf, when it does not fit; FormatDamaged, ChunkMissing or ChunkCorrupt for what cannot be read.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    state: dict[str, Any] = {}
    homes: list[tuple[str, Any, dict[Offsets, Host]]] = []
    for path, leaf in leaves:
        name, parts = _name(path), {}
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            if _is_key(leaf):
                if not isinstance(leaf, jax.Array):
                    raise BadInput(f"{name!r} is the shape of a key: give a key, whose generator can be compared")
                state[f"{name}.kind"] = ""
                leaf = jax.random.key_data(leaf)
            parts = _room(leaf)
            state[name] = Shards(np.dtype(leaf.dtype).name, leaf.shape, list(parts.items()))
        else:
            state[name] = leaf.copy() if isinstance(leaf, np.ndarray) else leaf
        homes.append((name, leaf, parts))
    restore(saved, state)
    made = []
    for (_, given), (name, leaf, parts) in zip(leaves, homes, strict=True):
        if isinstance(state[name], Shards):
            array = jax.make_array_from_callback(leaf.shape, leaf.sharding, partial(_part, parts))
            made.append(_key(array, given, state[f"{name}.kind"], name) if _is_key(given) else array)
        else:
            made.append(state[name])
    return jax.tree_util.tree_unflatten(structure, made)


def provenance_of(config: Mapping[str, Any], step: int, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """ "provenance" of a manifest, as `lepton lineage` reads it: code and environment of each stretch of the run.

    config: JSON; the modules of its references ("package.module:function" under a key "reference") are recorded. step: steps that were done
    when this process took the run over. earlier: the "provenance" of the checkpoint that it did so from.
    """
    device = jax.devices()[0]
    environment = {
        "device": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "jax": str(jax.__version__),
        "machine": platform.machine(),
        "numpy": str(np.__version__),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    here = {"code": code_revision(config), "environment": environment}
    stretches = list((earlier or {}).get("stretches", ()))
    if not stretches or {key: stretches[-1].get(key) for key in here} != here:
        stretches.append({"step": step, **here})
    return {"stretches": stretches, "not_reproducible": []}


def _room(leaf: Any) -> dict[Offsets, Host]:
    """Memory for each different part of `leaf` that devices of this process hold."""
    sharding: Sharding = leaf.sharding
    shape = sharding.shard_shape(leaf.shape)
    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    return {_offsets(index): np.empty(shape, leaf.dtype) for index in indices}


def _part(parts: dict[Offsets, Host], index: tuple[slice, ...] | None) -> Host:
    return parts[_offsets(index)]


def _offsets(index: tuple[slice, ...] | None) -> Offsets:
    assert index is not None
    return tuple(one.start or 0 for one in index)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(one, "key", getattr(one, "idx", getattr(one, "name", one)))) for one in path)


# -- typed PRNG keys: words of uint32, and the name of the generator -------------------------------------------------------


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)) if hasattr(leaf, "dtype") else False


def _kind(leaf: Any) -> str:
    return str(jax.random.key_impl(leaf))


def _key(words: jax.Array, given: jax.Array, kind: str, name: str) -> jax.Array:
    if kind != _kind(given):
        raise BadInput(f"{name!r} is a key of {kind} there and of {_kind(given)} here")
    return jax.random.wrap_key_data(words, impl=kind)
