"""The power fails while a block volume is written: sealed packs survive, others are free space, nothing else is damaged.

Each test also says that something was in flight; and each plausible mistake in writing a volume is found.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from leptonstore.format.volume import BLOCK_BYTES, SegmentHeader
from leptonstore.testing.tiers import content
from leptonstore.tiers import block_volume, direct
from leptonstore.tiers.block import open_block
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_volume import Volume

from .block_power_loss import RUNS, Verdict, examine, going_on, record, torn_volumes
from .recording import Mark


@pytest.mark.parametrize(("name", "volumes_min"), [("everyday", 400), ("killed", 800), ("growing", 300)])
def test_power_loss_at_every_operation(name: str, volumes_min: int, tmp_path: Path) -> None:
    verdict = examine(record(RUNS[name], tmp_path / "run"), tmp_path / "look")
    assert not verdict.broken, "\n".join(verdict.broken)
    assert verdict.volumes >= volumes_min, verdict
    assert verdict.in_flight >= verdict.volumes / 3 and verdict.mended >= 20, verdict


def test_the_power_fails_again_while_it_is_mended(tmp_path: Path) -> None:
    torn = list(torn_volumes(record(RUNS["everyday"], tmp_path / "run"), tmp_path / "torn"))
    total = Verdict()
    for number, (image, promised) in enumerate(torn[:: max(1, len(torn) // 5)]):
        again = record(going_on(image, promised), tmp_path / f"run-{number}")
        begin = next(at for at, op in enumerate(again.ops) if isinstance(op, Mark) and op.what == "going on")
        verdict = examine(again, tmp_path / "look", begin=begin)
        assert not verdict.broken, "\n".join(verdict.broken)
        total.volumes, total.mended = total.volumes + verdict.volumes, total.mended + verdict.mended
    assert total.volumes >= 200 and total.mended >= 20, total


# -- plausible mistakes ----------------------------------------------------------------------------------------------


def _no_sync_of_data(real: Any) -> Callable[..., None]:
    return lambda self: None


def _no_sync_of_headers(real: Any) -> Callable[..., None]:
    return lambda self, header: self._put_header(self._writer_fd(), header)


def _without_syncs(real: Any) -> Callable[..., Any]:
    """What somebody forgets who believes that the page cache is the device."""

    def call(*arguments: Any) -> Any:
        sync, os.fdatasync = os.fdatasync, lambda fd: None
        try:
            return real(*arguments)
        finally:
            os.fdatasync = sync

    return call


def _free_before_it_is_durable(real: Any) -> Callable[..., None]:
    def delete(self: Volume, pack: str) -> None:
        header = self.find(pack)
        if header is not None:
            self.be_writer()
            self.release(header.units)
            taken = self.allocate(1)  # by another thread, at this moment
            self.write_units(taken, direct.aligned_memory(BLOCK_BYTES), 0)
            self.release(taken)
            self._used = bytearray(1 if unit in header.units else used for unit, used in enumerate(self._used))
            self._free_units -= len(header.units)
        real(self, pack)

    return delete


def _one_copy(real: Any) -> Callable[..., bytes]:
    return lambda self, superblock: real(self, superblock)[: BLOCK_BYTES // 2].ljust(BLOCK_BYTES, b"\0")


def _count_before_they_are_zero(real: Any) -> Callable[..., None]:
    def extend(self: Volume) -> None:
        real_write, later = block_volume.write_all, []
        offset = self.superblock.header_offset(self.superblock.headers)

        def write(fd: int, data: memoryview, at: int) -> None:
            later.append((fd, data, at)) if at == offset else real_write(fd, data, at)

        with patch.object(block_volume, "write_all", write):
            real(self)
        for what in later:
            real_write(*what)

    return extend


def _no_mending(real: Any) -> Callable[..., None]:
    return lambda self, fd: None


MISTAKES = {
    "the data is not synced before the header": (Volume, "sync", _no_sync_of_data, "everyday"),
    "headers are not synced": (Volume, "_write_header", _no_sync_of_headers, "everyday"),
    "a successor believes what it finds": (Volume, "_take_over", _without_syncs, "killed"),
    "units are used again before the header is free": (Volume, "delete", _free_before_it_is_durable, "everyday"),
    "a header has one copy": (SegmentHeader, "encode", _one_copy, "everyday"),
    "headers count before they are zero": (Volume, "_extend_headers", _count_before_they_are_zero, "growing"),
    "torn copies stay": (Volume, "_mend", _no_mending, "everyday"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_search_finds_what_somebody_might_get_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, what, mistake, run = MISTAKES[name]
    monkeypatch.setattr(where, what, mistake(getattr(where, what)))
    recording = record(RUNS[run], tmp_path / "run")
    assert examine(recording, tmp_path / "look", broken_max=1).broken, "the mistake went unnoticed"


# -- kill -9 -----------------------------------------------------------------------------------------------------------

_WORKER = """
import random, sys
from leptonstore.testing.tiers import add_pack, content
from leptonstore.tiers.block import open_block
tier, rng, number, held = open_block(sys.argv[1]), random.Random(int(sys.argv[2])), int(sys.argv[2]) << 32, {}
while True:
    number += 1
    size = rng.randrange(3 * 4096)
    print("sealing", number, size, flush=True)
    held[number] = add_pack(tier, content(size, number), f"{number:032x}")
    print("sealed", number, size, flush=True)
    if len(held) > 4:
        gone = rng.choice(sorted(held))
        print("deleting", gone, 0, flush=True)
        tier.delete_pack(held.pop(gone))
        print("deleted", gone, 0, flush=True)
"""


def test_what_a_killed_writer_acknowledged_is_there(tmp_path: Path) -> None:
    path, rng = tmp_path / "volume", random.Random(5)
    format_block(path, 200 * 4096, unit=4096)
    must: dict[int, int] = {}
    for turn in range(1, 7):
        may = dict(must)
        with subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(path), str(turn)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            for _ in range(rng.randrange(20, 60)):
                _heed(worker.stdout.readline(), must, may)
            worker.send_signal(signal.SIGKILL)
            for line in worker.stdout:
                _heed(line, must, may)
            assert worker.wait(30) == -signal.SIGKILL, "it ended before it was killed"
        tier = open_block(path)
        found = {int(pack, 16) for pack in tier.packs()}
        assert set(must) <= found <= set(may), turn
        for number in found:
            pack, size = f"{number:032x}", may[number]
            assert tier.pack_bytes(pack) == size and bytes(tier.read(pack, 0, size)) == content(size, number)
        assert not tier.damaged_headers
        for number in sorted(found)[3:]:  # the next one finds space, and what the others left
            tier.delete_pack(f"{number:032x}")
        must = {number: may[number] for number in sorted(found)[:3]}
        tier.close()


def _heed(line: str, must: dict[int, int], may: dict[int, int]) -> None:
    """A line may be cut by the kill: then it says nothing."""
    fields = line.split()
    if not line.endswith("\n") or len(fields) != 3:
        return
    what, number, size = fields[0], int(fields[1]), int(fields[2])
    match what:
        case "sealing":
            may[number] = size
        case "sealed":
            must[number] = size
        case "deleting":
            must.pop(number, None)
        case "deleted":
            may.pop(number, None)
