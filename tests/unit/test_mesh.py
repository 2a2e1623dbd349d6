"""Places on a device mesh: data dimensions share out rows, a context dimension sequences, all others nothing."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.mesh import MeshPlace, context_slice, data_names, place_on


class Mesh:
    """What `place_on` asks of a DeviceMesh; tests/integration/test_dataloader_mesh.py has real ones."""

    def __init__(self, sizes: dict[str, int], coordinate: tuple[int, ...] | None, named: bool = True) -> None:
        self.sizes = list(sizes.values())
        self.mesh_dim_names = tuple(sizes) if named else None
        self.ndim = len(sizes)
        self.coordinate = coordinate

    def get_coordinate(self) -> list[int] | None:
        return None if self.coordinate is None else list(self.coordinate)

    def size(self, dim: int) -> int:
        return self.sizes[dim]


def places(sizes: dict[str, int], **options: Any) -> list[MeshPlace]:
    """Of all ranks, in row-major order."""
    return [place_on(Mesh(sizes, at), **options) for at in product(*(range(size) for size in sizes.values()))]


@given(
    st.dictionaries(
        st.sampled_from(["dp_replicate", "dp_shard", "fsdp", "data", "tp", "pp", "cp", "expert"]),
        st.integers(1, 3),
        min_size=1,
        max_size=4,
    )
)
def test_ranks_that_differ_in_model_dimensions_only_share_a_place(sizes: dict[str, int]) -> None:
    data = [name for name in sizes if name.startswith(("dp", "fsdp", "data"))]
    world_size = int(np.prod([sizes[name] for name in data], dtype=int))
    found = places(sizes)
    assert {place.world_size for place in found} == {world_size}
    ranks: dict[tuple[int, ...], set[int]] = {}
    for at, place in zip(product(*(range(size) for size in sizes.values())), found, strict=True):
        key = tuple(index for name, index in zip(sizes, at, strict=True) if name in data)
        ranks.setdefault(key, set()).add(place.rank)
    assert [ranks[key] for key in sorted(ranks)] == [{rank} for rank in range(world_size)]


def test_dimensions_can_be_given() -> None:
    assert [(p.rank, p.world_size) for p in places({"a": 2, "b": 2}, data_dims=("b",))] == [(0, 2), (1, 2)] * 2
    assert {p.world_size for p in places({"dp": 2, "tp": 2}, data_dims=())} == {1}
    assert data_names(("a", "b", "c"), ("c", "a")) == ("a", "c")
    assert place_on(Mesh({"": 3}, (2,), named=False)) == MeshPlace(2, 3)  # one dimension without a name: data


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"dp": 2, "x": 2}, {}, "dimension 'x' of the mesh .*data_dims="),
        ({"dp_cp": 2, "tp": 2}, {}, "dimension 'dp_cp'"),
        ({"dp": 2}, {"data_dims": ("ddp",)}, "no dimension 'ddp'; it has dp"),
        ({"dp": 2}, {"context_dim": "cp"}, "no dimension 'cp'"),
        ({"dp": 2, "cp": 2}, {"data_dims": ("dp", "cp"), "context_dim": "cp"}, "cannot be both"),
    ],
)
def test_what_a_mesh_does_not_say_is_asked(sizes: dict[str, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        places(sizes, **options)


def test_a_process_outside_the_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="no part of the mesh"):
        place_on(Mesh({"dp": 2}, None))
    with pytest.raises(ValueError, match="without names"):
        place_on(Mesh({"dp": 2, "tp": 2}, (0, 0), named=False))


@given(
    size=st.integers(1, 4),
    each=st.integers(0, 3),
    rows=st.integers(0, 3),
    dim=st.integers(1, 2),
)
def test_slices_of_a_sequence_make_it_up(size: int, each: int, rows: int, dim: int) -> None:
    shape = (rows, size * each, 2) if dim == 1 else (rows, 2, size * each)
    tokens = np.arange(np.prod(shape)).reshape(shape)
    parts = []
    for rank in range(size):
        batch = {"tokens": tokens.copy(), "label": np.arange(rows)}
        out = context_slice({"tokens": dim}, MeshPlace(0, 1, rank, size))(batch)
        assert out["label"].shape == (rows,)
        parts.append(out["tokens"])
        assert out["tokens"].base is None or out["tokens"].base.size == out["tokens"].size  # holds on to no more
    np.testing.assert_array_equal(np.concatenate(parts, dim), tokens)


def test_a_tensor_within_a_column_has_a_dotted_name() -> None:
    columns = {"text.values": 1, "text.inner.mask": 1, "a.b": 1}
    batch = {
        "text": {"values": np.arange(8).reshape(2, 4), "inner": {"mask": np.ones((2, 4))}, "lengths": np.arange(2)},
        "a.b": np.zeros((2, 2)),  # a column's own name goes first
        "a": {"b": np.zeros((2, 4))},
    }
    out = context_slice(columns, MeshPlace(0, 1, 1, 2))(batch)
    assert out["text"]["values"].tolist() == [[2, 3], [6, 7]] and out["text"]["inner"]["mask"].shape == (2, 2)
    assert out["text"]["lengths"].shape == (2,) and out["a.b"].shape == (2, 1) and out["a"]["b"].shape == (2, 4)


def test_what_cannot_be_sliced_is_named() -> None:
    def cut(columns: dict[str, int], **batch: Any) -> None:
        context_slice(columns, MeshPlace(0, 1, 0, 2))(batch)

    for columns, batch, message in [
        ({"tokens": 1}, {"tokens": np.zeros((3, 5))}, "length 5, which 2 context-parallel ranks.*pad it to 6"),
        ({"tokens": 1}, {"tokens": [[1, 2]]}, "a list and no tensor"),
        ({"tokens": 1}, {}, "'tokens' is not in the batch"),
        ({"tokens.values": 1}, {"tokens": np.zeros((3, 4))}, "'tokens.values' is not in the batch"),
        ({"tokens": 2}, {"tokens": np.zeros((3, 5))}, "has no dimension 2"),
        ({"tokens": 0}, {"tokens": np.zeros((4, 5))}, "has no dimension 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            cut(columns, **batch)
