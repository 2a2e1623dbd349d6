"""Windows and packs of a column of tokens: what is in them, hot, cold and through the hot cache; order, state and errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import tokens_field
from leptonstore.errors import SchemaError
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, RandomOffset, TokenPacks, TokenWindows  # noqa: E402
from loaders.boundaries import attention_mask, cu_seqlens, next_tokens  # noqa: E402
from loaders.flat import FlatColumn  # noqa: E402
from loaders.packing import pack_documents  # noqa: E402
from loaders.source import source_of  # noqa: E402
from loaders.verify import Replay  # noqa: E402

Make = Callable[..., Source]
ROWS = 4_000
LENGTH = 33
COLD = {"arena_bytes_max": 0}


def documents(rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    sizes = np.where(rng.random(rows) < 0.1, 0, rng.lognormal(2.5, 1.0, rows)).astype(np.int64)
    return [rng.integers(0, 65_536, size).astype(np.uint16) for size in sizes]


def table_of(docs: list[np.ndarray]) -> pa.Table:
    schema = pa.schema([pa.field("id", pa.int64(), False), tokens_field("tokens", pa.uint16())])
    offsets = np.concatenate([[0], np.cumsum([len(doc) for doc in docs])]).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(docs))).cast(schema.field(1).type)
    return pa.table([pa.array(np.arange(len(docs))), lists], schema=schema)


@pytest.fixture(scope="module")
def docs() -> list[np.ndarray]:
    return documents(ROWS)


@pytest.fixture(scope="module")
def ds(docs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    store = Store.create(tmp_path_factory.mktemp("tokens") / "store")
    table = table_of(docs)
    source = Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=1000)), table.num_rows, {})
    return write_dataset(store, "text", source)


def read_all(loader: DataLoader, name: str = "tokens") -> np.ndarray:
    return np.concatenate([batch[name].numpy() for batch in loader])


@pytest.fixture(params=["hot", "cold", "cache", "cold cache", "threads"])
def way(request: pytest.FixtureRequest, ds: Dataset, tmp_path: Path) -> tuple[Dataset, dict[str, Any]]:
    """(dataset, options of the loader): every way in which tokens are read."""
    options: dict[str, Any] = COLD if "cold" in request.param or request.param == "threads" else {}
    if request.param == "threads":
        options = {**options, "num_workers": 2}
    return (ds.cached(tmp_path / "cache", 64 << 20) if "cache" in request.param else ds), options


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [None, 1, 20, 50])
def test_windows_are_stretches_of_the_documents_one_after_another(
    way: tuple[Dataset, dict[str, Any]], docs: list[np.ndarray], stride: int | None
) -> None:
    dataset, options = way
    text = np.concatenate(docs)[:2_000] if stride == 1 else np.concatenate(docs)
    if stride == 1:
        dataset = dataset.select(np.arange(np.searchsorted(np.cumsum([len(doc) for doc in docs]), 2_000) + 1))
        text = np.concatenate(docs[: len(dataset)])
    expected = np.lib.stride_tricks.sliding_window_view(text, LENGTH)[:: stride or LENGTH]
    windows = TokenWindows(dataset, length=LENGTH, stride=stride)
    found = read_all(DataLoader(windows, 64, **options))
    assert found.dtype == np.uint16 and len(windows) == len(expected)
    np.testing.assert_array_equal(found, expected)
    shuffled = read_all(DataLoader(windows, 64, shuffle=True, seed=2, **options))
    assert not np.array_equal(shuffled, expected)
    np.testing.assert_array_equal(np.sort(shuffled, 0), np.sort(expected, 0))


def test_windows_of_a_view_in_any_order_with_repeats(ds: Dataset, docs: list[np.ndarray]) -> None:
    chosen = np.random.default_rng(3).integers(0, ROWS, 900)
    text = np.concatenate([docs[row] for row in chosen])
    expected = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
    for options in ({}, COLD):
        np.testing.assert_array_equal(
            read_all(DataLoader(TokenWindows(ds.select(chosen), length=LENGTH), 50, **options)), expected
        )


def test_tokens_have_the_type_that_was_asked_for_and_their_own_memory(ds: Dataset, docs: list[np.ndarray]) -> None:
    text = np.concatenate(docs)[:LENGTH]
    for options in ({}, COLD):
        for dtype, expected in ((None, torch.uint16), ("int64", torch.int64), (np.int32, torch.int32)):
            loader = DataLoader(TokenWindows(ds, length=LENGTH, dtype=dtype), 8, **options)
            first = next(iter(loader))["tokens"]
            assert first.dtype == expected
            np.testing.assert_array_equal(first[0].to(torch.int64), text)
            first.zero_()
            np.testing.assert_array_equal(next(iter(loader))["tokens"][0].to(torch.int64), text)


def test_a_text_shorter_than_a_window_has_none(ds: Dataset) -> None:
    for dataset, length in ((ds.select([]), 4), (ds.select([0, 1]), 100_000)):
        windows = TokenWindows(dataset, length=length)
        assert len(windows) == 0 and list(DataLoader(windows, 4, shuffle=True)) == []
    with pytest.raises(IndexError, match="window 0: there are 0"):
        windows[0]


def test_an_epoch_of_random_offsets_covers_the_text_from_another_token(ds: Dataset, docs: list[np.ndarray]) -> None:
    text = np.concatenate(docs)
    windows = TokenWindows(ds, length=LENGTH, stride=1)
    loader = DataLoader(windows, 64, order=RandomOffset(LENGTH), seed=4)
    starts = {bytes(text[at : at + LENGTH]): at for at in range(len(text) - LENGTH + 1)}
    offsets = []
    for _ in range(3):
        begins = np.array([starts[bytes(row)] for row in read_all(loader)])
        offset = begins.min()
        assert 0 <= offset < LENGTH
        np.testing.assert_array_equal(np.sort(begins), np.arange(len(begins)) * LENGTH + offset)
        assert len(begins) == (len(text) - LENGTH + 1) // LENGTH
        assert not np.array_equal(begins, np.sort(begins))
        offsets.append(int(offset))
    assert len(set(offsets)) > 1
    again = DataLoader(TokenWindows(ds, length=LENGTH, stride=1), 64, order=RandomOffset(LENGTH), seed=4)
    assert starts[bytes(next(iter(again))["tokens"][0].numpy())] % LENGTH == offsets[0]
    with pytest.raises(ValueError, match="stride=1"):
        DataLoader(TokenWindows(ds, length=LENGTH), 4, order=RandomOffset(LENGTH))


@pytest.mark.parametrize("order", [None, RandomOffset(LENGTH)])
def test_windows_resume_at_every_world_size(ds: Dataset, order: Any) -> None:
    def loader(**options: Any) -> DataLoader:
        windows = TokenWindows(ds, length=LENGTH, stride=None if order is None else 1)
        return DataLoader(windows, global_batch_size=64, seed=1, shuffle=order is None, order=order, **options)

    whole = read_all(loader())
    first = loader(rank=0, world_size=1)
    batches = iter(first)
    head = [next(batches)["tokens"].numpy() for _ in range(5)]
    state = first.state_dict()
    ranks = []
    for rank in range(3):
        resumed = loader(rank=rank, world_size=3)
        resumed.load_state_dict(state)
        ranks.append([batch["tokens"].numpy() for batch in resumed])
    rest = [rank[step] for step in range(len(ranks[0])) for rank in ranks]
    np.testing.assert_array_equal(np.concatenate([*head, *rest]), whole)
    other = DataLoader(TokenWindows(ds, length=LENGTH + 1), global_batch_size=64, seed=1, shuffle=True)
    with pytest.raises(LoaderStateError):
        other.load_state_dict(state)


@pytest.mark.parametrize("kind", ["windows", "offsets", "packs"])
def test_batches_and_receipts_can_be_had_again(ds: Dataset, kind: str) -> None:
    order = RandomOffset(LENGTH) if kind == "offsets" else None
    windows = TokenWindows(ds, length=LENGTH, stride=1 if order else None)
    stream = TokenPacks(ds, length=LENGTH) if kind == "packs" else windows
    loader = DataLoader(stream, 64, shuffle=order is None, order=order, seed=3)
    for epoch in range(2):
        batches = list(loader)
        again = loader.batch_at(epoch, 4)
        assert all(torch.equal(again[name], batches[4][name]) for name in again)
    replay = Replay(loader.receipt(), lambda origin: source_of(stream))
    assert replay.verify().steps == 2 * len(loader)
    _, step = replay.step(1, 4)
    np.testing.assert_array_equal(source_of(stream).gather(step.rows)["tokens"], batches[4]["tokens"].numpy())


def test_windows_are_a_dataset_of_torch_too(ds: Dataset, docs: list[np.ndarray]) -> None:
    windows = pickle.loads(pickle.dumps(TokenWindows(ds, length=LENGTH)))  # noqa: S301
    np.testing.assert_array_equal(windows[-1]["tokens"], windows[len(windows) - 1]["tokens"])
    plain = torch.utils.data.DataLoader(windows, 16)
    np.testing.assert_array_equal(read_all(plain), read_all(DataLoader(windows, 16)))
    joined = DataLoader(windows, 16, collate_fn=lambda rows: torch.tensor(np.stack([row["tokens"] for row in rows])))
    np.testing.assert_array_equal(torch.cat(list(joined)).numpy(), read_all(plain))


def test_the_tokens_are_once_on_the_host(ds: Dataset, docs: list[np.ndarray], tmp_path: Path) -> None:
    cached = ds.cached(tmp_path / "cache", 64 << 20)
    one, other = FlatColumn(cached, "tokens"), FlatColumn(cached, "tokens")
    assert one.values is not None and other.values is not None
    assert one.values.base is not other.values.base
    assert not one.values.flags.writeable
    assert cached.chunks.cache.stats()["misses"] <= 2  # type: ignore[attr-defined]
    np.testing.assert_array_equal(other.values, np.concatenate(docs))


# -- packs -------------------------------------------------------------------------------------------------------------


def test_a_pack_is_whole_documents_with_their_boundaries(
    way: tuple[Dataset, dict[str, Any]], docs: list[np.ndarray]
) -> None:
    dataset, options = way
    packs = TokenPacks(dataset, length=LENGTH, fill=7, dtype="int64")
    found = []
    for batch in DataLoader(packs, 40, shuffle=True, seed=1, **options):
        tokens, segments, positions = (batch[name] for name in ("tokens", "segment_ids", "position_ids"))
        assert tokens.dtype == torch.int64 and segments.dtype == positions.dtype == torch.int32
        assert (tokens[segments == 0] == 7).all()
        for row in range(len(tokens)):
            for number in range(1, int(segments[row].max()) + 1):
                here = segments[row] == number
                assert positions[row][here].tolist() == list(range(int(here.sum())))
                found.append(tuple(tokens[row][here].tolist()))
    expected = [tuple(doc[at : at + LENGTH].tolist()) for doc in docs if len(doc) for at in range(0, len(doc), LENGTH)]
    assert sorted(found) == sorted(expected)
    offsets = np.concatenate([[0], np.cumsum([len(doc) for doc in docs])])
    assert len(packs) == len(pack_documents(offsets, LENGTH, "split")) and packs.waste < 0.05


def test_packs_are_a_dataset_of_torch_too(ds: Dataset) -> None:
    packs = pickle.loads(pickle.dumps(TokenPacks(ds, length=LENGTH, long="truncate")))  # noqa: S301
    plain = torch.utils.data.DataLoader(packs, 16)
    for name in ("tokens", "segment_ids"):
        np.testing.assert_array_equal(read_all(plain, name), read_all(DataLoader(packs, 16, columns=[name]), name))


def test_attention_within_a_pack_is_that_of_each_document_alone(ds: Dataset) -> None:
    batch = next(iter(DataLoader(TokenPacks(ds, length=64, dtype="int64"), 4, shuffle=True)))
    segments = batch["segment_ids"]
    embed = torch.nn.Embedding(65_536, 8)
    x = (embed(batch["tokens"]) + batch["position_ids"][..., None] / 64)[:, None]
    attend = torch.nn.functional.scaled_dot_product_attention
    packed = attend(x, x, x, attn_mask=attention_mask(segments))
    assert not packed.isnan().any()
    bounds, longest = cu_seqlens(segments)
    rows, flat = x.reshape(-1, 8), packed.reshape(-1, 8)
    ids = segments.reshape(-1)
    sizes = []
    for start, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
        assert len(ids[start:end].unique()) == 1 and start // 64 == (end - 1) // 64
        sizes.append(end - start)
        if ids[start]:
            alone = rows[None, None, start:end]
            torch.testing.assert_close(flat[start:end], attend(alone, alone, alone, is_causal=True)[0, 0])
    assert longest == max(sizes) and sum(sizes) == segments.numel() and bounds.dtype == torch.int32
    targets = next_tokens(batch["tokens"], segments)
    for row, column in np.ndindex(*targets.shape):
        last = column == 63 or segments[row, column] == 0 or segments[row, column + 1] != segments[row, column]
        assert targets[row, column] == (-100 if last else batch["tokens"][row, column + 1])


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_tokens_is_refused_by_name(ds: Dataset, store: Store, source_of: Make) -> None:
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: TokenWindows(ds, "text", length=4), "no column 'text'; it has id, tokens"),
        (
            lambda: TokenWindows(ds, "id", length=4),
            "column 'id' of dataset 'text' has type int64, not lists of numbers",
        ),
        (lambda: TokenWindows(ds, length=0), "length of windows must be at least 1 token"),
        (lambda: TokenWindows(ds, length=4, stride=0), "stride of windows"),
        (lambda: TokenPacks(ds, length=0), "length of packs"),
        (lambda: TokenPacks(ds, length=4, long="drop"), "long='drop'"),  # type: ignore[arg-type]
        (lambda: DataLoader(TokenWindows(ds, length=4), columns=["id"]), "windows of tokens have no column 'id'"),
        (lambda: DataLoader(TokenPacks(ds, length=4), columns=["id"]), "they have tokens, segment_ids, position_ids"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()
    table = pa.table({"id": [1, 2], "tokens": pa.array([[1, None], [2]], pa.list_(pa.int32()))})
    holes = write_dataset(store, "holes", source_of(table, ("id",)))
    with pytest.raises(SchemaError, match="column 'tokens' has nulls inside its lists"):
        len(TokenWindows(holes, length=1))


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint32()), pa.list_(pa.int64(), 3)])
def test_lists_of_every_kind_are_tokens(store: Store, source_of: Make, kind: pa.DataType) -> None:
    lists = [[1, 2, 3], None, [4, 5, 6]] if kind != pa.list_(pa.int64(), 3) else [[1, 2, 3], [0, 0, 0], [4, 5, 6]]
    table = pa.table({"id": [1, 2, 3], "t": pa.array(lists, kind)})
    dataset = write_dataset(store, "kinds", source_of(table, ("id",)))
    text = [token for some in lists if some for token in some]
    for options in ({}, COLD):
        found = read_all(DataLoader(TokenWindows(dataset, "t", length=2), 2, **options), "t")
        assert found.tolist() == np.array(text[: len(text) // 2 * 2]).reshape(-1, 2).tolist()


@pytest.mark.parametrize("arena", [None, 0])
@pytest.mark.parametrize("length", [1, 7, 17, 10_000])
def test_a_filled_last_window_brings_every_token_and_no_other(
    ds: Dataset, docs: list[np.ndarray], length: int, arena: int | None
) -> None:
    """Inputs and targets of a language model: windows of length + 1, length apart, tell every token but the first, once."""
    some = ds.select(np.arange(500))
    tokens = np.concatenate(docs[:500])
    windows = TokenWindows(some, length=length + 1, stride=length, fill=-1, dtype="int64", arena_bytes_max=arena)
    for batch_size in (7, 1000):
        found = torch.cat([batch["tokens"] for batch in DataLoader(windows, batch_size)])
        assert len(found) == len(windows)
        targets = found[:, 1:].flatten()
        assert targets[targets >= 0].tolist() == tokens[1:].tolist()
        assert (targets < 0).sum() < length
