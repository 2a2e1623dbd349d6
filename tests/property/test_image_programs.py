"""The same (seed, epoch, position) gives the same pixels, however an epoch is cut into batches, groups and threads."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders.source import ColumnSpec
from loaders.transforms import DecodeImage, RandomHorizontalFlip, RandomResizedCrop, SampleKeys, ToFloat, compile_chain

SAMPLES = 24
SPEC = ColumnSpec("image", "image/jpeg", None, None)


@cache
def values() -> list[bytes]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(SAMPLES):
        pixels = rng.integers(0, 256, (*rng.integers(3, 9, 2), 3), np.uint8).repeat(8, 0).repeat(8, 1)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG")
        made.append(out.getvalue())
    return made


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A user's function, which keeps the chain from being fused."""
    return image * np.float32(rng.uniform(0.8, 1.2))


CHAINS: list[list[Any]] = [
    [DecodeImage(), RandomResizedCrop(16), RandomHorizontalFlip(), ToFloat()],
    [DecodeImage(), RandomResizedCrop(16), RandomHorizontalFlip(), ToFloat(), jitter],
]


@cache
def whole(number: int, seed: int, epoch: int) -> np.ndarray:
    program = compile_chain(CHAINS[number], SPEC)
    keys = SampleKeys(seed, epoch, np.arange(SAMPLES))
    out = program.buffer(SAMPLES)
    program.sample(values(), keys, out, 0)
    return np.asarray(program.batch(out, keys))


cuts = st.lists(st.integers(0, SAMPLES), max_size=6).map(lambda inner: sorted({0, SAMPLES, *inner}))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1), st.integers(0, 2), st.integers(0, 2), cuts, cuts, st.integers(1, 4))
def test_pixels_hang_on_seed_epoch_and_position_alone(
    number: int, seed: int, epoch: int, batches: list[int], groups: list[int], threads: int
) -> None:
    program = compile_chain(CHAINS[number], SPEC)
    parts = []
    with ThreadPoolExecutor(threads) as pool:
        for start, stop in pairwise(batches):
            keys = SampleKeys(seed, epoch, np.arange(start, stop))
            out = program.buffer(stop - start)
            inner = sorted({start, stop, *(cut for cut in groups if start < cut < stop)})
            running = [
                pool.submit(program.sample, values()[a:b], keys.part(a - start, b - start), out, a - start)
                for a, b in reversed(list(pairwise(inner)))
            ]
            for future in running:
                future.result()
            parts.append(np.asarray(program.batch(out, keys)))
    np.testing.assert_array_equal(np.concatenate(parts), whole(number, seed, epoch))


def test_another_seed_or_epoch_gives_other_pixels() -> None:
    made = {whole(0, seed, epoch).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(made) == 9
