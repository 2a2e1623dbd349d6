"""The decoded-column cache: the same batches, no decoding the second time, no stale pixels, and nothing trusted that is stored there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leptonstore.cache import HotCache
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import image_field
from leptonstore.errors import SourceError
from leptonstore.store import Store
from leptonstore.store.keys import KeyFile
from loaders.decoded import DecodedColumns, DecodedSource, Undecoded, packed, split_chain, unpacked
from loaders.source import ColumnSource
from loaders.transforms import (
    CenterCrop,
    DecodeImage,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    SampleFailed,
    SampleKeys,
    ToFloat,
    compile_chain,
    decode,
)
from loaders.transforms.image_program import ImageProgram
from tests.integration.test_cached_dataset import counted

ROWS, BUDGET = 60, 64 << 20
CHAIN: list[Any] = [DecodeImage(), Resize(40), RandomCrop(32), RandomHorizontalFlip(), ToFloat()]
Make = Callable[..., Source]


def jpeg(seed: int, edge: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge + seed % 9, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def table(rows: int = ROWS) -> pa.Table:
    """Every third image is large enough to be a chunk of its own; the others stand in pages."""
    images = [jpeg(at, 160 if at % 3 == 0 else 48) for at in range(rows)]
    schema = pa.schema([pa.field("id", pa.int64(), False), image_field("image"), pa.field("label", pa.int64(), False)])
    return pa.table([np.arange(rows), pa.array(images, pa.large_binary()), np.arange(rows) % 5], schema=schema)


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    made = table()
    sizes = [len(value) for value in made["image"].to_pylist()]
    assert max(sizes) > 16_384 > min(sizes)
    return write_dataset(store, "pictures", source_of(made, ("id",)))


def with_decoded_cache(source: ColumnSource, chains: dict[str, list[Any]]) -> tuple[DecodedSource, Any]:
    columns = DecodedColumns(source, chains, {})
    return columns.of(source), columns.programs


def plain(ds: Dataset, rows: np.ndarray, chain: list[Any] = CHAIN, epoch: int = 0) -> np.ndarray:
    """A batch without any cache."""
    source = ColumnSource(ds, ["image"])
    program = compile_chain(chain, source.columns[0])
    return run(source.gather(rows)["image"], program, epoch)


def run(values: Any, program: Any, epoch: int = 0) -> np.ndarray:
    keys = SampleKeys(7, epoch, np.arange(len(values)))
    out = program.buffer(len(values))
    program.sample(values, keys, out, 0)
    return np.asarray(program.batch(out, keys))


def through(ds: Dataset, rows: np.ndarray, chain: list[Any] = CHAIN, epoch: int = 0) -> tuple[np.ndarray, int]:
    """A batch through the decoded cache, and how many of its samples had to be decoded."""
    source, programs = with_decoded_cache(ColumnSource(ds, ["image"]), {"image": chain})
    values = source.gather(rows)["image"]
    missing = sum(isinstance(value, Undecoded) for value in values)
    return run(values, programs["image"], epoch), missing


def test_the_second_time_nothing_is_read_or_decoded(
    ds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = ds.cached(tmp_path / "cache", BUDGET)
    rows = np.random.default_rng(0).permutation(ROWS)
    first, missing = through(cached, rows)
    assert missing == ROWS
    np.testing.assert_array_equal(first, plain(ds, rows))

    def no_decoding(*_: Any) -> None:
        raise AssertionError("an image is decoded")

    expected = plain(ds, rows, epoch=1)
    tier = counted(cached.store)
    monkeypatch.setattr(decode, "decode", no_decoding)
    second, missing = through(Dataset.open(cached.store, "pictures").cached(tmp_path / "cache"), rows, epoch=1)
    assert missing == 0
    np.testing.assert_array_equal(second, expected)
    large = sum(len(value) for value in table()["image"].to_pylist() if len(value) > 16_384)
    assert tier.bytes < large / 10, "nodes and directories only"


def test_another_process_finds_them(ds: Dataset, tmp_path: Path) -> None:
    """Source and program travel, as to a worker process."""
    cached = ds.cached(tmp_path / "cache", BUDGET)
    source, programs = with_decoded_cache(ColumnSource(cached, ["image"]), {"image": CHAIN})
    rows = np.arange(20)
    expected = run(source.gather(rows)["image"], programs["image"])
    other, program = pickle.loads(pickle.dumps((source, programs["image"])))  # noqa: S301
    values = other.gather(rows)["image"]
    assert all(isinstance(value, np.ndarray) for value in values)
    np.testing.assert_array_equal(run(values, program), expected)


def test_a_filtered_version_keeps_its_decodes(store: Store, ds: Dataset, source_of: Make, tmp_path: Path) -> None:
    through(ds.cached(tmp_path / "cache", BUDGET), np.arange(ROWS))
    kept = table().filter(pa.array(np.arange(ROWS) % 4 != 1))
    filtered = write_dataset(store, "filtered", source_of(kept, ("id",)))
    rows = np.arange(len(filtered))
    made, missing = through(filtered.cached(tmp_path / "cache"), rows)
    assert missing == 0
    np.testing.assert_array_equal(made, plain(filtered, rows))
    view = ds.select(np.arange(ROWS)[::-2])
    assert through(view.cached(tmp_path / "cache"), np.arange(len(view)))[1] == 0


def test_another_head_or_decoder_starts_anew(ds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, rows = ds.cached(tmp_path / "cache", BUDGET), np.arange(ROWS)
    through(cached, rows)
    tail = CHAIN[2:]
    assert through(cached, rows, [DecodeImage(), Resize(41), *tail])[1] == ROWS
    assert through(cached, rows, [DecodeImage(), *tail])[1] == ROWS
    assert through(cached, rows, [*CHAIN[:2], CenterCrop(32), ToFloat()])[1] == ROWS, "a longer head"
    assert through(cached, rows, [*CHAIN[:2], RandomCrop(30), ToFloat()])[1] == 0, "another tail"

    class Newer(Resize):
        version = 2

    assert through(cached, rows, [DecodeImage(), Newer(40), *tail])[1] == ROWS
    monkeypatch.setattr(decode, "decoders", lambda: {"simplejpeg": "0.0.1"})
    assert through(cached, rows)[1] == ROWS


def test_a_cache_that_is_too_small_changes_no_pixel(ds: Dataset, tmp_path: Path) -> None:
    cached, rows = ds.cached(tmp_path / "cache", 1 << 20), np.arange(ROWS)
    for epoch in range(3):
        made, missing = through(cached, rows, [DecodeImage(), RandomCrop(32), ToFloat()], epoch)
        assert missing > 0
        np.testing.assert_array_equal(made, plain(ds, rows, [DecodeImage(), RandomCrop(32), ToFloat()], epoch))


def test_pixels_of_an_encrypted_store_have_names_of_their_own(
    ds: Dataset, tmp_path: Path, source_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads another store cannot ask for them by the digest of the image."""
    monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "tmpfs")
    rows = np.arange(ROWS)
    through(ds.cached(tmp_path / "cache", BUDGET), rows)
    with Store.create(tmp_path / "sealed", unlock=KeyFile(bytes(range(64)))) as sealed:
        write_dataset(sealed, "d", source_of(table(), ("id",)))
        hidden = Dataset.open(sealed, "d").cached(tmp_path / "cache")
        assert through(hidden, rows)[1] == ROWS
        made, missing = through(hidden, rows, epoch=1)
        assert missing == 0
        np.testing.assert_array_equal(made, plain(ds, rows, epoch=1))


def test_corrupt_images_fail_by_place_and_are_not_kept(store: Store, source_of: Make, tmp_path: Path) -> None:
    made = table(8)
    images = made["image"].to_pylist()
    images[3] = images[3][:4_000]
    bad = made.set_column(1, made.schema.field("image"), pa.array(images, pa.large_binary()))
    ds = write_dataset(store, "bad", source_of(bad, ("id",))).cached(tmp_path / "cache", BUDGET)
    for _ in range(2):
        with pytest.raises(SampleFailed) as caught:
            through(ds, np.arange(8))
        assert caught.value.index == 3 and isinstance(caught.value.__cause__, SourceError)


def test_plans_name_what_is_asked_for(
    store: Store, source_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of values that are chunks of their own: the keys of what is made of them, in their order, and nothing else."""
    large = write_dataset(store, "large", source_of(table().take(np.arange(0, ROWS, 3)), ("id",)))
    cached = large.cached(tmp_path / "cache", BUDGET)
    source, _ = with_decoded_cache(ColumnSource(cached, ["image", "label"]), {"image": CHAIN})
    assert isinstance(source, DecodedSource) and source.plans
    source.fill()
    rows = np.random.default_rng(1).permutation(len(large))
    told = [row.tobytes() for row in source.future_keys(rows, [8, 12])]
    asked: list[bytes] = []
    get = HotCache.get
    monkeypatch.setattr(HotCache, "get", lambda cache, key: (asked.append(key), get(cache, key))[1])
    for part in (rows[:8], rows[8:]):
        source.gather(part)
    assert [key for key in asked if key in told] == told and len(told) == len(large)


def test_what_comes_with_a_decoded_column_is_as_without(ds: Dataset, tmp_path: Path) -> None:
    cached = ds.cached(tmp_path / "cache", BUDGET)
    source, programs = with_decoded_cache(ColumnSource(cached, ["label", "image", "id"]), {"image": CHAIN})
    source.fill()
    found = source.gather(np.array([5, 3]))
    assert (
        list(found) == ["label", "image", "id"] and found["id"].tolist() == [5, 3] and found["label"].tolist() == [0, 3]
    )
    assert [spec.name for spec in source.cold] == ["image"] and source.rows == ROWS
    assert source.fingerprint == ds.fingerprint
    assert programs["image"].fingerprint == compile_chain(CHAIN, source.columns[1]).fingerprint
    assert source.gather(np.empty(0, np.int64))["image"] == []


def test_where_there_is_nothing_to_keep_it_says_so(ds: Dataset, tmp_path: Path) -> None:
    cached = ds.cached(tmp_path / "cache", BUDGET)
    with pytest.raises(ValueError, match="not read through a hot cache"):
        with_decoded_cache(ColumnSource(ds), {"image": CHAIN})
    for chain in ([lambda value: value], [DecodeImage(scaled=True), Resize(40)]):
        with pytest.raises(ValueError, match="no chain here begins with one"):
            with_decoded_cache(ColumnSource(cached), {"image": chain})


def test_heads_end_before_what_is_random_or_larger() -> None:
    def names(chain: list[Any]) -> tuple[int, int]:
        head, tail = split_chain(chain)
        return len(head), len(tail)

    assert names(CHAIN) == (2, 3)
    assert names([DecodeImage(), Resize(256), CenterCrop(224), ToFloat()]) == (3, 1)
    assert names([RandomCrop(3)]) == (0, 1)
    assert names([DecodeImage(), lambda value: value]) == (1, 1)


def test_the_tail_of_an_evaluation_is_fused(ds: Dataset, tmp_path: Path) -> None:
    cached = ds.cached(tmp_path / "cache", BUDGET)
    chain = [DecodeImage(), Resize(40), CenterCrop(32), ToFloat()]
    _, programs = with_decoded_cache(ColumnSource(cached), {"image": chain})
    assert isinstance(programs["image"]._tail, ImageProgram)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(through(cached, np.arange(9), chain)[0], plain(ds, np.arange(9), chain))


arrays = st.tuples(
    st.lists(st.integers(1, 5), max_size=4), st.sampled_from(["u1", "<f4", ">i2", "?", "<f8"]), st.binary(min_size=1)
)


@given(arrays)
def test_records_give_back_what_was_packed(made: tuple[list[int], str, bytes]) -> None:
    shape, kind, fill = made
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    array = np.frombuffer((fill * size)[:size], kind).reshape(shape)
    found = unpacked(memoryview(packed(array)))
    assert found is not None and found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes() and not found.flags.writeable


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_what_is_no_record_is_a_miss(junk: bytes, at: int, value: int) -> None:
    assert unpacked(memoryview(junk)) is None
    record = bytearray(packed(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)))
    record[at % len(record)] = value
    for data in (bytes(record), bytes(record[: at % len(record)])):
        found = unpacked(memoryview(data))
        assert found is None or found.nbytes <= len(data)
