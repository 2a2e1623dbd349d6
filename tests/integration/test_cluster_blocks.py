"""Blocks in memory and on disk: what comes back is what was kept, or nothing; whatever happened to the files."""

from __future__ import annotations

import os
import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import BlockFiles
from leptonstore.daemon.cluster.blocks import Blocks
from leptonstore.errors import BadInput
from leptonstore.limits import MIB
from leptonstore.testing.tiers import content

BLOCK = content(bounds.BLOCK_BYTES)
SHORT = content(70_001, 1)
PACK = "ab" * 16


@pytest.fixture
def files(tmp_path: Path) -> BlockFiles:
    return BlockFiles(tmp_path / "blocks", bounds.DISK_BYTES_MIN)


def test_blocks_are_read_back_from_every_byte_to_every_byte(files):
    files.put((PACK, 0), BLOCK)
    files.put((PACK, 1), SHORT)
    for start, stop in [
        (0, 1),
        (0, 1 << 20),
        (65_535, 65_537),
        (65_536, 131_072),
        (1_000_000, 1 << 20),
        (70_000, 80_000),
    ]:
        assert files.read((PACK, 0), start, stop) == BLOCK[start:stop]
        assert files.read((PACK, 1), start, stop) == SHORT[start:stop]
    assert files.read((PACK, 2), 0, 1) is None


def test_blocks_outlive_their_daemon_and_a_crash(files, tmp_path):
    files.put((PACK, 0), BLOCK)
    (tmp_path / "blocks" / "tmp" / "half").write_bytes(b"LBK1")
    (tmp_path / "blocks" / "notes.txt").write_bytes(b"somebody's")
    files.close()
    again = BlockFiles(tmp_path / "blocks", bounds.DISK_BYTES_MIN)
    assert again.read((PACK, 0), 0, 1 << 20) == BLOCK and len(again) == 1
    assert os.listdir(tmp_path / "blocks" / "tmp") == []
    again.close()


def test_a_directory_is_of_one_daemon(files, tmp_path):
    with pytest.raises(BadInput, match="another daemon"):
        BlockFiles(tmp_path / "blocks", bounds.DISK_BYTES_MIN)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_noticed_wherever_it_is_damaged(tmp_path_factory, data):
    """Every read returns what was kept, or nothing; and then the file is gone."""
    files = BlockFiles(tmp_path_factory.mktemp("blocks"), bounds.DISK_BYTES_MIN)
    files.put((PACK, 3), SHORT)
    path = files._path((PACK, 3))
    whole = path.read_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "longer", "gone"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if how == "flip":
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    elif how == "cut":
        path.write_bytes(whole[:at])
    elif how == "zero":
        path.write_bytes(bytes(len(whole)))
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(whole + b"more")
    for start in range(0, len(SHORT), 10_000):
        found = files.read((PACK, 3), start, start + 10_000)
        assert found is None or found == SHORT[start : start + 10_000]
    if how in ("cut", "zero", "gone"):
        assert (PACK, 3) not in files and files.damaged == 1
    files.close()


def test_files_stay_within_their_budget(files, tmp_path):
    rng = random.Random(0)
    for _ in range(150):
        key = (f"{rng.randrange(100):032x}", rng.randrange(3))
        files.put(key, BLOCK)
        found = files.read(key, 0, 1 << 20)
        assert found is None or found == BLOCK
    on_disk = sum(path.stat().st_size for path in (tmp_path / "blocks").rglob("*-*"))
    assert on_disk == files.bytes <= bounds.DISK_BYTES_MIN


def test_a_full_disk_costs_the_cache_and_nothing_else(files, monkeypatch):
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    files.put((PACK, 0), BLOCK)
    assert (PACK, 0) not in files and files.bytes == 0
    monkeypatch.undo()
    files.put((PACK, 0), BLOCK)
    assert (PACK, 0) not in files, "it is not tried again at once"


def test_what_leaves_memory_goes_to_disk(files):
    blocks = Blocks(bounds.RAM_BYTES_MIN, files)
    data = {(secrets.token_hex(16), number): content(MIB, number) for number in range(40)}
    for key, block in data.items():
        blocks.put(key, block)
    assert all(blocks.read(key, 5, 1000) == block[5:1000] for key, block in data.items())
    assert blocks.counts["ram"] and blocks.counts["disk"] and not blocks.counts["missed"]
    gone = next(iter(data))[0]
    blocks.forget(lambda key: key[0] == gone)
    assert gone not in blocks.packs() and len(blocks.packs()) == 39


def test_copies_that_leave_memory_make_way_for_own_blocks_on_disk(files):
    """They were put there as own ones: after a member had died, what the others took over found no room (the bucket was read twice)."""
    blocks = Blocks(bounds.RAM_BYTES_MIN, files)
    blocks.owned = lambda key: key[1] == 1
    for number in range(90):
        blocks.put((f"{number:032x}", 0), BLOCK, copy=True)
    own = [(f"{number:032x}", 1) for number in range(50)]
    for key in own:
        blocks.put(key, BLOCK)
    assert all(key in blocks for key in own)


def test_threads_put_read_and_forget_at_once(files):
    blocks = Blocks(bounds.RAM_BYTES_MIN, files)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(120):
            key = (f"{rng.randrange(60):032x}", 0)
            what = rng.random()
            if what < 0.5:
                blocks.put(key, BLOCK, copy=what < 0.2)
            elif what < 0.9:
                found = blocks.read(key, 7, 90_000)
                assert found is None or found == BLOCK[7:90_000]
            else:
                blocks.forget(lambda other, key=key: other == key)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert files.damaged == 0
    assert blocks.bytes <= bounds.RAM_BYTES_MIN + bounds.DISK_BYTES_MIN


def test_what_was_read_stays_valid_when_its_block_goes():
    blocks = Blocks(bounds.RAM_BYTES_MIN)
    blocks.put((PACK, 0), BLOCK)
    part = blocks.read((PACK, 0), 10, 1_000)
    blocks.close()
    for seed in range(40):
        blocks.put((secrets.token_hex(16), seed), content(MIB, seed))
    assert part == BLOCK[10:1_000]


def test_memory_for_less_than_two_stretches_is_refused():
    with pytest.raises(BadInput):
        Blocks(1000)
