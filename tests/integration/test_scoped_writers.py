"""A credential for one dataset, over the wire: its owner's work goes through, and no way leads to what other datasets hold."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.chunking import ChunkSizes
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.dataset.edit import append
from leptonstore.dataset.graph import read_commit
from leptonstore.digest import Digest, digest_of, parse_hex
from leptonstore.errors import ChunkMissing, LeptonError, NotFound, NotPermitted, RefMissing
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit, encode_commit
from leptonstore.store import RefUpdate, Store
from leptonstore.store.config import StoreConfig
from leptonstore.store.log import LogState
from leptonstore.testing.daemon import Served, running

SMALL = ChunkSizes(cut_above=65_536, min_size=4_096, avg_size=16_384, max_size=65_536)
LARGE = np.random.default_rng(3).bytes(500_000)  # in pieces
SECRET = np.random.default_rng(4).bytes(300_000)  # in pieces, too; of birds alone


class Place(NamedTuple):
    served: Served
    store: Store  # the owner's, on the daemon's host
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("scoped")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            patch.setenv(variable, str(folder / variable.lower()))
        with Store.create(folder / "store", StoreConfig(chunks=SMALL)) as store:
            write(store, "birds", [b"a bird", SECRET, LARGE])
            write(store, "fish", [b"a fish"])
            ring = TokenRing.of(store)
            tokens = {
                text: ring.add(text, [Grant.parse(text)])[1] for text in ("write:fish", "read:fish", "read:birds")
            }
            with running(folder / "store", in_process=True, cache_bytes=0) as served:
                yield Place(served, store, tokens)


@pytest.fixture
def fisher(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store as who may write fish has it."""
    monkeypatch.setenv("LEPTON_TOKEN", place.tokens["write:fish"])
    with Store.open(place.served.url) as opened:
        yield opened


def table_of(values: list[bytes], first: int = 0) -> pa.Table:
    return pa.table({"id": list(range(first, first + len(values))), "value": pa.array(values, pa.large_binary())})


def write(store: Store, name: str, values: list[bytes]) -> Dataset:
    table = table_of(values)
    return write_dataset(store, name, Source(table.schema, ("id",), lambda: iter(table.to_batches())))


def head_of(store: Store, name: str) -> str:
    store.refresh()
    return list_refs(store, "dataset", name)[0].commit


def publish(store: Store, ref: str, commit: str) -> None:
    def decide(state: LogState) -> tuple[RefUpdate, ...]:
        old = state.refs.get(ref)
        return (RefUpdate(ref, None if old is None else old.commit, commit),)

    store.publish("commit", decide)


def published(store: Store) -> dict[str, str]:
    store.refresh()
    return {name: record.commit for name, record in store.state.refs.items()}


def test_an_owner_s_work_goes_through_even_where_others_hold_the_same_bytes(place: Place, fisher: Store) -> None:
    made = write(fisher, "fish", [b"a fish", LARGE, b"x" * 100_000])
    append(made, table_of([b"one more", LARGE], 3))
    place.store.refresh()
    values = Dataset.open(place.store, "fish").to_arrow()["value"].to_pylist()
    assert values == [b"a fish", LARGE, b"x" * 100_000, b"one more", LARGE]
    assert Dataset.open(fisher, "fish").to_arrow()["value"].to_pylist() == values


def test_other_datasets_are_not_there(place: Place, fisher: Store) -> None:
    assert {name.split("/")[1] for name in fisher.state.refs} == {"fish"}
    with pytest.raises(RefMissing):
        Dataset.open(fisher, "birds")
    birds = head_of(place.store, "birds")
    for digest in (
        parse_hex(birds),
        digest_of(SECRET),
        *(piece for piece, _ in place.store.pieces(digest_of(SECRET)) or ()),
    ):
        assert not fisher.has(digest)
        with pytest.raises(ChunkMissing):
            fisher.get(digest)


def forged(place: Place, store: Store, how: str) -> str:
    """A version that `store` puts and that leads to birds."""
    birds = parse_hex(head_of(place.store, "birds"))
    mine, theirs = (read_commit(place.store, head_of(place.store, name)) for name in ("fish", "birds"))
    made: Commit = {
        "root": replace(mine, root=theirs.root, schema=theirs.schema, rows=theirs.rows),
        "parent": replace(mine, parents=(birds,)),
        "nowhere": replace(mine, root=digest_of(b"nowhere")),
    }[how]
    return store.put(encode_commit(made), lpk.CONTENT_META).hex()


@pytest.mark.parametrize("how", ["itself", "root", "parent", "nowhere"])
def test_a_version_that_leads_to_another_dataset_is_not_published(place: Place, fisher: Store, how: str) -> None:
    commit = head_of(place.store, "birds") if how == "itself" else forged(place, fisher, how)
    before = published(place.store)
    with pytest.raises(LeptonError) as refused:
        publish(fisher, "dataset/fish/main", commit)
    assert isinstance(refused.value, NotPermitted | NotFound), refused.value
    assert SECRET[:16] not in str(refused.value).encode() and "birds" not in str(refused.value)
    assert published(place.store) == before


def test_a_ref_of_another_dataset_does_not_move(place: Place, fisher: Store) -> None:
    before = published(place.store)
    for ref in ("dataset/birds/main", "dataset/birds/new", "model/birds/main", "dataset/other/main"):
        with pytest.raises(NotPermitted):
            publish(fisher, ref, head_of(place.store, "fish"))
    assert published(place.store) == before


def test_naming_a_piece_is_not_having_it(place: Place, fisher: Store) -> None:
    """The list [piece] has the piece's own digest: who may put it would be shown the piece."""
    piece, length = (place.store.pieces(digest_of(SECRET)) or ())[0]
    with pytest.raises(LeptonError):
        fisher.put_chunk_list(piece, [(piece, length)])
        fisher.flush()
    with pytest.raises(ChunkMissing):
        fisher.get(piece)


def test_bytes_that_are_put_again_are_the_putter_s(place: Place, fisher: Store) -> None:
    """Who has the bytes may publish them: another dataset's holding them, too, is no secret worth a refusal."""
    write(fisher, "fish", [SECRET])
    place.store.refresh()
    assert Dataset.open(place.store, "fish").to_arrow()["value"].to_pylist() == [SECRET]


def test_what_is_removed_is_seen_no_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    only = secrets.token_bytes(100)
    commit = write(place.store, "birds", [only]).commit
    birds: Digest = parse_hex(commit)
    monkeypatch.setenv("LEPTON_TOKEN", place.tokens["read:birds"])
    with Store.open(place.served.url) as reader:
        assert Dataset.open(reader, "birds").to_arrow()["value"].to_pylist() == [only]
        ref = "dataset/birds/main"
        place.store.publish("delete-ref", lambda state: (RefUpdate(ref, state.refs[ref].commit, None),))
        reader.refresh()
        with pytest.raises(RefMissing):
            Dataset.open(reader, "birds")
        assert not reader.has(birds)
