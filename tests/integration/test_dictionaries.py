"""Small similar records share a dictionary, kept once in each pack that uses it; and what lies about dictionaries is told."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bench.records import events
from leptonstore import codec, limits
from leptonstore.codec import Dictionary
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import ChunkCorrupt, FormatDamaged, StoreFull
from leptonstore.format import pack as lpk
from leptonstore.store import Store, check_store, reader
from leptonstore.store.builder import PackBuilder
from leptonstore.store.dictionaries import DictionaryPolicy, Record, Unit, units_of
from leptonstore.store.opened import OpenedPacks
from leptonstore.tiers import durable
from leptonstore.tiers.local import LocalTier


def _events(count: int, seed: int = 0) -> list[bytes]:
    """JSON of about 1 KB each."""
    return list(events(count, seed))


def _functions(count: int) -> list[bytes]:
    """Something else that is alike: about 200 bytes each."""
    rng = random.Random(0)
    return [
        f"def function_{rng.getrandbits(40)}(argument: int) -> int:\n    return argument * {rng.getrandbits(60)}\n".encode()
        * 2
        for _ in range(count)
    ]


def _long(count: int) -> list[bytes]:
    """Records of 5 KB, which join no group."""
    text = _events(5 * count)
    return [b"".join(text[at : at + 5]) for at in range(0, len(text), 5)]


def _rows(store: Store) -> dict[str, list[lpk.FooterRow]]:
    return {pack: reader.read_footer(store.tier, pack, store.config.store_id) for pack in store.state.packs}


def _dictionaries(store: Store) -> list[int]:
    """How many each pack has."""
    return [sum(row.kind == lpk.KIND_DICTIONARY for row in rows) for rows in _rows(store).values()]


def _only_pack(store: Store) -> Path:
    (pack,) = store.state.packs
    return next(Path(store.url.removeprefix("file://")).glob(f"packs/*/{pack}.pack"))


def _fill(store: Store, values: list[bytes]) -> list[Digest]:
    names = [store.put(value) for value in values]
    store.flush()
    return names


# -- what they save --------------------------------------------------------------------------------------------------


def test_similar_values_share_one_dictionary_in_each_pack_and_survive_reopening(store: Store, tmp_path: Path) -> None:
    values = _events(3000)
    names = _fill(store, values)
    more = _events(2000, seed=1)
    names += _fill(store, more)
    values += more
    assert _dictionaries(store) == [1, 1], "once in each pack"
    digests = {row.digest for rows in _rows(store).values() for row in rows if row.kind == lpk.KIND_DICTIONARY}
    assert len(digests) == 1, "the second flush uses what the first one learned"
    alone = sum(len(codec.encode(value).payload) for value in values)
    assert sum(record.bytes for record in store.state.packs.values()) < 0.45 * alone
    with Store.open(store.url, cache_dir=tmp_path / "another cache") as again:
        assert [again.get(name) for name in names] == values
        assert check_store(again, read_data=True).clean


def test_values_are_readable_from_the_shelf_the_open_pack_and_other_threads(store: Store) -> None:
    values = _events(4000)
    names = [store.put(value) for value in values]
    failed: list[int] = []

    def look(start: int) -> None:
        for index in range(start, len(names), 4):
            if store.get(names[index]) != values[index] or not store.has(names[index]):
                failed.append(index)

    threads = [threading.Thread(target=look, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store.flush()
    assert [store.get(name) for name in names] == values


def test_many_threads_put_and_flush_at_once(store: Store) -> None:
    values = [_events(800, seed) for seed in range(4)]
    names: list[list[Digest]] = [[] for _ in values]
    failed: list[BaseException] = []

    def work(which: int, here: bool) -> None:
        try:
            for number, value in enumerate(values[which]):
                names[which].append(store.put(value, here=here))
                if number % 300 == 299:
                    store.flush()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(which, which % 2 == 0)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and not any(thread.is_alive() for thread in threads)
    store.flush()
    with Store.open(store.url) as again:
        for which, expected in enumerate(values):
            assert [again.get(name) for name in names[which]] == expected


def test_a_few_values_are_not_trained_on_and_do_not_carry_a_dictionary_along(store: Store) -> None:
    _fill(store, _events(20))
    _fill(store, _events(2000, seed=1))
    _fill(store, _events(3, seed=2))
    assert sorted(_dictionaries(store)) == [0, 0, 1], "a dictionary for three values would cost more than it saves"


def test_what_does_not_shrink_gets_none_and_training_is_not_tried_again_and_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    real = zstandard.train_dictionary

    def counted(*arguments: Any, **options: Any) -> object:
        nonlocal tried
        tried += 1
        return real(*arguments, **options)

    monkeypatch.setattr(zstandard, "train_dictionary", counted)
    rng = random.Random(0)
    values = [rng.randbytes(3000) for _ in range(7000)]  # 20 batches
    names = _fill(store, values)
    assert _dictionaries(store) == [0]
    assert {row.codec for rows in _rows(store).values() for row in rows} == {lpk.CODEC_RAW}
    assert 1 <= tried <= 5
    assert store.get(names[-1]) == values[-1]


def test_the_policy_keeps_a_dictionary_while_it_serves_and_trains_another_when_the_data_changes() -> None:
    def units(values: list[bytes]) -> list[Unit]:
        return units_of([Record(digest_of(value), lpk.KIND_CHUNK, value) for value in values])

    policy = DictionaryPolicy(limits.ZSTD_LEVEL)
    first = policy.choose(units(_events(1000)), lambda _: False)
    assert first is not None
    assert policy.choose(units(_events(1000, seed=1)), lambda _: True) is first
    changed = units([b"".join(_functions(5000)[at : at + 25]) for at in range(0, 5000, 25)])
    batches = limits.DICTIONARY_TRUST + limits.DICTIONARY_REST + 1
    chosen = [policy.choose(changed, lambda _: True) for _ in range(batches)]
    assert chosen[-1] is not None and chosen[-1] is not first
    again = DictionaryPolicy(limits.ZSTD_LEVEL).choose(units(_events(1000)), lambda _: False)
    assert again is not None and again.digest == first.digest, "the same records give the same dictionary"


def test_records_of_4_to_16_kib_have_the_dictionary_and_stay_alone_and_larger_ones_have_none(store: Store) -> None:
    _fill(store, [*_long(250), b"".join(_events(20))])
    (rows,) = _rows(store).values()
    for row in rows:
        if row.kind == lpk.KIND_CHUNK:
            assert not row.is_member
            assert (row.dictionary == lpk.DICTIONARY_NONE) == (row.raw > limits.DICTIONARY_RECORD_BYTES_MAX)


# -- groups ------------------------------------------------------------------------------------------------------------


def test_short_records_share_a_record_that_a_read_decodes_as_a_whole(store: Store) -> None:
    values = [b"", b"x", *_events(300), *_functions(500), bytes(4095), bytes(4096)]
    names = _fill(store, values)
    (rows,) = _rows(store).values()
    members = [row for row in rows if row.is_member]
    assert len(members) == len(values) - 1, "4096 bytes are too long"
    assert max(row.unpacked for row in members) <= limits.GROUP_BYTES_MAX
    assert len({row.offset for row in members}) < len(members) / 10
    assert sum(row.share for row in rows) == pytest.approx(_only_pack(store).stat().st_size, rel=0.1)
    with Store.open(store.url) as again:
        picked = random.Random(0).sample(range(len(values)), len(values))
        assert [again.get(names[at]) for at in picked] == [values[at] for at in picked]


def test_groups_that_do_not_shrink_are_not_made(store: Store) -> None:
    _fill(store, [random.Random(seed).randbytes(1000) for seed in range(200)])
    assert not any(row.is_member for rows in _rows(store).values() for row in rows)


@pytest.mark.parametrize("start", [0, 1, 5, 16_000])
def test_a_member_that_lies_about_its_place_is_corrupt(store: Store, start: int) -> None:
    _fill(store, _events(50))
    (pack,) = store.state.packs
    row = next(row for row in _rows(store)[pack] if row.is_member)
    opened = store.opened(pack)
    for lie in (
        row._replace(dictionary=start | row.unpacked << 16),
        row._replace(dictionary=row.start | (row.unpacked - 1) << 16),
        row._replace(dictionary=row.start | 0xFFFF << 16),
        row._replace(raw=row.raw + 1),
        row._replace(flags=0, dictionary=0),
    ):
        opened.group = None
        with pytest.raises(ChunkCorrupt):
            reader.read_record(store.tier, lie, opened)
    assert len(reader.read_record(store.tier, row, opened)[1]) == row.raw


def test_a_footer_that_places_a_member_outside_its_group_is_refused() -> None:
    good = lpk.FooterRow(bytes(32), 128, 100, 50, 1, 1, lpk.FLAG_MEMBER, 0, 10 | 60 << 16)
    lpk.check_row(good, 1000)
    for bad in (
        good._replace(dictionary=11 | 60 << 16),
        good._replace(raw=51),
        good._replace(dictionary=10 | 0xFFFF << 16),
        good._replace(kind=lpk.KIND_CHUNK_LIST),
        good._replace(codec=lpk.CODEC_RAW),
    ):
        with pytest.raises(FormatDamaged, match="outside its group"):
            lpk.check_row(bad, 1000)


@given(st.lists(st.binary(max_size=300), max_size=40))
def test_groups_round_trip(members: list[bytes]) -> None:
    plain = lpk.encode_group(members)
    assert len(plain) == lpk.group_bytes([len(member) for member in members])
    assert [plain[start : start + length] for start, length in lpk.parse_group(plain)] == members


@given(st.binary(max_size=400))
def test_any_bytes_are_a_group_or_damaged(data: bytes) -> None:
    with contextlib.suppress(FormatDamaged):
        assert lpk.encode_group([data[start : start + length] for start, length in lpk.parse_group(data)]) == data


@pytest.mark.parametrize("records", [0, 1, 3, 1 << 30])
def test_a_footer_that_lies_about_its_rows_is_refused_with_bounded_memory(records: int) -> None:
    for frame in (zstandard.compress(bytes(64 * 2)), zstandard.compress(bytes(1 << 26)), b"", b"no frame"):
        with pytest.raises(FormatDamaged):
            lpk.unpack_footer(frame, records)


# -- where they are kept -----------------------------------------------------------------------------------------------

READ_ALONE = """
import struct, sys, zstandard
from blake3 import blake3
data = open(sys.argv[1], "rb").read()
count, footer, length = struct.unpack_from("<QQQ", data, len(data) - 80 + 8)
planes = zstandard.decompress(data[footer : footer + length]) if count else b""
rows = [struct.unpack("<32sQQQBBBBI", planes[index::count]) for index in range(count)]
def payload(row):
    return data[row[1] + 64 : row[1] + 64 + row[2]]
dictionaries = [payload(row) if row[5] == 0 else zstandard.decompress(payload(row)) for row in rows if row[4] == 3]
done = 0
for row in rows:
    digest, offset, stored, raw, kind, codec, flags, width, place = row
    if kind != 1:
        continue
    ordinal, plain = struct.unpack_from("<I", data, offset + 8)[0], payload(row)
    if codec == 1:
        named = None if ordinal == 0xffffffff else zstandard.ZstdCompressionDict(dictionaries[ordinal])
        plain = zstandard.ZstdDecompressor(dict_data=named).decompress(plain)
    if flags & 1:
        assert len(plain) == place >> 16 <= 16384
        plain = plain[place & 0xffff :][:raw]
    assert blake3(plain).digest() == digest and len(plain) == raw
    done += 1
print(done)
"""


def test_another_process_that_has_only_the_pack_reads_every_record(store: Store) -> None:
    _fill(store, [*_events(1000), *_long(100)])
    out = subprocess.run(
        [sys.executable, "-c", READ_ALONE, _only_pack(store)], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["1100"]


def test_salvage_of_a_pack_with_a_cut_footer_finds_the_dictionary(store: Store, tmp_path: Path) -> None:
    values = [*_events(1000), *_long(100)]
    names = _fill(store, values)
    assert _dictionaries(store) == [1]
    path = _only_pack(store)
    os.truncate(path, path.stat().st_size - 100)
    with Store.open(store.url, cache_dir=tmp_path / "another cache") as again:
        assert again.damaged_packs
        assert [again.get(name) for name in names] == values


def _two_dictionaries(tier: LocalTier) -> tuple[str, list[bytes], list[lpk.FooterRow]]:
    """A pack with four records: two and two with a dictionary each. Their rows in order of offset, dictionaries included."""
    values = [_events(500), _functions(500)]
    made = [Dictionary(zstandard.train_dictionary(8192, [*some[2:]]).as_bytes()) for some in values]
    builder = PackBuilder(tier, b"s" * 16, lpk.CONTENT_DATA)
    picked = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for which, index in picked:
        encoded = codec.encode(values[which][index], dictionary=made[which])
        builder.add(digest_of(values[which][index]), lpk.KIND_CHUNK, encoded, zlib.crc32(encoded.payload))
    for row in builder.rows.values():
        assert reader.decode_record(builder.read(row), row, builder)[1] in values[0] + values[1], "before the seal, too"
    builder.seal()
    rows = sorted(reader.read_footer(tier, builder.id, b"s" * 16), key=lambda row: row.offset)
    return builder.id, [values[which][index] for which, index in picked], rows


@pytest.fixture
def tier(tmp_path: Path) -> LocalTier:
    with Store.create(tmp_path / "home"):
        return LocalTier(tmp_path / "home")


def _read_all(tier: LocalTier, pack: str, rows: list[lpk.FooterRow]) -> list[bytes | str]:
    opened = OpenedPacks(tier, b"s" * 16).get(pack)
    found: list[bytes | str] = []
    for row in rows:
        try:
            found.append(reader.read_record(tier, row, opened)[1])
        except ChunkCorrupt as error:
            found.append(error.why)
    return found


def test_a_pack_may_have_several_dictionaries(tier: LocalTier) -> None:
    pack, values, rows = _two_dictionaries(tier)
    kinds = [(row.kind, row.dictionary) for row in rows]
    assert kinds == [(3, 0), (1, 0), (1, 0), (3, 1), (1, 1), (1, 1)], "each before its first record"
    assert _read_all(tier, pack, [row for row in rows if row.kind == 1]) == values


# -- what lies -----------------------------------------------------------------------------------------------------------


def _file(tier: LocalTier, pack: str) -> Path:
    return next(Path(tier.root).glob(f"packs/*/{pack}.pack"))


def _patch(path: Path, offset: int, data: bytes) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def _lie(path: Path, row: lpk.FooterRow, change: Callable[[bytearray], object]) -> None:
    """Change a record and make its CRC fit again."""
    record = bytearray(path.read_bytes()[row.offset : row.end])
    change(record)
    record[60:64] = struct.pack("<I", zlib.crc32(record[:60], zlib.crc32(record[64:])))
    _patch(path, row.offset, bytes(record))


@pytest.mark.parametrize("ordinal", [1, 2, 7, 0xFFFFFFFE, lpk.DICTIONARY_NONE])
def test_a_record_that_names_the_wrong_dictionary_is_corrupt(tier: LocalTier, ordinal: int) -> None:
    pack, values, rows = _two_dictionaries(tier)
    records = [row for row in rows if row.kind == 1]
    _lie(_file(tier, pack), records[0], lambda record: record.__setitem__(slice(8, 12), struct.pack("<I", ordinal)))
    found = _read_all(tier, pack, records)
    assert isinstance(found[0], str) and found[1:] == values[1:]
    if 1 < ordinal < lpk.DICTIONARY_NONE:
        assert f"names dictionary {ordinal}, which is not in its pack" in found[0]


def test_a_damaged_dictionary_costs_its_records_and_no_others(tier: LocalTier) -> None:
    pack, values, rows = _two_dictionaries(tier)
    path = _file(tier, pack)
    _patch(path, rows[0].offset + 100, b"damaged")
    for cut in (0, 100):  # with the footer, and by a walk that misses the first dictionary
        os.truncate(path, path.stat().st_size - cut)
        found = _read_all(tier, pack, [row for row in rows if row.kind == 1])
        assert all(isinstance(why, str) and "dictionary 0" in why for why in found[:2])
        assert found[2:] == values[2:]


@pytest.mark.parametrize("lie", ["other bytes", "a bomb", "too long"])
def test_a_dictionary_that_lies_is_refused(tier: LocalTier, lie: str) -> None:
    pack, values, rows = _two_dictionaries(tier)
    row, path = rows[0], _file(tier, pack)
    payload = {
        "other bytes": zstandard.compress(b"x" * row.raw),
        "a bomb": zstandard.compress(bytes(1 << 24)),
        "too long": zstandard.compress(bytes(limits.DICTIONARY_BYTES_MAX + 1)),
    }[lie]

    def change(record: bytearray) -> None:
        record[64 : 64 + len(payload)] = payload
        record[12:20] = struct.pack("<Q", len(payload))
        if lie == "too long":
            record[20:28] = struct.pack("<Q", limits.DICTIONARY_BYTES_MAX + 1)
        del record[64 + len(payload) :]

    _lie(path, row, change)
    os.truncate(path, path.stat().st_size - 100)  # so that the walk believes the record's own lengths
    found = _read_all(tier, pack, [row for row in rows if row.kind == 1])
    assert all(isinstance(why, str) and "dictionary 0" in why for why in found[:2])
    assert found[2:] == values[2:]


def test_check_names_a_damaged_dictionary_and_the_chunks_that_need_it(store: Store) -> None:
    names = _fill(store, _long(200))
    (rows,) = _rows(store).values()
    (dictionary,) = (row for row in rows if row.kind == lpk.KIND_DICTIONARY)
    _patch(_only_pack(store), dictionary.offset + 200, b"damaged")
    with Store.open(store.url) as again:
        report = check_store(again, read_data=True)
        bad = {problem.digest for problem in report.problems}
        assert {name.hex() for name in names} | {dictionary.digest.hex()} == bad
        with pytest.raises(ChunkCorrupt, match="its dictionary 0 is damaged"):
            again.get(names[0])


# -- failures ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_forgets_the_shelf_too_and_the_store_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _events(3000)
    real, full = os.pwritev, True

    def pwritev(fd: int, data: list[memoryview], offset: int) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(durable.os, "pwritev", pwritev)
    with pytest.raises(StoreFull):
        _fill(store, values)
    full = False
    assert not any(store.has(digest_of(value)) for value in values)
    names = _fill(store, values)
    assert [store.get(name) for name in names] == values


def test_closing_forgets_the_shelf_and_a_forked_child_starts_without_it(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "forked")
    value = _events(1)[0]
    name = store.put(value)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if not store.has(name) and store.put(value) == name and store.get(name) == value else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.get(name) == value
    store.close()
    with Store.open(tmp_path / "forked") as again:
        assert not again.has(name)


# -- floats --------------------------------------------------------------------------------------------------------------


def test_float_columns_are_stored_as_byte_planes(store: Store, source_of: Callable[..., Source]) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {"id": np.arange(5000), "weight": rng.normal(size=5000).astype("f4"), "score": rng.normal(size=5000)}
    )
    write_dataset(store, "floats", source_of(table, ("id",)))
    rows = [row for rows in _rows(store).values() for row in rows]
    assert {row.plane_width for row in rows if row.codec == lpk.CODEC_PLANES} == {4, 8}
    with Store.open(store.url) as again:
        assert Dataset.open(again, "floats").to_arrow().equals(table)
