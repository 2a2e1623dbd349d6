"""`JaxLoader`: batches as sharded `jax.Array`s over a mesh, in the order, shares and states of every other loader.

    process r of W reads its share -> numpy, padded to one static shape -> jax.make_array_from_process_local_data
        -> arrays of W x rows, rows sharded over the mesh's data axes, equal along all other axes

Which share a process reads follows from the mesh: processes whose devices hold the same rows (they differ in model or tensor axes only)
read the same rows, so W is the number of different parts and not always `jax.process_count()`. Shapes are static (pad mode, the
default): one compilation serves the epoch, its last batch and its uneven shares; "_valid" says which rows are real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.ahead import Ahead
from loaders.mesh import data_names
from loaders.numpy import NumpyLoader
from loaders.source import MissingExtra
from loaders.stages import map_tree

try:
    import jax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
except ModuleNotFoundError as error:
    raise MissingExtra("loading batches for JAX", "jax", error.name or "jax") from error


class JaxLoader(NumpyLoader):
    """Parameters of `loaders.NumpyLoader` but rank and world_size; all transforms see arrays on the host. And

    batch_size         rows per part: the global batch is batch_size x the number of parts that processes read. Or global_batch_size.
    mesh               a `jax.sharding.Mesh`. Default: one axis "data" over all devices.
    data_axes          its axes over which rows are sharded. Default: found by their names (`loaders.mesh`); () replicates.
    specs              {column: PartitionSpec} of columns that are sharded along more than rows, e.g. {"tokens": P("data", "seq")}.
    device_prefetch    batches that are on their way to the devices beyond the one handed out.
    pad                True, the default: static shapes, and "_valid". False needs drop_last, and global batches that all devices
                       share equally.

    Without JAX's 64-bit mode, 64-bit integers become 32-bit ones; a value that does not fit is refused, where JAX would wrap it.
    Columns without a fixed width (text, bytes, lists) are no arrays: leave them out or transform them. `jax.distributed` must
    be initialised before, where there are several processes; all of them iterate in step, as in any JAX program.

    Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        mesh: Mesh | None = None,
        data_axes: Sequence[str] | None = None,
        specs: Mapping[str, PartitionSpec] | None = None,
        device_prefetch: int = 1,
        pad: bool = True,
        **options: Any,
    ) -> None:
        if "rank" in options or "world_size" in options:
            raise ValueError("rank and world_size are not given here: the mesh says which rows this process reads")
        self.mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,)) if mesh is None else mesh
        self.data_axes = data_names(self.mesh.axis_names, data_axes)
        self.specs = dict(specs or {})
        self.device_prefetch = device_prefetch
        # Made once: for each batch they cost as much as a third of its copies.
        self._rows_sharding = NamedSharding(self.mesh, PartitionSpec(self.data_axes))
        self._shardings = {name: NamedSharding(self.mesh, spec) for name, spec in self.specs.items()}
        self._part, self._parts, self._shards = _part_of_process(self.mesh, self.data_axes)
        super().__init__(dataset, batch_size, shuffle, pad=pad, **options)
        self._require_arrays(batch_size)

    def _rank(self) -> tuple[int, int]:
        return self._part, self._parts

    @property
    def _in_company(self) -> bool:
        return bool(jax.process_count() > 1)  # processes may share a part of each batch, too

    @property
    def _rows_multiple(self) -> int:
        """Every device of this process has the same number of rows."""
        return self._shards // self._parts

    def _feed(self, batches: Iterator[Any]) -> Iterator[Any]:
        return Ahead(self.stats.clock.around("device", self._begin), batches, self.device_prefetch)

    def _begin(self, batch: Any) -> Callable[[], Any]:
        """Begin to copy: JAX returns before the bytes are there."""
        named = batch.items() if isinstance(batch, dict) else [("", batch)]
        placed = {name: map_tree(partial(self._place, name), values) for name, values in named}
        return lambda: placed if isinstance(batch, dict) else placed[""]

    def _place(self, name: str, values: Any) -> jax.Array:
        what = f"column {name!r}" if name else "a value of the batch"
        local = np.asarray(values) if hasattr(values, "__array__") else None
        if local is None or local.dtype.kind in "OSUMm":
            kind = type(values).__name__ if local is None else f"array of {local.dtype}"
            raise ValueError(
                f"{what} is a {kind}, of which JAX has no arrays: leave it out with columns=, or transform it"
            )
        if local.ndim < 1 or len(local) % self._rows_multiple:
            raise ValueError(
                f"{what} has shape {local.shape}, whose rows {self._rows_multiple} devices cannot share equally: "
                "a transform must keep the number of rows"
            )
        _require_fits(local, what)
        sharding = self._shardings.get(name, self._rows_sharding)
        return jax.make_array_from_process_local_data(sharding, local, (self._parts * len(local), *local.shape[1:]))

    def _require_arrays(self, batch_size: int) -> None:
        assert self._source is not None
        if self.transform is None:
            made = {*(self.transforms or {}), *(self.collate or {})}
            variable = [spec.name for spec in self._source.columns if not spec.fixed and spec.name not in made]
            if variable:
                raise ValueError(
                    f"JAX has no arrays for {', '.join(variable)}, which have no fixed width: name the others with columns=, "
                    "or give a transform that makes arrays of them"
                )
        for name, spec in self.specs.items():
            first = spec[0] if len(spec) else None
            if ((first,) if isinstance(first, str) else first or ()) != self.data_axes:
                raise ValueError(f"specs[{name!r}] is {spec}: its first entry must be the data axes, {self.data_axes}")
        global_batch = self.global_batch_size or batch_size * self._parts
        if not self.pad and (not self.drop_last or global_batch % self._shards):
            raise ValueError(
                f"pad=False needs drop_last=True and a global batch that {self._shards} devices share equally, and not "
                f"{global_batch} rows with drop_last={self.drop_last}: arrays have one shape on all of them"
            )


def _part_of_process(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, int, int]:
    """(number of the part of each global batch that this process reads, number of parts, number of shards of its rows).

    Raises ValueError when this process has no device in the mesh, and when the parts of processes overlap or differ in size.
    """
    shards = prod(mesh.shape[name] for name in axes)
    held: dict[int, set[int]] = {}
    slices: Mapping[Any, Any] = NamedSharding(mesh, PartitionSpec(axes)).devices_indices_map((shards,))
    for device, index in slices.items():
        held.setdefault(device.process_index, set()).add(index[0].start or 0)
    here = held.get(jax.process_index())
    if here is None:
        raise ValueError("this process has no device in the mesh: make its loader with a mesh that it belongs to")
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    if sum(map(len, parts)) != shards or len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"the mesh gives processes parts of the rows that overlap or differ in size, over {axes}: order its devices "
            "so that those of a process lie side by side along the data axes"
        )
    return parts.index(tuple(sorted(here))), len(parts), shards


def _require_fits(values: npt.NDArray[Any], what: str) -> None:
    """JAX keeps 32 bits of each integer when its 64-bit mode is off, and says nothing."""
    if (
        values.dtype.kind not in "iu"
        or values.dtype.itemsize < 8
        or jax.config.read("jax_enable_x64")
        or not values.size
    ):
        return
    bounds = np.iinfo(np.int32 if values.dtype.kind == "i" else np.uint32)
    low, high = int(values.min()), int(values.max())
    if low < bounds.min or high > bounds.max:
        raise ValueError(
            f"{what} has a value of {high if high > bounds.max else low}, which JAX would cut to 32 bits: "
            "jax.config.update('jax_enable_x64', True), or leave it out"
        )
