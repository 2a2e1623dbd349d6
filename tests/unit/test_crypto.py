"""Sealing: known answers, so that no later version seals or names differently, and every alteration noticed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import pickle

import pytest

pytest.importorskip("cryptography")

from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from leptonstore import crypto
from leptonstore.chunking import Chunker, ChunkSizes
from leptonstore.crypto import TAG_BYTES, StoreKeys
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, WrongKey
from leptonstore.format import framed
from leptonstore.format import pack as lpk
from leptonstore.store.config import StoreConfig, parse_config
from leptonstore.store.keys import Key, KeyFile, Passphrase, ScryptCost, parse_key

MASTER, STORE, SALT, PACK = bytes(range(32)), bytes(range(16)), bytes(range(100, 132)), bytes(range(16, 32))
DIGEST = digest_of(b"hello")
SMALL = ScryptCost(n=16)


@pytest.fixture
def keys() -> StoreKeys:
    return StoreKeys(MASTER, STORE)


def record(keys: StoreKeys, plain: bytes) -> lpk.RecordHeader:
    name = keys.name(digest_of(plain))
    return lpk.RecordHeader(lpk.KIND_CHUNK, 0, 0, 0, lpk.DICTIONARY_NONE, len(plain) + TAG_BYTES, len(plain), name)


def test_what_is_derived_from_a_master_key_never_changes(keys: StoreKeys) -> None:
    """Pinned: a change here would make every encrypted store unreadable."""
    assert keys.name(DIGEST).hex() == "b13880b61b47b8f97ed9987990369687d58e4136555c00fc599a1cb1d0b7a5b1"
    assert keys.check(b"config").hex() == "930665cd2292f52af0299f421e52fcd5c188b21b942d6a8866a2a259f32f3168"
    assert keys.chunking_seed == 7993135102526306123
    plain = b"hello"
    sealed = keys.pack(SALT, PACK).seal(record(keys, plain), 128, plain)
    assert sealed.hex() == "74db15dbd6e6dadfb229591bb5385023c54b446bde"
    key = Key("0" * 32, "scrypt", "label", 1, STORE, SALT, SMALL).wrap(MASTER, Passphrase(b"correct horse"))
    assert (
        key.wrapped.hex()
        == "2ae3b2f059a2169cdbf62c938196e99985f43eb4ae6f379494f0e15a2ea33f831bc8990eb71a4a54d25f609dcd5e8427"
    )
    key = Key("0" * 32, "key-file", "", 1, STORE, SALT, None).wrap(MASTER, KeyFile(bytes(range(64))))
    assert (
        key.wrapped.hex()
        == "91d9356079b6bc70e053feca6d06301b546a59ebdce54e50fcb53a6e700e6f73e7b5601a1e7ffe6ddd5b175beba7ae22"
    )


def test_the_seal_is_what_the_document_says(keys: StoreKeys) -> None:
    """Opened with nothing of ours: HKDF, the offset as nonce, the header's first 60 bytes beside it."""

    def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
        return HKDF(hashes.SHA256(), 32, salt, info).derive(secret)

    plain = b"some plain bytes" * 9
    header = record(keys, plain)
    sealed = keys.pack(SALT, PACK).seal(header, 4711, plain)
    stored = lpk.encode_record(header, 0) + sealed
    nonce = (4711).to_bytes(12, "little")
    assert AESGCM(hkdf(MASTER, SALT, b"lepton pack" + PACK)).decrypt(nonce, stored[64:], stored[:60]) == plain
    assert header.digest == blake3(digest_of(plain), key=hkdf(MASTER, STORE, b"lepton names")).digest()
    document = keys.documents.encode("log", {"a": 1})
    line, body = document.split(b"\n", 1)
    key = hkdf(hkdf(MASTER, STORE, b"lepton documents"), body[:32], b"lepton document")
    assert line.startswith(b"lepton-log 1.0 00000001 ")
    assert AESGCM(key).decrypt(bytes(12), body[32:], line[:23]) == b'{"a":1}'
    config = framed.parse(StoreConfig(STORE).encrypted_by(keys).encode(), "config", "it")
    check = config["encryption"].pop("check")
    assert check == blake3(framed.canonical_json(config), key=hkdf(MASTER, STORE, b"lepton check")).hexdigest()
    for secret, cost in ((Passphrase(b"word"), SMALL), (KeyFile(SALT), None)):
        made = Key("ab" * 16, "scrypt" if cost else "key-file", "l", 1, STORE, SALT, cost).wrap(MASTER, secret)
        told = json.loads(made.encode().split(b"\n", 1)[1])
        wrapped = bytes.fromhex(told.pop("wrapped"))
        data = b"lepton-key 1.0 00000000" + json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
        stretched = hashlib.scrypt(b"word", salt=SALT, n=16, r=8, p=1, dklen=32)
        key = stretched if cost else hkdf(SALT, SALT, b"lepton key file")
        assert AESGCM(key).decrypt(bytes(12), wrapped, data) == MASTER


def test_rfc_vectors() -> None:
    """RFC 5869 A.1 and RFC 7914 section 12: our wrappers pass the parameters in the right places."""
    okm = crypto.hkdf(bytes([11] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    key = crypto.scrypt(b"pleaseletmein", b"SodiumChloride", 16384, 8, 1)
    assert key.hex().startswith("7023bdcb3afd7348461c06cd81fd38eb")


def test_every_altered_bit_of_a_sealed_record_is_noticed(keys: StoreKeys) -> None:
    plain, cipher = b"hello", keys.pack(SALT, PACK)
    header = record(keys, plain)
    sealed = cipher.seal(header, 128, plain)
    assert cipher.open(header, 128, sealed) == plain
    assert cipher.seal(header, 128, memoryview(plain).cast("b")) == sealed, "any view of bytes will do"
    for bit in range(8 * len(sealed)):
        bad = bytearray(sealed)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatDamaged, match="seal does not fit"):
            cipher.open(header, 128, bad)
    for field, value in header._asdict().items():
        other = bytes(32) if isinstance(value, bytes) else value ^ 1
        with pytest.raises(FormatDamaged, match="seal does not fit"):
            cipher.open(header._replace(**{field: other}), 128, sealed)
    for elsewhere in (0, 64, 129, 128 + (1 << 32)):
        with pytest.raises(FormatDamaged, match="seal does not fit"):
            cipher.open(header, elsewhere, sealed)
    for other_pack in (keys.pack(SALT[::-1], PACK), keys.pack(SALT, STORE), StoreKeys(SALT, STORE).pack(SALT, PACK)):
        with pytest.raises(FormatDamaged, match="seal does not fit"):
            other_pack.open(header, 128, sealed)
    with pytest.raises(FormatDamaged, match="fewer than its tag"):
        cipher.open(header, 128, sealed[:15])


def test_two_packs_two_places_and_two_stores_seal_differently(keys: StoreKeys) -> None:
    plain = bytes(64)
    header = record(keys, plain)
    seals = [
        keys.pack(SALT, PACK).seal(header, 128, plain),
        keys.pack(SALT, PACK).seal(header, 192, plain),
        keys.pack(SALT[::-1], PACK).seal(header, 128, plain),
        keys.pack(SALT, STORE).seal(header, 128, plain),
        StoreKeys(SALT, STORE).pack(SALT, PACK).seal(header, 128, plain),
    ]
    assert len({sealed[:64] for sealed in seals}) == len(seals)
    assert StoreKeys(MASTER, PACK).name(DIGEST) != keys.name(DIGEST) != DIGEST


def test_every_altered_byte_of_a_sealed_document_is_noticed(keys: StoreKeys) -> None:
    documents, body = keys.documents, {"name": "secret-name", "n": [1, 2]}
    data = documents.encode("log", body)
    assert b"secret" not in data and documents.parse(data, "log", "it") == body
    assert documents.encode("log", body) != data, "each document has a key of its own"
    for at in range(len(data)):
        for flip in (1, 0x80):
            bad = bytearray(data)
            bad[at] ^= flip
            with pytest.raises((FormatDamaged, FormatTooNew)):
                documents.parse(bytes(bad), "log", "it")
    with pytest.raises(FormatDamaged, match="does not begin as"):
        documents.parse(data, "snapshot", "it")
    forged = framed.frame("snapshot", data.split(b"\n", 1)[1], framed.FEATURE_SEALED)
    with pytest.raises(FormatDamaged, match="seal does not fit"):
        documents.parse(forged, "snapshot", "it")
    with pytest.raises(FormatDamaged, match="is not sealed"):
        documents.parse(framed.encode("log", body), "log", "it")
    with pytest.raises(FormatDamaged, match="its store is not encrypted"):
        framed.parse(data, "log", "it")


def test_an_older_reader_refuses_sealed_documents_by_their_features(keys: StoreKeys) -> None:
    """What 1.0 of before knows is no feature at all: it looks at the eight digits and refuses."""
    assert int(keys.documents.encode("log", {}).split()[2], 16) == framed.FEATURE_SEALED
    assert int(StoreConfig(STORE).encrypted_by(keys).encode().split()[2], 16) == framed.FEATURE_ENCRYPTED_STORE
    assert int(StoreConfig(STORE).encode().split()[2], 16) == 0


def test_the_config_tells_another_key_and_an_altered_setting(keys: StoreKeys) -> None:
    config = StoreConfig(STORE).encrypted_by(keys)
    again = parse_config(config.encode(), "config")
    assert again == config
    again.require_keys(keys, "config")
    body = framed.parse(config.encode(), "config", "it")
    for wrong in (
        {"chunks": {**body["chunks"], "avg_size": 300_000}},
        {"zstd_level": 4},
        {"store_id": PACK.hex()},
        {"encryption": {**body["encryption"], "check": "00" * 32}},
        {"encryption": {**body["encryption"], "more": 1}},
        {"of_a_later_version": 1},
    ):
        altered = parse_config(framed.encode("config", {**body, **wrong}), "config")
        with pytest.raises(FormatDamaged, match="it was altered after the store was made"):
            altered.require_keys(keys, "config")
    later = {**body, "of_a_later_version": 1, "encryption": {"cipher": "aes-256-gcm", "kdf": "hkdf-sha256"}}
    later["encryption"] |= {"check": keys.check(framed.canonical_json(later)).hex()}
    parse_config(framed.encode("config", later), "config").require_keys(keys, "config")
    with pytest.raises(FormatDamaged):
        config.require_keys(StoreKeys(SALT, STORE), "config")
    body["encryption"]["cipher"] = "rot13"
    with pytest.raises(FormatTooNew, match="cipher 'rot13'"):
        parse_config(framed.encode("config", body), "it")


def test_a_key_document_opens_with_its_secret_only(keys: StoreKeys) -> None:
    empty = Key("0" * 32, "scrypt", "café", 1, STORE, SALT, SMALL)
    key = parse_key(empty.wrap(MASTER, Passphrase("café".encode())).encode(), "0" * 32, "it")
    assert key.unwrap(Passphrase("cafe\u0301".encode())) == MASTER, "the same text in another normal form"
    assert key.unwrap(Passphrase(b"cafe")) is None
    assert key.unwrap(KeyFile(bytes(32))) is None
    assert dataclasses.replace(key, label="other").unwrap(Passphrase("café".encode())) is None
    assert dataclasses.replace(key, store_id=PACK).unwrap(Passphrase("café".encode())) is None
    key = Key("0" * 32, "key-file", "", 1, STORE, SALT, None).wrap(MASTER, KeyFile(MASTER))
    assert key.unwrap(KeyFile(MASTER)) == MASTER and key.unwrap(KeyFile(SALT)) is None


def test_every_altered_byte_of_a_key_document_is_noticed() -> None:
    secret = KeyFile(bytes(32))
    data = Key("0" * 32, "key-file", "label", 1, STORE, SALT, None).wrap(MASTER, secret).encode()
    assert parse_key(data, "0" * 32, "it").unwrap(secret) == MASTER
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises((FormatDamaged, FormatTooNew)):
            parse_key(bytes(bad), "0" * 32, "it")
    for length in range(0, len(data), 7):
        with pytest.raises(FormatDamaged):
            parse_key(data[:length], "0" * 32, "it")
    with pytest.raises(FormatDamaged):
        parse_key(data, "1" * 32, "it")


@pytest.mark.parametrize(
    "cost", [(1 << 24, 8, 1), (1 << 17, 1024, 1), (1 << 17, 8, 64), (3, 8, 1), (16, 0, 1), (1, 8, 1)]
)
def test_a_key_document_cannot_ask_for_much_memory_or_time(cost: tuple[int, int, int]) -> None:
    """Refused while it is parsed: nothing is allocated."""
    data = Key("0" * 32, "scrypt", "", 1, STORE, SALT, ScryptCost(*cost), bytes(48)).encode()
    with pytest.raises(FormatDamaged, match="scrypt cost"):
        parse_key(data, "0" * 32, "it")
    with pytest.raises(BadInput, match="scrypt cost"):
        crypto.scrypt(b"x", SALT, *cost)


def test_no_key_and_no_secret_is_ever_pickled_copied_or_printed(keys: StoreKeys) -> None:
    for secret in (keys, keys.documents, Passphrase(b"hunter22"), KeyFile(MASTER)):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(secret)
        with pytest.raises(TypeError, match="never pickled"):
            copy.deepcopy(secret)
        assert "hunter22" not in repr(secret) and "\\x01\\x02" not in repr(secret)


def test_empty_and_short_secrets_are_refused() -> None:
    with pytest.raises(BadInput, match="empty"):
        Passphrase(b"")
    with pytest.raises(BadInput, match="32 to"):
        KeyFile(b"too short")
    assert issubclass(WrongKey, BadInput)


def test_cuts_depend_on_the_key_and_on_nothing_else() -> None:
    sizes = ChunkSizes(cut_above=1024, min_size=64, avg_size=1024, max_size=4096)
    data = b"".join(digest_of(bytes([n % 256, n // 256])) for n in range(4096))
    seeds = [0, StoreKeys(MASTER, STORE).chunking_seed, StoreKeys(SALT, STORE).chunking_seed]
    cuts = [[len(piece) for piece in Chunker(sizes, seed).cut(data)] for seed in seeds]
    assert len({tuple(lengths) for lengths in cuts}) == 3
    assert [len(piece) for piece in Chunker(sizes, seeds[1]).cut(data)] == cuts[1]
