"""Any sequence of packs made, given up and deleted, with the volume opened again in between, equals a dict; space is never lost."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tempfile
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leptonstore.errors import FormatDamaged, StoreFull
from leptonstore.format import volume as lvb
from leptonstore.testing.tiers import add_pack, content
from leptonstore.tiers.block import BlockPackSink, BlockTier
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_volume import Volume
from leptonstore.tiers.direct import Buffers

UNIT = 4096
SIZE = 40 * UNIT
SIZES = st.one_of(st.integers(0, 6 * UNIT), st.sampled_from([0, UNIT - 1, UNIT, UNIT + 1]))


class VolumeMachine(RuleBasedStateMachine):
    """`sealed`: what the volume must hold. `open`: sinks and what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="lepton-volume-")
        self.path = Path(self.folder.name) / "volume"
        self.sealed: dict[str, bytes] = {}
        self.ids = 0
        self.open: list[tuple[str, BlockPackSink, bytes]] = []

    @initialize(size=st.integers(SIZE - UNIT, SIZE + UNIT))
    def format(self, size: int) -> None:
        self.units = format_block(self.path, size, unit=UNIT).units
        self.tier = self._opened()
        self.other = self._opened()  # only reads

    def _opened(self) -> BlockTier:
        """As another process does; packs of more than two units take several writes."""
        volume = Volume(self.path)
        volume.buffers = Buffers(2 * UNIT, 4)
        return BlockTier(volume)

    def _new_id(self) -> str:
        self.ids += 1
        return f"{self.ids:032x}"

    def teardown(self) -> None:
        for _, sink, _ in self.open:
            sink.abort()
        self.folder.cleanup()

    def _free(self) -> int:
        """Units that a pack that is begun now can get."""
        held = sum(-(-len(data) // UNIT) for data in self.sealed.values())
        return self.units - held - sum(len(sink._appender.units) for _, sink, _ in self.open)

    @rule(size=SIZES, seed=st.integers(0, 99))
    def begin(self, size: int, seed: int) -> None:
        pack, data = self._new_id(), content(size, seed)
        sink = self.tier.create_pack(pack)
        try:
            sink.write(data[: size // 2], data[size // 2 :])
        except StoreFull:
            assert -(-size // UNIT) > self._free()
            sink.abort()
        else:
            self.open.append((pack, sink, data))

    @precondition(lambda self: self.open)
    @rule(choose=st.randoms(use_true_random=False))
    def seal(self, choose: random.Random) -> None:
        pack, sink, data = self.open.pop(choose.randrange(len(self.open)))
        fits = (
            -(-len(data) // UNIT) <= self._free() and len(self.sealed) < self.units
        )  # its own units count as free here
        if fits:
            sink.seal()
            self.sealed[pack] = data
        else:
            with pytest.raises(StoreFull, match="full"):
                sink.seal()
        sink.abort()

    @precondition(lambda self: self.open)
    @rule(choose=st.randoms(use_true_random=False))
    def abort(self, choose: random.Random) -> None:
        self.open.pop(choose.randrange(len(self.open)))[1].abort()

    @precondition(lambda self: self.sealed)
    @rule(choose=st.randoms(use_true_random=False))
    def delete(self, choose: random.Random) -> None:
        pack = choose.choice(sorted(self.sealed))
        del self.sealed[pack]
        self.tier.delete_pack(pack)

    @rule()
    def reopen(self) -> None:
        """As after a crash: what was not sealed is gone."""
        for _, sink, _ in self.open:
            sink.abort()
        self.open.clear()
        del self.tier
        self.tier = self._opened()

    @rule()
    def fill(self) -> None:
        """All of the free space can be used, however scattered it is."""
        free = self._free()
        if 0 < free <= lvb.UNITS_PER_PACK_MAX and len(self.sealed) < self.units:
            pack, data = self._new_id(), content(free * UNIT, free)
            sink = self.tier.create_pack(pack)
            sink.write(data)
            sink.seal()
            self.sealed[pack] = data

    @invariant()
    def equals_a_dict(self) -> None:
        if not hasattr(self, "tier"):
            return
        for reader in (self.tier, self.other):
            assert sorted(reader.packs()) == sorted(self.sealed)
            for pack, data in self.sealed.items():
                assert reader.pack_bytes(pack) == len(data) and bytes(reader.read(pack, 0, len(data))) == data
        assert self.tier.used_bytes == sum(-(-len(data) // UNIT) * UNIT for data in self.sealed.values())


TestVolume = VolumeMachine.TestCase
TestVolume.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# -- the bytes ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 24), st.sampled_from([4096, 65_536, 1 << 20]))
def test_a_layout_fits_and_wastes_little(size: int, unit: int) -> None:
    made = lvb.laid_out(bytes(range(16)), size, unit)
    if made is None:
        assert size < lvb.HEADERS_OFFSET + 3 * unit + lvb.BLOCK_BYTES
        return
    assert lvb.HEADERS_OFFSET + made.units * lvb.BLOCK_BYTES <= made.data_offset and made.data_offset % unit == 0
    assert made.data_offset + made.capacity <= size
    assert size - made.data_offset - made.capacity < 2 * (unit + lvb.BLOCK_BYTES)
    data = made.encode() + dataclasses.replace(made, generation=1).encode()
    assert lvb.parse_superblocks(data, "it") == (dataclasses.replace(made, generation=1), True)


UNITS = st.lists(st.integers(0, 63), max_size=lvb.UNITS_PER_PACK_MAX, unique=True)
LAYOUT = lvb.Superblock(bytes(range(16)), 65 * (1 << 20), 1 << 20, 1 << 20, 64, headers=64)


@given(UNITS, st.integers(0, UNIT - 1), st.integers(0, 63), st.integers(1, 1 << 63), st.data())
def test_headers_come_back_and_no_altered_one_does(
    units: list[int], last: int, number: int, sequence: int, data: st.DataObject
) -> None:
    length = max(0, len(units) * LAYOUT.unit - last)
    header = lvb.SegmentHeader(number, sequence, b"p" * 16, length, tuple(units))
    block = header.encode(LAYOUT)
    assert len(block) == lvb.BLOCK_BYTES and lvb.parse_header(block, number, LAYOUT) == header
    old = lvb.SegmentHeader(number, sequence - 1).encode(LAYOUT)
    at = data.draw(st.integers(0, lvb.BLOCK_BYTES))
    assert lvb.parse_header(block[:at] + old[at:], number, LAYOUT).sequence in (sequence, sequence - 1)
    spoilt = bytearray(block)
    for start in (0, lvb.BLOCK_BYTES // 2):
        spoilt[start + data.draw(st.integers(0, 511))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatDamaged):
        lvb.parse_header(bytes(spoilt), number, LAYOUT)
    if number:
        with pytest.raises(FormatDamaged):
            lvb.parse_header(block, number - 1, LAYOUT)


@given(UNITS.filter(bool), st.data())
def test_runs_are_the_bytes_in_order(units: list[int], data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(units) * LAYOUT.unit))
    length = data.draw(st.integers(0, len(units) * LAYOUT.unit - offset))
    runs = list(LAYOUT.runs(units, offset, length))
    assert sum(count for _, count in runs) == length
    position = offset
    for begin, count in runs:
        while count:
            within = position % LAYOUT.unit
            assert begin == LAYOUT.data_offset + units[position // LAYOUT.unit] * LAYOUT.unit + within
            piece = min(count, LAYOUT.unit - within)
            begin, position, count = begin + piece, position + piece, count - piece
    for (begin, count), (after, _) in itertools.pairwise(runs):
        assert begin + count != after, "neighbours are one run"


@given(st.binary(max_size=9000))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatDamaged):
        lvb.parse_superblocks(data, "it")
    assert lvb.parse_note(data) is None
    with pytest.raises(FormatDamaged):
        lvb.parse_header(b"\1" + data, 0, LAYOUT)


# -- the spec ----------------------------------------------------------------------------------------------------------


def read_by_the_spec(path: Path) -> dict[str, bytes]:
    """All packs of a volume, by nothing but what docs/FORMAT.md says."""
    data = path.read_bytes()

    def u(size: int, at: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    def whole(at: int, magic: bytes) -> bool:
        return data[at : at + 4] == magic and blake3(data[at : at + 480]).digest() == data[at + 480 : at + 512]

    copies = [at for at in (0, 4096) if whole(at, b"LVB1") and u(8, at + 16) % 2 * 4096 == at]
    head = max(copies, key=lambda at: u(8, at + 16))
    assert u(1, head + 4) == 1 and u(4, head + 8) == 0
    volume, start, unit, headers = data[head + 24 : head + 40], u(8, head + 64), u(4, head + 72), u(4, head + 80)
    packs = {}
    for number in range(headers):
        block = 12_288 + number * 4096
        found = [at for at in (block, block + 2048) if whole(at, b"LSEG") and data[at + 24 : at + 40] == volume]
        at = max(found, key=lambda at: u(8, at + 16), default=0)
        if found and u(1, at + 5) == 1 and u(4, at + 8) == number:
            units = [u(4, at + 64 + 4 * n) for n in range(u(2, at + 6))]
            joined = b"".join(data[start + n * unit : start + (n + 1) * unit] for n in units)
            packs[data[at + 40 : at + 56].hex()] = joined[: u(8, at + 56)]
    return packs


def test_another_reader_finds_what_was_written(tmp_path: Path) -> None:
    format_block(tmp_path / "volume", SIZE, unit=UNIT)
    tier = BlockTier(Volume(tmp_path / "volume"))
    packs = {f"{n:032x}": content(n * 3000, n) for n in range(1, 7)}
    for pack, data in packs.items():
        add_pack(tier, data, pack)
    for pack in list(packs)[1::2]:
        tier.delete_pack(pack)
        del packs[pack]
    packs["f" * 32] = content(5 * UNIT, 9)
    add_pack(tier, packs["f" * 32], "f" * 32)
    assert read_by_the_spec(tmp_path / "volume") == packs


def test_the_bytes_are_pinned() -> None:
    """A volume that this version made is read by all later ones: these bytes never change."""
    superblock = dataclasses.replace(LAYOUT, generation=7, store_id=b"s" * 16)
    header = lvb.SegmentHeader(3, 9, b"p" * 16, 2 * LAYOUT.unit - 5, (17, 4))
    made = superblock.encode() + header.encode(superblock) + lvb.Note(9, 4711, "host").encode()
    assert blake3(made).hexdigest()[:32] == "4b3e0f7d61e0a1aebf9e403532824a11"
    assert lvb.parse_note(lvb.Note(9, 4711, "host").encode()) == (9, 4711, "host")
