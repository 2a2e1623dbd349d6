"""Transforms of arrays that belong together: the same place of all of them, the same bits for the same sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonstore.errors import BadInput, SourceError
from loaders.source import ColumnSpec
from loaders.transforms import DecodeArrays, RandomPatch, SampleKeys, Window, compile_chain

SHAPE = (5, 6, 7)
VOXELS = np.arange(-100, 110, dtype=np.int16).reshape(SHAPE)
ORGAN = (VOXELS > 0).astype(np.uint8)
ROW = {"voxels": VOXELS.tobytes(), "organ": ORGAN.tobytes(), "shape": list(SHAPE), "patient": "P1"}
DECODE = DecodeArrays({"voxels": "int16", "organ": "uint8"})


def test_bytes_become_arrays_over_the_same_memory_and_the_rest_stays() -> None:
    found = DECODE(ROW)
    assert set(found) == {"voxels", "organ", "patient"} and found["patient"] == "P1"
    assert np.array_equal(found["voxels"], VOXELS) and np.array_equal(found["organ"], ORGAN)
    assert found["voxels"].dtype == np.int16 and not found["voxels"].flags.writeable
    assert np.shares_memory(found["voxels"], np.frombuffer(ROW["voxels"], np.uint8))  # type: ignore[call-overload]


@pytest.mark.parametrize("shape", [[5, 6, 8], [], [-1, -42, 5], [1] * 9])
def test_bytes_that_are_not_as_many_as_the_shape_says_are_refused(shape: list[int]) -> None:
    with pytest.raises(SourceError, match=r"take|none of an array"):
        DECODE({**ROW, "shape": shape})


@pytest.mark.parametrize(
    "types, shape", [({}, "shape"), ({"shape": "int16"}, "shape"), ({"a": "text"}, "s"), ({"a": "O"}, "s")]
)
def test_fields_that_are_no_numbers_are_refused_when_it_is_made(types: dict[str, str], shape: str) -> None:
    with pytest.raises(BadInput):
        DecodeArrays(types, shape)


def test_a_patch_is_the_same_place_of_all_arrays_and_every_place_comes() -> None:
    cut, value = RandomPatch((2, 6, 3)), DECODE(ROW)
    rng, starts = np.random.default_rng(0), set()
    for _ in range(300):
        found = cut(value, rng)
        assert found["voxels"].shape == found["organ"].shape == (2, 6, 3) and found["patient"] == "P1"
        first = np.argwhere(found["voxels"][0, 0, 0] == VOXELS)[0]
        place = tuple(slice(at, at + size) for at, size in zip(first, (2, 6, 3), strict=True))
        assert np.array_equal(found["voxels"], VOXELS[place]) and np.array_equal(found["organ"], ORGAN[place])
        starts.add(tuple(first.tolist()))
    assert starts == {(z, 0, x) for z in range(4) for x in range(5)}


def test_what_is_smaller_than_the_patch_stands_in_its_middle() -> None:
    found = RandomPatch((7, 6, 8), {"voxels": -1000})(DECODE(ROW), np.random.default_rng(0))
    assert np.array_equal(found["voxels"][1:6, :, :7], VOXELS) and np.array_equal(found["organ"][1:6, :, :7], ORGAN)
    rest = np.ones((7, 6, 8), bool)
    rest[1:6, :, :7] = False
    assert (found["voxels"][rest] == -1000).all() and not found["organ"][rest].any()


def test_a_patch_is_an_array_of_its_own() -> None:
    found = RandomPatch(SHAPE)(DECODE(ROW), np.random.default_rng(0))
    assert found["voxels"].flags.writeable and found["voxels"].flags.c_contiguous


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"voxels": VOXELS, "organ": ORGAN[:-1]},
        {"voxels": VOXELS[0]},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="one shape"):
        RandomPatch((2, 2, 2))(value, np.random.default_rng(0))


@pytest.mark.parametrize("size", [(), (0, 2, 2), (1,) * 9])
def test_a_size_that_is_none_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="size of a patch"):
        RandomPatch(size)


def test_a_window_is_black_below_and_white_above() -> None:
    found = Window(40, 400)(np.array([-3000, -160, 40, 140, 240, 3000], np.int16))
    assert found.dtype == np.float32 and found.tolist() == [0, 0, 0.5, 0.75, 1, 1]
    both = Window(0, 2, of="voxels")({"voxels": np.array([1], np.int16), "organ": ORGAN})
    assert both["voxels"].tolist() == [1] and both["organ"] is ORGAN
    for level, width in ((0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))):
        with pytest.raises(BadInput, match="a window has"):
            Window(level, width)


def test_a_chain_gives_a_sample_the_same_patch_whoever_else_is_in_the_batch() -> None:
    chain = [DECODE, RandomPatch((2, 2, 2)), Window(0, 100, of="voxels")]
    program = compile_chain(chain, ColumnSpec("scan", "", None, None), list)

    def patches(first: int, rows: int) -> list[dict[str, Any]]:
        out = program.buffer(rows)
        keys = SampleKeys(1, 2, np.arange(first, first + rows))
        program.sample([ROW] * rows, keys, out, 0)
        return list(program.batch(out, keys))

    alone, together = patches(3, 1)[0], patches(0, 5)
    assert np.array_equal(alone["voxels"], together[3]["voxels"])
    assert not all(np.array_equal(alone["voxels"], one["voxels"]) for one in together)
    other = compile_chain([DECODE, RandomPatch((2, 2, 3))], ColumnSpec("scan", "", None, None), list)
    assert program.fingerprint != other.fingerprint and '"size":[2,2,2]' in program.fingerprint
