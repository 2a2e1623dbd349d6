"""Text becomes tokens in a store, and loaders and trainers take them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("torch")

from task_data import write_table

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import text_field
from leptonstore.process.operation import RowOperation
from leptonstore.process.operations.tokenise import Tokenise, train_tokenizer
from leptonstore.store import Store
from loaders import DataLoader, TokenPacks, TokenWindows
from trainers.config import DataConfig
from trainers.tasks import LanguageModelling

TEXTS = [" ".join(["alpha", "beta", "gamma", "delta"][: at % 5]) * (1 + at % 7) for at in range(80)]


@pytest.fixture
def tokens(store: Store, tmp_path: Path) -> Dataset:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), text_field("text", nullable=False)])
    ds = write_table(store, "texts", schema, [pa.array(range(80)), pa.array(TEXTS)], "id")
    place = tmp_path / "tokenizer.json"
    place.write_text(train_tokenizer(ds, "text", 280))
    operation = Tokenise("text", str(place), end="<|endoftext|>").bound(ds, ds.schema)
    assert isinstance(operation, RowOperation)
    batch = ds.to_arrow(operation.reads(ds.schema)).combine_chunks().to_batches()[0]
    made = operation.apply(batch).columns["tokens"]
    field = operation.output(ds.schema).field("tokens")
    return write_table(store, "tokens", pa.schema([schema.field("id"), field]), [pa.array(range(80)), made], "id")


def test_packs_and_windows_have_all_tokens(tokens: Dataset) -> None:
    whole = [token for row in tokens.to_arrow(["tokens"]).column(0).to_pylist() for token in row]
    windows = TokenWindows(tokens, length=16, fill=0)
    found = np.concatenate([windows[at]["tokens"] for at in range(len(windows))])
    assert found[: len(whole)].tolist() == whole
    batch = next(iter(DataLoader(TokenPacks(tokens, length=64, dtype="int64"), 4)))
    assert batch["tokens"].shape == (4, 64) and int(batch["tokens"].max()) < 280


def test_a_language_model_knows_the_vocabulary(tokens: Dataset) -> None:
    task = LanguageModelling.of(tokens, DataConfig(inputs="tokens", sequence_length=8))
    assert (
        task.vocabulary == max(token for row in tokens.to_arrow(["tokens"]).column(0).to_pylist() for token in row) + 1
    )
    task.require_fits(tokens)
