"""Codecs: every one gives back what went in, and what lies about itself is refused with bounded memory."""

from __future__ import annotations

import contextlib
import random
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import codec, limits
from leptonstore.codec import Dictionary
from leptonstore.errors import FormatDamaged
from leptonstore.format.pack import CODEC_PLANES, CODEC_RAW, CODEC_ZSTD

LINES = [f'{{"id": {number}, "name": "row number {number * 7}", "ok": true}}'.encode() for number in range(2000)]


def _trained(lines: list[bytes], level: int = 3) -> Dictionary:
    return Dictionary(zstandard.train_dictionary(8192, [*lines], level=level).as_bytes())


TRAINED = _trained(LINES)
RANDOM = random.Random(0).randbytes(1 << 20)


def _back(encoded: codec.Encoded) -> bytes:
    return codec.decode(encoded.codec, encoded.payload, encoded.raw, encoded.plane_width, encoded.dictionary)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=3000)
    | st.builds(lambda part, times: part * times, st.binary(min_size=1), st.integers(1, 99)),
    level=st.integers(*limits.ZSTD_LEVEL_RANGE).filter(lambda level: level < 10),
    width=st.sampled_from((0, 2, 4, 8)),
    dictionary=st.sampled_from((None, TRAINED, Dictionary(b"any bytes serve as a dictionary, too"))),
)
def test_round_trip(data: bytes, level: int, width: int, dictionary: Dictionary | None) -> None:
    encoded = codec.encode(data, level, width, dictionary)
    assert _back(encoded) == data
    assert len(encoded.payload) <= len(data), "raw is the worst case"
    assert (encoded.codec == CODEC_PLANES) == bool(encoded.plane_width)
    assert encoded.dictionary is None or encoded.codec == CODEC_ZSTD


FLOATS = np.random.default_rng(0).normal(size=60_000)
WEIGHTS = {  # what checkpoints and float columns hold; bfloat16 is the upper half of float32
    2: FLOATS.astype("<f4").view("<u2")[1::2].tobytes(),
    4: FLOATS.astype("<f4").tobytes(),
    8: FLOATS.astype("<f8").tobytes(),
}


@pytest.mark.parametrize("width", WEIGHTS)
@pytest.mark.parametrize("tail", [0, 1])
def test_floats_take_byte_planes_where_they_are_smaller(width: int, tail: int) -> None:
    data = bytes(64) + WEIGHTS[width] + b"\x01" * tail
    planes, plain = codec.encode(data, plane_width=width), codec.encode(data)
    assert planes.codec == CODEC_PLANES and planes.plane_width == width
    assert len(planes.payload) < 0.98 * len(plain.payload)
    assert _back(planes) == data


def test_floats_that_repeat_stay_plain() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(300, 16)).astype("<f4")[rng.integers(0, 300, 4000)].tobytes()
    encoded = codec.encode(data, plane_width=4)
    assert encoded.codec == CODEC_ZSTD, "planes would tear the repetitions apart"
    assert _back(encoded) == data


def test_a_dictionary_shrinks_small_records_and_only_it_opens_them() -> None:
    line = b'{"id": 987654, "name": "row number 123", "ok": true}'
    encoded = codec.encode(line, dictionary=TRAINED)
    assert encoded.dictionary is TRAINED and len(encoded.payload) < 0.6 * len(codec.encode(line).payload)
    assert _back(encoded) == line
    other = _trained(LINES[:1000], level=9)
    for wrong in (None, other):
        with contextlib.suppress(FormatDamaged):
            assert codec.decode(encoded.codec, encoded.payload, encoded.raw, 0, wrong) != line


def test_one_dictionary_serves_many_threads() -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for line in random.Random(seed).choices(LINES, k=300):
                assert _back(codec.encode(line, dictionary=TRAINED)) == line
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_looks_random_stays_raw_and_what_only_begins_so_does_not() -> None:
    assert codec.encode(RANDOM).codec == CODEC_RAW
    assert codec.encode(bytes(4096) + RANDOM).codec == CODEC_RAW, "a head that shrinks does not decide"
    text = b"".join(LINES) * 20
    for data in (RANDOM + text[: 1 << 20], text[: 1 << 20] + RANDOM, RANDOM[: 1 << 19] + text[: 1 << 18] + RANDOM):
        encoded = codec.encode(data)
        assert encoded.codec == CODEC_ZSTD and _back(encoded) == data


LIES = {
    "raw length over the bound": (CODEC_ZSTD, lambda payload: payload, limits.CHUNK_BYTES_MAX + 1, 0),
    "another raw length": (CODEC_ZSTD, lambda payload: payload, 99, 0),
    "truncated": (CODEC_ZSTD, lambda payload: payload[:-3], None, 0),
    "trailing bytes": (CODEC_ZSTD, lambda payload: payload + b"x", None, 0),
    "nothing": (CODEC_ZSTD, lambda payload: b"", None, 0),
    "no frame": (CODEC_ZSTD, lambda payload: b"LREC" + payload, None, 0),
    "raw of another length": (CODEC_RAW, lambda payload: payload, None, 0),
    "an unknown codec": (9, lambda payload: payload, None, 0),
    "planes without a width": (CODEC_PLANES, lambda payload: payload, None, 0),
    "planes of a wrong width": (CODEC_PLANES, lambda payload: payload, None, 3),
    "a width without planes": (CODEC_ZSTD, lambda payload: payload, None, 4),
    "a wrong width without planes": (CODEC_RAW, lambda payload: payload, None, 200),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie: str) -> None:
    which, change, raw, width = LIES[lie]
    plain = b"".join(LINES)
    payload = change(bytes(codec.encode(plain).payload))
    with pytest.raises(FormatDamaged):
        codec.decode(which, payload, len(plain) if raw is None else raw, width)


def test_a_dictionary_goes_with_zstd_only() -> None:
    for which, width in ((CODEC_RAW, 0), (CODEC_PLANES, 4)):
        with pytest.raises(FormatDamaged, match="names a dictionary"):
            codec.decode(which, b"abcd", 4, width, TRAINED)


def test_a_bomb_does_not_get_memory() -> None:
    """A frame of 50 KB that unpacks to 1 GiB, in a record that says 1000 bytes; and one that does not announce its length."""
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(1 << 24))
    tracemalloc.start()
    for payload in (bomb, silent):
        for dictionary in (None, TRAINED):
            with pytest.raises(FormatDamaged):
                codec.decode(CODEC_ZSTD, payload, 1000, 0, dictionary)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_dictionaries_have_a_bound_and_damaged_ones_are_told() -> None:
    for data in (b"", bytes(limits.DICTIONARY_BYTES_MAX + 1)):
        with pytest.raises(FormatDamaged, match="a dictionary of"):
            Dictionary(data)
    broken = Dictionary(TRAINED.data[:100])  # a dictionary's magic, and then not enough
    with pytest.raises(FormatDamaged):
        codec.decode(CODEC_ZSTD, codec.encode(LINES[0] * 9).payload, len(LINES[0]) * 9, 0, broken)


@settings(max_examples=200, deadline=None)
@given(
    payload=st.binary(max_size=300), which=st.integers(0, 255), raw=st.integers(0, 1 << 64), width=st.integers(0, 255)
)
def test_any_bytes_decode_or_are_damaged(payload: bytes, which: int, raw: int, width: int) -> None:
    for dictionary in (None, TRAINED):
        with contextlib.suppress(FormatDamaged):
            assert len(codec.decode(which, payload, raw, width, dictionary)) == raw
