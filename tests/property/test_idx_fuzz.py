"""Any bytes are a valid IDX source or a SourceError, and cost no more memory than a batch of what they announce."""

from __future__ import annotations

import gzip
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset.importers import open_source
from leptonstore.errors import SourceError

SIZES = st.sampled_from([0, 1, 2, 3, 7, 255, 2**16, 2**31, 2**32 - 1])
MEMORY_BYTES_MAX = 12 << 20  # a read of 4 MiB, and room for it to be unpacked


@st.composite
def nearly_idx(draw: st.DrawFn) -> bytes:
    """Headers that are mostly right, followed by bytes that sometimes have the length announced."""
    sizes = draw(st.lists(SIZES, max_size=9))
    code = draw(st.sampled_from([0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, 0x0A, 0xFF]))
    head = b"\0\0" + bytes([code, draw(st.sampled_from([len(sizes), 3, 0, 255]))])
    body = draw(st.binary(max_size=64))
    announced = int(np.prod([size % 2**16 for size in sizes], dtype=object)) if sizes else 0
    if draw(st.booleans()) and announced < 4096:
        body = bytes(announced * {0x0B: 2, 0x0C: 4, 0x0D: 4, 0x0E: 8}.get(code, 1))
    return head + struct.pack(f">{len(sizes)}I", *sizes) + body


@st.composite
def damaged_gzip(draw: st.DrawFn) -> bytes:
    data = bytearray(gzip.compress(draw(nearly_idx()), mtime=0))
    for _ in range(draw(st.integers(0, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(max_size=128), nearly_idx(), damaged_gzip()), as_labels=st.booleans())
def test_any_bytes_are_a_source_or_a_source_error(data: bytes, as_labels: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.idx"
        path.write_bytes(data)
        options = {}
        if as_labels:
            options["labels"] = path
            path = Path(folder) / "others.idx"
            path.write_bytes(b"\0\0\x08\x02" + struct.pack(">2I", 3, 1) + b"abc")
        tracemalloc.start()
        try:
            source = open_source(path, "idx", **options)
            rows = sum(batch.num_rows for batch in source.batches())
        except SourceError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert rows == source.rows and rows > 0
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MEMORY_BYTES_MAX


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    cut=st.integers(-3, 3),
    packed=st.booleans(),
)
def test_one_byte_too_few_or_too_many_is_always_found(shape: list[int], cut: int, packed: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()
    data = data[:cut] if cut < 0 else data + bytes(cut)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.idx"
        path.write_bytes(gzip.compress(data) if packed else data)
        try:
            batches = list(open_source(path).batches())
        except SourceError:
            assert cut != 0
        else:
            assert cut == 0
            assert np.array_equal(batches[0]["image"].to_numpy_ndarray(), values)
