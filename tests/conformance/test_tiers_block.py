"""The block tier keeps what a tier promises, on a volume file; and what it refuses, it refuses by name."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.cli.runtime import run
from leptonstore.cli.tier import command
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, Conflict, FormatDamaged, FormatTooNew, StoreFull, StoreMissing
from leptonstore.format.volume import Superblock
from leptonstore.testing.tiers import PackTierSuite, add_pack, content, pack_id
from leptonstore.tiers.block import BlockTier, open_block
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_scan import VolumeReader
from leptonstore.tiers.block_volume import Volume
from leptonstore.tiers.direct import Buffers
from leptonstore.tiers.roles import HomeReader, PackPruner, PackStreamer

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    format_block(tmp_path / "volume", 96 * MIB)
    return tmp_path / "volume"


class TestBlock(PackTierSuite):
    """Another object in the same process shares what is known."""

    @pytest.fixture
    def tier(self, path: Path) -> BlockTier:
        return open_block(path)

    def reopened(self, tier: BlockTier) -> BlockTier:
        return open_block(tier.url)


class TestBlockFromTheDevice(TestBlock):
    """Another process knows only what stands on the volume."""

    def reopened(self, tier: BlockTier) -> BlockTier:
        return BlockTier(Volume(tier.path))


class TestBlockThroughThePageCache(TestBlock):
    """Where O_DIRECT is refused."""

    @pytest.fixture
    def tier(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> BlockTier:
        monkeypatch.setattr(VolumeReader, "_open_direct", lambda self, flags: None)
        return open_block(path)


def small(path: Path, units: int, unit: int = 4096) -> BlockTier:
    """A new volume with so many units."""
    format_block(path, (3 + units) * 4096 + (units + 2) * unit, unit=unit)
    return open_block(path)


def another(tier: BlockTier) -> BlockTier:
    """As another process has it."""
    return BlockTier(Volume(tier.path))


def spoil(path: Path, offset: int, data: bytes = b"spoilt") -> None:
    """Alter a volume behind everybody's back."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


# -- space -----------------------------------------------------------------------------------------------------------


def test_a_full_volume_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 20)
    units = tier.capacity_bytes // 4096
    kept = add_pack(tier, content(10 * 4096))
    sink = tier.create_pack(pack_id())
    sink.write(content((units - 9) * 4096))
    with pytest.raises(StoreFull, match=r"volume .*volume is full .*10 of|volume .* is full .*lepton gc") as caught:
        sink.seal()
    assert str(tmp_path / "volume") in str(caught.value)
    sink.abort()
    assert list(tier.packs()) == [kept] and tier.used_bytes == 10 * 4096
    add_pack(tier, content((units - 10) * 4096, 1))
    assert tier.used_bytes == tier.capacity_bytes
    with pytest.raises(StoreFull):
        add_pack(tier, b"x")
    tier.delete_pack(kept)
    assert bytes(tier.read(add_pack(tier, content(40_000, 2)), 0, 40_000)) == content(40_000, 2)


def test_scattered_space_is_used(tmp_path: Path) -> None:
    """Every second unit is free: no two of them are neighbours, and one pack takes them all."""
    tier = small(tmp_path / "volume", 40)
    units = tier.capacity_bytes // 4096
    packs = [add_pack(tier, content(4096, n)) for n in range(units)]
    for pack in packs[::2]:
        tier.delete_pack(pack)
    data = content(len(packs[::2]) * 4096, 99)
    large = add_pack(tier, data)
    for reader in (tier, another(tier)):
        assert bytes(reader.read(large, 0, len(data))) == data
        assert bytes(reader.read(large, 5000, 9000)) == data[5000:14_000]
        assert bytes(reader.read_once(large, 1, 70_000)) == data[1:70_001]
        for number in range(1, units, 2):
            assert bytes(reader.read(packs[number], 0, 4096)) == content(4096, number)


def test_dropped_and_aborted_packs_give_their_space_back(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 24)
    tier._volume.buffers = Buffers(8192, 4)
    for drop in (True, False):
        sink = tier.create_pack(pack_id())
        sink.write(content(tier.capacity_bytes - 4096))
        if not drop:
            sink.abort()
        del sink
        add_pack(tier, b"", pack=pack_id())
    tier.delete_pack(add_pack(tier, content(tier.capacity_bytes)))


def test_it_plays_the_roles_of_packs_and_none_of_a_home(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 10)
    assert isinstance(tier, PackPruner) and isinstance(tier, PackStreamer)
    assert not isinstance(tier, HomeReader)
    assert tier.url == f"block://{tmp_path}/volume" and tier.store_id == bytes(16)


def test_a_pack_that_is_too_long_is_refused(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 120)
    with pytest.raises(BadInput, match=f"at most {104 * 4096} bytes"):
        add_pack(tier, bytes(104 * 4096 + 1))
    assert tier.used_bytes == 0 and list(tier.packs()) == []
    add_pack(tier, bytes(104 * 4096))


def test_more_packs_than_one_step_of_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VOLUME_HEADERS_STEP", 8)
    tier = small(tmp_path / "volume", 30)
    other, packs = another(tier), []
    generation = tier._volume.superblock.generation
    for number in range(tier.capacity_bytes // 4096):
        packs.append(add_pack(tier, content(100, number)))
        assert other.pack_bytes(packs[-1]) == 100, "another process sees it, in whatever block its header is"
    assert tier._volume.superblock.generation > generation
    assert sorted(another(tier).packs()) == sorted(packs)
    with pytest.raises(StoreFull):
        add_pack(tier, b"")


def test_ids_of_packs(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 10)
    for wrong in ("", "x" * 32, "A" * 32, "0" * 32, "ab", "a" * 33):
        with pytest.raises(BadInput, match="id of a pack"):
            tier.create_pack(wrong)
        assert tier.pack_bytes(wrong) is None
        tier.delete_pack(wrong)
    pack = add_pack(tier, b"first")
    sink = tier.create_pack(pack)
    with pytest.raises(FormatDamaged, match="never reused"):
        sink.seal()
    sink.abort()
    assert bytes(tier.read(pack, 0, 10)) == b"first"


# -- processes -------------------------------------------------------------------------------------------------------

_WRITER = """
import sys
from leptonstore.testing.tiers import add_pack, content
from leptonstore.tiers.block import open_block
tier = open_block(sys.argv[1])
add_pack(tier, b"sealed", "a" * 32)
sink = tier.create_pack("b" * 32)
sink.write(content(20 * 4096))
print("ready", flush=True)
sys.stdin.readline()
"""


def test_one_process_writes_and_others_are_told_which(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 30)
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, tier.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        assert bytes(tier.read("a" * 32, 0, 10)) == b"sealed", "reading goes on, and sees what is new"
        for change in (lambda: tier.create_pack(pack_id()), lambda: tier.delete_pack("a" * 32)):
            with pytest.raises(Conflict, match=f"process {writer.pid} on "):
                change()
        with pytest.raises(Conflict):
            format_block(tier.path, 1 << 20, unit=4096, force=True)
        writer.send_signal(signal.SIGKILL)
        writer.wait(60)
    assert list(tier.packs()) == ["a" * 32]
    add_pack(tier, content(tier.capacity_bytes - 4096)), "what it had not sealed is free"


def test_a_pack_that_is_deleted_while_it_is_read_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = small(tmp_path / "volume", 12)
    pack = add_pack(writer, content(writer.capacity_bytes))
    for reader, once in ((another(writer), False), (another(writer), True), (writer, False)):
        size = reader.pack_bytes(pack)
        assert size == writer.capacity_bytes
        real = reader._volume.read_into

        def meanwhile(*arguments: object, real: Any = real, pack: str = pack) -> None:
            writer.delete_pack(pack)
            add_pack(writer, content(writer.capacity_bytes, 1), "e" * 32)
            real(*arguments)

        monkeypatch.setattr(limits, "DIRECT_READ_BYTES_MIN", 1)
        monkeypatch.setattr(reader._volume, "read_into", meanwhile)
        monkeypatch.setattr(reader._volume, "read_units", _in_pieces(reader._volume))
        with pytest.raises(FileNotFoundError):
            (reader.read_once if once else reader.read)(pack, 0, size)
        monkeypatch.undo()
        writer.delete_pack("e" * 32)
        pack = add_pack(writer, content(writer.capacity_bytes))


def _in_pieces(volume: Volume) -> Any:
    """`read_units` as it is when the pieces of a pack are not neighbours."""

    def read(pack: str, units: Sequence[int], offset: int, length: int) -> bytes:
        data = bytearray(length)
        volume.read_into(volume._file.fd, memoryview(data), units, offset)
        return bytes(data)

    return read


def test_readers_elsewhere_never_see_other_bytes(tmp_path: Path) -> None:
    """Packs come and go, in a space that is used again and again, while others read: right bytes, or no pack."""
    tier = small(tmp_path / "volume", 24)
    live: dict[str, int] = {}
    done, seen, missed, read_once = threading.Event(), [0], [0], threading.Semaphore(0)

    def write(seed: int) -> None:
        for number in range(seed, seed + 15):
            pack = add_pack(tier, content(9000, number))
            live[pack] = number
            read_once.acquire(timeout=0.1)  # until somebody looked at it, or is too busy
            del live[pack]
            tier.delete_pack(pack)

    def read(reader: BlockTier) -> None:
        while not done.is_set():
            for pack, number in list(live.items()):
                try:
                    assert bytes(reader.read(pack, 0, 9000)) == content(9000, number)
                    seen[0] += 1
                    read_once.release()
                except FileNotFoundError:
                    missed[0] += 1

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, reader) for reader in (another(tier), tier)]
        writers = [pool.submit(write, seed) for seed in (1000, 2000)]
        try:
            for writer in writers:
                writer.result(60)
        finally:
            done.set()
        for job in readers:
            job.result(60)
    assert seen[0] >= 10 and tier.used_bytes == 0


def test_a_forked_child_reads_and_does_not_write(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 12)
    pack = add_pack(tier, b"parent's")
    sink = tier.create_pack("c" * 32)
    sink.write(b"half")
    child = os.fork()
    if child == 0:
        right = False
        try:
            assert bytes(tier.read(pack, 0, 100)) == b"parent's"
            sink.abort()
            try:
                tier.create_pack(pack_id())
            except Conflict:
                right = True
        finally:
            os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    sink.seal()
    assert bytes(another(tier).read("c" * 32, 0, 10)) == b"half"
    with pytest.raises(Conflict, match=f"process {os.getpid()}"):
        another(tier).create_pack(pack_id())


def test_closing_lets_another_process_write(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 12)
    second = open_block(tier.path)
    pack = add_pack(tier, b"x")
    tier.close()
    with pytest.raises(Conflict):
        another(tier).delete_pack(pack)
    second.close()
    other = another(second)
    other.delete_pack(pack)
    assert tier.pack_bytes(pack) is None, "it opens again when it is used"
    with pytest.raises(Conflict) as held:
        tier.create_pack(pack_id())
    other.close()
    sink = tier.create_pack("d" * 32)
    tier.close()
    other = another(tier)
    with pytest.raises(Conflict):
        other.create_pack(pack_id())
    sink.write(b"late")
    sink.seal()
    assert bytes(other.read(add_pack(other, b"y"), 0, 1)) == b"y", "with the last pack, the lock goes"
    assert bytes(other.read("d" * 32, 0, 4)) == b"late"
    assert held.value, "its traceback holds objects, but no lock"


# -- failing devices -------------------------------------------------------------------------------------------------


def test_a_device_that_fails_while_a_pack_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = small(tmp_path / "volume", 12)
    kept, real, calls = add_pack(tier, b"kept"), os.fdatasync, 0

    def failing(at: int) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(5, "Input/output error")
            real(fd)

        return sync

    for at in (1, 2):  # the data; the header
        calls = 0
        monkeypatch.setattr(os, "fdatasync", failing(at))
        sink = tier.create_pack("d" * 32)
        sink.write(content(8 * 4096))
        with pytest.raises(OSError, match="Input/output"):
            sink.seal()
        sink.abort()
        monkeypatch.undo()
        for reader in (tier, another(tier)):
            assert list(reader.packs()) == [kept]
        tier.delete_pack(add_pack(tier, content(tier.capacity_bytes - 4096)))
    monkeypatch.setattr(os, "fdatasync", failing(calls + 1))
    with pytest.raises(OSError, match="Input/output"):
        tier.delete_pack(kept)


def test_a_device_that_refuses_direct_writes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, real, refused = small(tmp_path / "volume", 40), os.pwritev, []

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(fd)
            raise OSError(22, "Invalid argument")
        return real(fd, parts, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    pack = add_pack(tier, content(100_000))
    assert bytes(another(tier).read(pack, 0, 100_000)) == content(100_000)
    assert refused or tier._volume._direct_writer is None


# -- what is no volume, or a damaged one -----------------------------------------------------------------------------


def test_what_is_no_volume_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="format-block"):
        open_block(tmp_path / "none")
    with pytest.raises(BadInput, match="neither a file nor a block device"):
        open_block(tmp_path)
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(BadInput, match="too small"):
        open_block(tmp_path / "short")
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    with pytest.raises(BadInput, match="is not a LeptonStore volume"):
        open_block(tmp_path / "other")
    with pytest.raises(BadInput, match="block:///path"):
        open_block("s3://bucket/x")


def test_a_truncated_volume_is_told(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 12)
    tier.close()
    os.truncate(tier.path, 4096 * 14)
    with pytest.raises(FormatDamaged, match="truncated"):
        open_block(tier.path)
    os.truncate(tier.path, 4096)
    with pytest.raises(FormatDamaged, match="truncated"):
        open_block(tier.path)


def test_a_newer_volume_is_told(tmp_path: Path) -> None:
    for place, value, match in ((4, b"\2", "upgrade"), (8, b"\1\0\0\0", "needs features 0x1")):
        path = tmp_path / f"volume-{place}"
        small(path, 12).close()
        sector = bytearray(path.read_bytes()[:480])
        sector[place : place + len(value)] = value
        spoil(path, 0, bytes(sector) + digest_of(bytes(sector)))
        with pytest.raises(FormatTooNew, match=match):
            open_block(path)


def test_one_damaged_superblock_is_mended_and_two_are_told(tmp_path: Path) -> None:
    for offset in (0, 4096):
        tier = small(tmp_path / f"volume-{offset}", 12)
        pack = add_pack(tier, b"x")
        tier.close()
        spoil(tier.path, offset)
        again = another(tier)
        assert list(again.packs()) == [pack]
        again.delete_pack(pack)
        again.close()
        spoil(tier.path, 4096 - offset)
        assert list(another(tier).packs()) == [], "the one that was mended counts"
        spoil(tier.path, offset + 100)
        with pytest.raises(FormatDamaged, match="neither of its superblocks"):
            another(tier)


def test_a_damaged_header_hides_nothing_else_and_stops_writing(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 12)
    packs = [add_pack(tier, content(100, n)) for n in range(3)]
    tier.close()
    place = Superblock.header_offset(1)
    spoil(tier.path, place + 40)
    assert sorted(another(tier).packs()) == sorted(packs), "its other copy counts"
    spoil(tier.path, place + 2048 + 40)
    damaged = another(tier)
    assert sorted(damaged.packs()) == sorted([packs[0], packs[2]]) and list(damaged.damaged_headers) == [1]
    assert bytes(damaged.read(packs[2], 0, 100)) == content(100, 2)
    before = tier.path.read_bytes()[12_288:]
    with pytest.raises(FormatDamaged, match="segment header 1 is damaged"):
        damaged.create_pack(pack_id())
    assert tier.path.read_bytes()[12_288:] == before


def test_a_reader_survives_a_volume_that_is_formatted_anew(tmp_path: Path) -> None:
    tier = small(tmp_path / "volume", 12)
    pack = add_pack(tier, b"x")
    reader = another(tier)
    tier.close()
    format_block(tier.path, 1 << 20, unit=4096, force=True)
    with pytest.raises(FormatDamaged, match="formatted anew"):
        reader.read(pack, 0, 1)


# -- formatting ------------------------------------------------------------------------------------------------------


def test_format_refuses_what_somebody_may_need(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"text", bytes(8 << 20) + b"at the end", bytes(1080) + b"\x53\xef" + bytes(5 << 20)):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"something else.*--force"):
            format_block(path, 64 * MIB)
        assert path.read_bytes() == data
    path.write_bytes(bytes(3 << 20))
    format_block(path, 16 * MIB)
    with pytest.raises(BadInput, match=r"a LeptonStore volume already.*--force"):
        format_block(path, 16 * MIB)
    pack = add_pack(open_block(path), b"lost")
    format_block(path, 12 * MIB, force=True)
    tier = open_block(path)
    assert tier.pack_bytes(pack) is None and path.stat().st_size == 12 * MIB
    assert path.stat().st_blocks * 512 >= 12 * MIB, "preallocated"


def test_format_refuses_sizes_and_places(tmp_path: Path) -> None:
    for size, match in ((None, "--size"), (0, "too few"), (5 * MIB, "too few")):
        with pytest.raises(BadInput, match=match):
            format_block(tmp_path / "volume", size)
    with pytest.raises(BadInput, match="neither a file"):
        format_block(tmp_path, 64 * MIB)
    with pytest.raises(BadInput, match="no directory"):
        format_block(tmp_path / "no" / "volume", 64 * MIB)
    with pytest.raises(StoreFull, match="bytes free"):
        format_block(tmp_path / "volume", 1 << 60)
    assert list(tmp_path.iterdir()) == [], "nothing was left behind"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "volume"
    assert run(command, ["format-block", str(path), "--size", "24M", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["url"] == f"block://{path}" and told["size_bytes"] == 24 * MIB
    assert open_block(told["url"]).capacity_bytes == told["capacity_bytes"] >= 22 * MIB
    assert run(command, ["format-block", str(path), "--size", "24M"]) == 2
    assert "already" in capsys.readouterr().err
    assert run(command, ["format-block", f"block://{path}", "--size", "16MiB", "--force"]) == 0
    assert "16.0 MiB" in capsys.readouterr().out
    assert run(command, ["format-block", str(path), "--size", "much"]) == 2
