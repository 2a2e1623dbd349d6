"""text.tokenise: tokens are the library's, and a tokenizer is known by its digest."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from operation_data import TEXTS, applied, texts

from leptonstore.dataset import write_dataset
from leptonstore.dataset.files import write_files
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput, RefMissing
from leptonstore.process.operations import tokenise
from leptonstore.process.operations.tokenise import Tokenise, train_tokenizer
from leptonstore.store import Store


def test_tokens_are_those_of_the_library_and_come_back_as_text(store: Store, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    ds = texts(store)
    place = tmp_path / "tokenizer.json"
    place.write_text(train_tokenizer(ds, "text", 300))
    oracle = Tokenizer.from_file(str(place))
    operation = Tokenise("text", str(place), end="<|endoftext|>").bound(ds, ds.schema)
    field = operation.output(ds.schema).field("tokens")
    assert semantic_of(field) == "tokens" and field.type == pa.list_(pa.int32())
    found = applied(operation, ds.to_arrow()).columns["tokens"].to_pylist()
    end = oracle.token_to_id("<|endoftext|>")
    for text, tokens in zip(TEXTS, found, strict=True):
        assert tokens == (None if text is None else [*oracle.encode(text).ids, end])
        assert text is None or oracle.decode(tokens) == text
    assert max(max(tokens) for tokens in found if tokens) < 300


def test_a_tokenizer_is_known_by_its_digest_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    ds = texts(store)
    made = train_tokenizer(ds, "text", 270)
    assert train_tokenizer(ds, "text", 270) == made
    (tmp_path / "folder").mkdir()
    place = tmp_path / "folder" / "tokenizer.json"
    place.write_text(made)
    write_dataset(store, "words", open_source(str(tmp_path / "folder"), format="files"))
    recipes = [
        Tokenise("text", where).bound(ds, ds.schema).recipe()
        for where in (str(place), "lepton://words@main/tokenizer.json")
    ]
    assert recipes[0] == recipes[1] and str(tmp_path) not in json.dumps(recipes[0])
    assert recipes[0]["libraries"]["tokenizers"]
    digest = recipes[0]["tokenizer"]
    assert Tokenise("text", str(place), digest=digest).bound(ds, ds.schema).recipe() == recipes[0]
    place.write_text(train_tokenizer(ds, "text", 260))
    with pytest.raises(BadInput, match="was asked for"):
        Tokenise("text", str(place), digest=digest).bound(ds, ds.schema)


def test_tokenizers_that_cannot_be_had_are_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = texts(store)
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    write_files(store, "dataset", "files", [("a.json", b"{}")], {})
    for where, kind, match in (
        (str(tmp_path / "none.json"), BadInput, "No such file"),
        (str(damaged), BadInput, "no tokenizer.json"),
        ("lepton://files@main/b.json", RefMissing, r"no file 'b.json'"),
        ("lepton://files@main/a.json", BadInput, "no tokenizer.json"),
        ("lepton://nothing@main/a.json", RefMissing, "nothing"),
    ):
        with pytest.raises(kind, match=match):
            Tokenise("text", where).bound(ds, ds.schema)
    damaged.write_text(train_tokenizer(ds, "text", 260))
    with pytest.raises(BadInput, match="no token '<s>'"):
        Tokenise("text", str(damaged), end="<s>").bound(ds, ds.schema)
    monkeypatch.setattr(tokenise, "TOKENIZER_BYTES_MAX", 100)
    with pytest.raises(BadInput, match="100 at most"):
        Tokenise("text", str(damaged)).bound(ds, ds.schema)


def test_a_text_that_is_too_long_fails_and_others_do_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = texts(store, ["a" * 50, "b", None, "c" * 51])
    place = tmp_path / "tokenizer.json"
    place.write_text(train_tokenizer(ds, "text", 257))
    monkeypatch.setattr(tokenise, "TEXT_BYTES_MAX", 50)
    monkeypatch.setattr(tokenise, "TOKENISE_BATCH_BYTES", 1)
    made = applied(Tokenise("text", str(place)).bound(ds, ds.schema), ds.to_arrow())
    assert set(made.failed) == {3} and "51 bytes" in made.failed[3]
    assert [None if row is None else len(row) for row in made.columns["tokens"].to_pylist()] == [50, 1, None, 0]
