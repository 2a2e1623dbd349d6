"""Encrypted stores: what was put comes back with the right key and only with it, and nothing of it shows outside."""

from __future__ import annotations

import dataclasses
import getpass
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

pytest.importorskip("cryptography")

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.cli.group import lepton
from leptonstore.cli.runtime import run as run_group
from leptonstore.dataset import Dataset, Source, delete_ref, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.importers.file_listing import ListingMemory
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, Damaged, FormatDamaged, LeptonError, NotFound, WrongKey
from leptonstore.format import framed
from leptonstore.format import pack as lpk
from leptonstore.store import Store, check_store
from leptonstore.store.config import StoreConfig
from leptonstore.store.gc import collect
from leptonstore.store.keys import KeyFile, KeyFileAt, KeyRing, Passphrase, PassphraseFileAt, ScryptCost, Secret
from leptonstore.store.walk import walk

Make = Callable[..., Source]
SMALL = ScryptCost(n=16)
WORD = Passphrase(b"correct horse battery staple")
FILE = KeyFile(bytes(range(64)))
CHUNKS = ChunkSizes(cut_above=64 << 10, min_size=4 << 10, avg_size=16 << 10, max_size=64 << 10)


def make(path: Path, secret: Secret = WORD) -> Store:
    return Store.create(path, StoreConfig(chunks=CHUNKS), unlock=secret, cost=SMALL)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make(tmp_path / "store") as made:
        yield made


def values() -> list[bytes]:
    """Small texts that share a dictionary, incompressible bytes, floats, and a value that is cut into pieces."""
    rng = np.random.default_rng(1)
    words = [rng.bytes(4).hex() for _ in range(500)]
    many = rng.integers(0, 500, (400, 500)).tolist()
    texts = [json.dumps([words[at] for at in row]).encode() for row in many]  # of 5 KB: each a record
    texts += [text[:700] for text in texts]  # these share records
    return [*texts, rng.bytes(5000), rng.normal(size=4000).astype(np.float32).tobytes(), rng.bytes(300_000), b"", b"x"]


def files_of(*roots: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()}


# -- round trip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [WORD, FILE], ids=["passphrase", "key file"])
def test_everything_comes_back_in_this_process_and_after_reopening(tmp_path: Path, secret: Secret) -> None:
    plain = values()
    with make(tmp_path / "store", secret) as store:
        digests = [store.put(value, plane_width=4 if len(value) == 16_000 else 0) for value in plain]
        assert [store.get(digest) for digest in digests] == plain, "before anything is sealed"
        store.flush()
        assert [store.get(digest) for digest in digests] == plain
        meta = store.put(b"a node", lpk.CONTENT_META)
        store.flush()
    for cache in (None, tmp_path / "empty cache"):
        with Store.open(tmp_path / "store", cache, unlock=secret) as store:
            assert [store.get(digest) for digest in digests] == plain and store.get(meta) == b"a node"
            assert all(store.has(digest) and store.locate(digest) for digest in digests)
            assert store.put(plain[0]) == digests[0] and store.put(plain[-3]) == digests[-3]
            assert store.new_bytes == 0, "what the store has is found by its keyed name"
            assert check_store(store, read_data=True).clean
            rows = [row for pack in store.state.packs for row in store._footer_rows(pack)]
            assert {row.kind for row in rows} == {lpk.KIND_CHUNK, lpk.KIND_CHUNK_LIST, lpk.KIND_DICTIONARY}
            assert {row.codec for row in rows} == {lpk.CODEC_RAW, lpk.CODEC_ZSTD, lpk.CODEC_PLANES}
            assert any(row.is_member for row in rows), "every kind of record was sealed"


def test_two_stores_of_the_same_values_have_no_name_and_no_cut_in_common(tmp_path: Path) -> None:
    value, names, cuts = np.random.default_rng(2).bytes(1_000_000), [], []
    for name in ("a", "b"):
        with make(tmp_path / name) as store:
            store.put(value)
            store.flush()
            rows = [row for pack in store.state.packs for row in store._footer_rows(pack)]
            names.append({row.digest for row in rows})
            cuts.append(sorted(row.raw for row in rows if row.kind == lpk.KIND_CHUNK))
    assert not names[0] & names[1] and cuts[0] != cuts[1] and len(cuts[0]) > 20


# -- the wrong key -------------------------------------------------------------------------------------------------


def test_a_wrong_secret_says_so_and_a_missing_one_names_the_ways(tmp_path: Path) -> None:
    make(tmp_path / "word", WORD).close()
    make(tmp_path / "file", FILE).close()
    for name, secret, text in [
        ("word", Passphrase(b"Correct horse battery staple"), "wrong passphrase: it opens no key of"),
        ("word", FILE, "wrong key file: it opens no key of"),
        ("file", KeyFile(bytes(64)), "wrong key file: it opens no key of"),
        ("file", WORD, "wrong passphrase: it opens no key of"),
        ("word", None, "--passphrase-file, --key-file, or \\$LEPTON_PASSPHRASE"),
    ]:
        with pytest.raises(WrongKey, match=text):
            Store.open(tmp_path / name, unlock=secret)


def test_a_secret_for_a_store_that_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    """Or whoever holds the disk could swap an encrypted store for an open one, and wait for what is imported next."""
    Store.create(tmp_path / "open").close()
    for unlock in (WORD, FILE, KeyFileAt("nowhere")):
        with pytest.raises(BadInput, match="is not encrypted"):
            Store.open(tmp_path / "open", unlock=unlock)
    Store.open(tmp_path / "open", unlock=lambda: WORD).close()


def test_damage_is_told_apart_from_a_wrong_passphrase(tmp_path: Path) -> None:
    make(tmp_path / "store").close()
    (key,) = (tmp_path / "store" / "keys").iterdir()
    whole = key.read_bytes()
    for at in range(0, len(whole), 5):
        key.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FormatDamaged, match="none of its keys can be read"):
            Store.open(tmp_path / "store", unlock=WORD)
    key.unlink()
    with pytest.raises(FormatDamaged, match="keys/ is empty"):
        Store.open(tmp_path / "store", unlock=WORD)
    key.write_bytes(whole)
    with Store.open(tmp_path / "store", unlock=WORD):
        pass
    config = tmp_path / "store" / "config"
    body = framed.parse(config.read_bytes(), "config", "it")
    body["chunks"]["avg_size"] = 8192
    config.write_bytes(framed.encode("config", body, framed.FEATURE_ENCRYPTED_STORE))
    with pytest.raises(FormatDamaged, match="it was altered after"):
        Store.open(tmp_path / "store", unlock=WORD)
    del body["encryption"]
    config.write_bytes(framed.encode("config", body))
    with pytest.raises(BadInput, match="is not encrypted"):
        Store.open(tmp_path / "store", unlock=WORD)


# -- nothing leaks -------------------------------------------------------------------------------------------------


def _table() -> pa.Table:
    text = [f"the secret diary of row {at}, kept in the clear nowhere" for at in range(3000)]
    blob = [f"a longer secret, number {at}: ".encode() * 900 for at in range(3)]
    blob += [b"short secret"] * 2997
    return pa.table({"diary_column": text, "blob": pa.array(blob, pa.large_binary())})


def _fill(store: Store, source_of: Make) -> list[bytes]:
    """Publish two versions; returns every plain digest that they reach."""
    table = _table()
    for part in (table.slice(0, 2000), table):
        write_dataset(store, "secretname", source_of(part, ("diary_column",), origin="secretlineage"), "secretmessage")
    return sorted({reached.digest for ref in store.state.refs.values() for reached in walk(store, ref.commit)})


def test_no_byte_of_the_store_or_its_index_tells_content_names_or_digests(
    tmp_path: Path, source_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also searched in a store in the clear, where all of it is found: the search can fail."""
    monkeypatch.setattr(limits, "LOG_SNAPSHOT_EVERY", 2)
    monkeypatch.setenv("LOGNAME", "secretauthor")
    assert getpass.getuser() == "secretauthor"
    found: dict[str, set[str]] = {}
    for name in ("open", "sealed"):
        cache = tmp_path / f"{name} cache"
        made = Store.create(tmp_path / name, cache_dir=cache, unlock=WORD if name == "sealed" else None, cost=SMALL)
        with made as store:
            digests = _fill(store, source_of)
            during = files_of(tmp_path / name, cache)
        everything = b"\0".join([*during.values(), *files_of(tmp_path / name, cache).values()])
        assert list((tmp_path / name / "snapshots").iterdir()), "a snapshot is searched, too"
        words = [b"secret", b"diary", b"lepton.commit", b"correct horse", b'"refs"', b'"write_id"']
        shown = {word.decode() for word in words if word in everything}
        shown |= {"digest" for digest in digests if digest in everything}
        shown |= {"hex digest" for digest in digests if digest.hex().encode() in everything}
        found[name] = shown
        assert len(digests) > 10
    assert found["open"] >= {"secret", "digest", "hex digest", '"refs"', '"write_id"'}
    assert found["sealed"] == set()


def test_the_memory_of_an_imported_tree_tells_no_path(tmp_path: Path) -> None:
    """What an import keeps on this host to skip unchanged files is sealed, and does its work."""
    tree, shown = tmp_path / "tree", {}
    (tree / "secretfolder").mkdir(parents=True)
    for at in range(5):
        (tree / "secretfolder" / f"secretfile-{at}").write_bytes(bytes([at]) * 9000)
        os.utime(tree / "secretfolder" / f"secretfile-{at}", (1_500_000_000, 1_500_000_000))
    for name in ("open", "sealed"):
        cache = tmp_path / f"{name} cache"
        made = Store.create(tmp_path / name, cache_dir=cache, unlock=WORD if name == "sealed" else None, cost=SMALL)
        with made as store:
            write_dataset(store, "t", open_source(tree, "files"), "m")
            assert list(store.cache_path("trees").iterdir())
            (ref,) = store.state.refs
            memory = ListingMemory(store.cache_path("trees"), tree, ref, store.stored_name, store.sealer)
            found = memory.load(store.state.refs[ref].commit)
            assert found is not None and b"secretfolder/secretfile-3" in found.paths.to_pylist()
        shown[name] = b"secretf" in b"\0".join(files_of(tmp_path / name, cache).values())
    assert shown == {"open": True, "sealed": False}


def test_a_snapshot_of_an_encrypted_store_opens_it(
    tmp_path: Path, source_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_SNAPSHOT_EVERY", 1)
    with make(tmp_path / "store") as store:
        _fill(store, source_of)
        state = store.state
    with Store.open(tmp_path / "store", tmp_path / "cache", unlock=WORD) as store:
        assert store.state == state and store._log._from_snapshot() == state
        assert Dataset.open(store, "secretname").take([7])["diary_column"][0].as_py().startswith("the secret diary")


def test_garbage_collection_and_repack_seal_anew(tmp_path: Path, source_of: Make) -> None:
    """What is left reads, in packs that are sealed under keys of their own, and a lease that is held tells no commit."""
    table = _table()
    with make(tmp_path / "store") as store:
        for at in range(40):
            part = table.slice(20 * at, 20 * at + 20)
            write_dataset(store, f"d{at}", source_of(part, ("diary_column",)), "m")
        packs = set(store.state.packs)
        for at in range(20):
            delete_ref(store, "dataset", f"d{at}", "main")
        commit = store.state.refs["dataset/d39/main"].commit
        with store.lease(commit):
            leases = files_of(tmp_path / "store" / "leases")
            assert leases and not any(commit.encode() in data for data in leases.values())
            report = collect(store)
        assert report.repacked and report.packs_removed and report.live_bytes < report.stored_bytes
        assert len(set(store.state.packs) - packs) >= 1
        for pack in set(store.state.packs) - packs:
            assert lpk.parse_header(store.tier.read(pack, 0, 128)).encrypted
    with Store.open(tmp_path / "store", tmp_path / "cache", unlock=WORD) as store:
        assert check_store(store, read_data=True).clean and len(store.state.refs) == 20
        for at in range(20, 40):
            dataset = Dataset.open(store, f"d{at}")
            assert dataset.take(np.arange(20)).column("diary_column").to_pylist() == (
                table.slice(20 * at, 20).column("diary_column").to_pylist()
            )


# -- tampering -----------------------------------------------------------------------------------------------------


def _verdict(root: Path, cache: Path) -> bool:
    """Whether everything in the store at `root` can be opened and read."""
    try:
        with Store.open(root, cache, unlock=WORD) as store:
            report = check_store(store, read_data=True)
            return report.clean and not store.damaged_packs
    except LeptonError:
        return False
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def test_any_altered_byte_is_noticed(tmp_path: Path, source_of: Make) -> None:
    """Of packs, the log, the config and the keys: every 37th byte and the first 200 of each file."""
    root, cache = tmp_path / "store", tmp_path / "other cache"
    with make(root) as store:
        write_dataset(store, "t", source_of(_table().slice(0, 5).drop_columns(["blob"]), ("diary_column",)), "m")
    assert _verdict(root, cache)
    tried = set()
    for path, whole in files_of(root).items():
        kind = path.relative_to(root).parts[0]
        if kind not in ("packs", "log", "config", "keys"):
            assert kind in ("HEAD", "reserve", "writers"), "a file that nothing needs"
            continue
        tried.add(kind)
        for at in (*range(0, min(200, len(whole)), 3), *range(200, len(whole), 37)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            assert not _verdict(root, cache), (kind, at, whole[at])
        path.write_bytes(whole)
    assert tried == {"packs", "log", "config", "keys"} and _verdict(root, cache)


def _rebuild(root: Path, pack: str, change: Callable[[bytes, list[tuple[lpk.RecordHeader, bytes]]], bytes]) -> None:
    """Rewrite a pack as an attacker without the key would: records changed, every unkeyed check made to fit again."""
    (path,) = root.rglob(f"{pack}.pack")
    data = path.read_bytes()
    rows = sorted(lpk.salvage(data), key=lambda row: row.offset)
    records = [(lpk.parse_record(data[row.offset : row.end])[0], data[row.offset + 64 : row.end]) for row in rows]
    header = change(data[:128], records)
    out, new_rows = bytearray(header), []
    for record, payload in records:
        new_rows.append(lpk.FooterRow(record.digest, len(out), len(payload), record.raw, *record[:5]))
        out += lpk.encode_record(record, zlib.crc32(payload)) + payload
    out += lpk.encode_end(header, new_rows, len(out))
    path.write_bytes(out)


@pytest.fixture
def two_packs(tmp_path: Path) -> tuple[Path, list[str], list[bytes]]:
    """A store of two packs of three records of one length each."""
    rng, digests = np.random.default_rng(3), []
    with make(tmp_path / "store") as store:
        for _ in range(2):
            digests += [store.put(rng.bytes(5000)) for _ in range(3)]
            store.flush()
        packs = [store.locate(digests[at]).pack for at in (0, 3)]
    return tmp_path / "store", packs, digests


def _readable(root: Path, cache: Path, digests: list[bytes]) -> list[bool]:
    out = []
    with Store.open(root, cache, unlock=WORD) as store:
        assert not store.damaged_packs, "every check that needs no key was made to fit"
        for digest in digests:
            try:
                assert digest_of(store.get(digest)) == digest
                out.append(True)
            except Damaged as error:
                assert "its seal does not fit" in str(error) or "is not one that this encrypted store" in str(error)
                out.append(False)
    return out


def test_a_rebuilt_pack_that_is_not_changed_still_reads(two_packs: tuple[Path, list[str], list[bytes]]) -> None:
    root, packs, digests = two_packs
    _rebuild(root, packs[0], lambda header, records: header)
    assert _readable(root, root.parent / "c", digests) == [True] * 6


def test_swapped_records_are_noticed(two_packs: tuple[Path, list[str], list[bytes]]) -> None:
    """Whole records in each other's place, with footer, CRCs and checks recomputed: the offset is in the seal."""
    root, packs, digests = two_packs

    def swap(header: bytes, records: list[tuple[lpk.RecordHeader, bytes]]) -> bytes:
        records[0], records[1] = records[1], records[0]
        return header

    _rebuild(root, packs[0], swap)
    assert _readable(root, root.parent / "c", digests) == [False, False, True, True, True, True]


def test_swapped_payloads_are_noticed(two_packs: tuple[Path, list[str], list[bytes]]) -> None:
    """Payloads under each other's header: the header is in the seal."""
    root, packs, digests = two_packs

    def swap(header: bytes, records: list[tuple[lpk.RecordHeader, bytes]]) -> bytes:
        (first, a), (second, b) = records[:2]
        records[:2] = [(first, b), (second, a)]
        return header

    _rebuild(root, packs[0], swap)
    assert _readable(root, root.parent / "c", digests) == [False, False, True, True, True, True]


def test_another_pack_under_this_name_is_noticed(two_packs: tuple[Path, list[str], list[bytes]]) -> None:
    """One pack's records under the other's header, and a header that claims to need no key."""
    root, packs, digests = two_packs
    (other,) = root.rglob(f"{packs[1]}.pack")
    kept = {path: path.read_bytes() for path in root.rglob("*.pack")}

    def transplant(header: bytes, records: list[tuple[lpk.RecordHeader, bytes]]) -> bytes:
        rows = sorted(lpk.salvage(kept[other]), key=lambda row: row.offset)
        for at, row in enumerate(rows):
            data = kept[other][row.offset : row.end]
            records[at] = (lpk.parse_record(data)[0], data[64:])
        return header

    _rebuild(root, packs[0], transplant)
    other.write_bytes(b"")
    with Store.open(root, root.parent / "c", unlock=WORD) as store:
        for digest in digests:
            with pytest.raises(LeptonError):
                store.get(digest)
    for path, data in kept.items():
        path.write_bytes(data)

    def claim_open(header: bytes, records: list[tuple[lpk.RecordHeader, bytes]]) -> bytes:
        old = lpk.parse_header(header)
        return lpk.PackHeader(old.content, old.store_id, old.pack_id, old.salt).encode()

    _rebuild(root, packs[0], claim_open)
    assert _readable(root, root.parent / "d", digests) == [False] * 3 + [True] * 3


# -- keys ----------------------------------------------------------------------------------------------------------


def test_keys_are_added_removed_and_rotated_and_the_last_one_stays(tmp_path: Path) -> None:
    root, other = tmp_path / "store", Passphrase(b"another one")
    with make(root) as store:
        digest = store.put(b"kept through all of it")
        store.flush()
        ring = KeyRing(store.home, store.config.store_id, store.url)
        master, first = store.unlocked.keys.master, store.unlocked.key_id
        with pytest.raises(BadInput, match="is the last key"):
            ring.remove(first)
        file_key = ring.add(master, FILE, "vault")
        assert [key.id for key in ring.all()] == [first, file_key.id]
        assert ring.find("vault") == ring.find(file_key.id[:8]) == file_key
        with pytest.raises(NotFound, match="lepton key ls"):
            ring.find("nothing")
        packs = files_of(root / "packs")
        new = ring.rotate(master, first, other, SMALL)
        assert files_of(root / "packs") == packs, "rotation touches no data"
    with pytest.raises(WrongKey):
        Store.open(root, unlock=WORD)
    for secret in (other, FILE):
        with Store.open(root, unlock=secret) as store:
            assert store.get(digest) == b"kept through all of it"
    with Store.open(root, unlock=FILE) as store:
        ring.remove(new.id)
        with pytest.raises(BadInput, match="is the last key"):
            ring.remove(file_key.id)
    with pytest.raises(WrongKey):
        Store.open(root, unlock=other)


def test_rotation_makes_the_new_key_durable_before_the_old_one_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash at the worst moment leaves both."""
    ring = KeyRing(store.home, store.config.store_id, store.url)

    def crash(name: str) -> None:
        assert len(ring.all()) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(store.home, "delete_document", crash)
    with pytest.raises(KeyboardInterrupt):
        ring.rotate(store.unlocked.keys.master, store.unlocked.key_id, FILE)
    for secret in (WORD, FILE):
        Store.open(store.url, unlock=secret).close()


def test_a_key_of_another_store_is_passed_over(tmp_path: Path) -> None:
    """What a crash between the first key and the config leaves, and a key that somebody moved here."""
    make(tmp_path / "a").close()
    root = tmp_path / "b"
    shutil.copytree(tmp_path / "a" / "keys", root / "keys")
    with make(root, Passphrase(b"of b")) as store:
        assert len(list((root / "keys").iterdir())) == 2
        assert len(KeyRing(store.home, store.config.store_id, store.url).all()) == 1
    with pytest.raises(WrongKey):
        Store.open(root, unlock=WORD)


# -- processes -----------------------------------------------------------------------------------------------------


def _row(dataset: Dataset) -> str:
    return str(dataset[3]["diary_column"])


def _try_row(dataset: Dataset, results: object) -> None:
    try:
        results.put(_row(dataset))  # type: ignore[attr-defined]
    except WrongKey as error:
        results.put(f"WrongKey: {error}")  # type: ignore[attr-defined]


def _in_process(method: str, dataset: Dataset) -> str:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=_try_row, args=(dataset, results))
    process.start()
    answer = results.get(timeout=60)
    process.join(60)
    return str(answer)


def test_worker_processes_read_and_no_key_is_pickled(tmp_path: Path, source_of: Make) -> None:
    """Forked ones inherit what is open. Spawned ones read the file again, when there is one, and else say what is missing."""
    (tmp_path / "word").write_bytes(WORD.secret + b"\n")
    make(tmp_path / "store").close()
    for unlock in (WORD, PassphraseFileAt(str(tmp_path / "word"))):
        with Store.open(tmp_path / "store", unlock=unlock) as store:
            if unlock is WORD:
                _fill(store, source_of)
            dataset = Dataset.open(store, "secretname")
            expected = _row(dataset)
            data = pickle.dumps(dataset)
            assert WORD.secret not in data and store.unlocked.keys.master not in data
            again = pickle.loads(data)  # noqa: S301
            assert _row(again) == expected, "in the process that has it open"
            again.store.close()
            assert _in_process("fork", pickle.loads(data)) == expected  # noqa: S301
            spawned = _in_process("spawn", dataset)
            if unlock is WORD:
                assert "this process has no key" in spawned and "PassphraseFileAt" in spawned
            else:
                assert spawned == expected
    with pytest.raises(WrongKey):
        Dataset.open(tmp_path / "store", "secretname")


# -- command line --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Done:
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`lepton ARGUMENTS`, in the test's directory and without a terminal; keywords are environment variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path, code: int = 0, **env: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            found = run_group(lepton, [str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert found == code, (arguments, found, shown)
        return Done(shown.out, shown.err)

    yield call
    signal.signal(signal.SIGTERM, handler)


def test_import_check_and_export_on_the_command_line(tmp_path: Path, run: Run) -> None:
    pacsv.write_csv(_table().drop_columns(["blob"]), tmp_path / "t.csv")
    word = {"LEPTON_PASSPHRASE": "open sesame"}
    run("init", "--encrypt", "--scrypt-cost", "10", **word)
    done = run("import", "t.csv", "diary", "--json", **word)
    assert json.loads(done.stdout)["rows"] == 3000
    assert json.loads(run("check", "--read-data", "--json", **word).stdout)["clean"]
    run("export", "diary", "back.csv", **word)
    assert pacsv.read_csv(tmp_path / "back.csv").num_rows == 3000
    for arguments, env, text in [
        (("ls",), {}, "set $LEPTON_PASSPHRASE"),
        (("ls",), {"LEPTON_PASSPHRASE": "open barley"}, "wrong passphrase: it opens no key of"),
        (("ls", "--passphrase-file", tmp_path / "t.csv"), word, "wrong passphrase: it opens no key of"),
    ]:
        stderr = run(*arguments, code=10, **env).stderr
        assert text in stderr and stderr.count("\n") == 1, stderr
    run("ls", "--passphrase-file", "missing", code=2)
    run("ls", "--passphrase-file", "a", "--key-file", "b", code=2)


def test_key_commands(tmp_path: Path, run: Run) -> None:
    (tmp_path / "old").write_text("open sesame\n")
    (tmp_path / "new").write_text("new sesame\n")
    old, new = ("--passphrase-file", "old"), ("--new-passphrase-file", "new")
    run("init", "--encrypt", *old, "--scrypt-cost", "10")
    (first,) = json.loads(run("key", "ls", "--json").stdout)["keys"]
    assert (first["kind"], first["n"], first["r"], first["p"]) == ("scrypt", 1024, 8, 1)
    assert "is the last key" in run("key", "rm", first["id"], *old, code=2).stderr
    run("key", "add", *old, "--new-key-file", "vault.key", "--label", "vault")
    assert (tmp_path / "vault.key").stat().st_mode & 0o777 == 0o600
    run("key", "rotate", *old, *new, "--scrypt-cost", "10")
    run("ls", *old, code=10)
    run("ls", "--passphrase-file", "new")
    run("ls", LEPTON_KEY_FILE="vault.key")
    listed = run("key", "ls").stdout
    assert len(listed.splitlines()) == 2 and "vault" in listed and first["id"][:12] not in listed
    run("key", "rm", "vault", LEPTON_PASSPHRASE_FILE="new")
    run("ls", "--key-file", "vault.key", code=10)
    run("key", "rm", "vault", code=3, LEPTON_PASSPHRASE="new sesame")


def test_a_key_file_is_made_for_a_new_store(tmp_path: Path, run: Run) -> None:
    assert "made the key file" in run("init", "--encrypt", "--key-file", "k").stderr
    assert (tmp_path / "k").stat().st_size == 32
    run("ls", "--key-file", "k")
    assert "add --encrypt" in run("init", "x", "--key-file", "k", code=2).stderr
    run("init", "x", LEPTON_KEY_FILE="k")
    run("ls", "--store", "x", LEPTON_KEY_FILE="k")
    assert "is not encrypted" in run("ls", "--store", "x", "--key-file", "k", code=2).stderr
    run("key", "ls", "--store", "x", code=2)


# -- without the package ---------------------------------------------------------------------------------------------


def test_a_store_that_is_not_encrypted_needs_no_cryptography(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    make(tmp_path / "sealed").close()
    hide = "import sys; sys.modules['cryptography'] = None; from leptonstore.cli import main; main()"

    def hidden(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-c", hide, *arguments]
        env = {**os.environ, "LEPTON_PASSPHRASE": "x"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == code, done.stderr
        return done.stderr

    hidden("init")
    hidden("import", "t.csv", "t")
    hidden("check", "--read-data")
    assert 'pip install "leptonstore[crypto]"' in hidden("ls", "--store", "sealed", code=8)
    assert 'pip install "leptonstore[crypto]"' in hidden("init", "new", "--encrypt", code=8)
