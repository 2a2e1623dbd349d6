"""The power fails while a block volume is written: sealed packs survive, others are free space, nothing else is damaged.

Each test also says that something was in flight; and each plausible mistake in writing a volume is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leptonstore.format.volume import BLOCK_BYTES, SegmentHeader
from leptonstore.tiers import direct
from leptonstore.tiers.block_volume import Volume

from .block_power_loss import RUNS, Verdict, examine, going_on, record, torn_volumes
from .recording import Mark


@pytest.mark.parametrize(("name", "volumes_min"), [("everyday", 400), ("killed", 800)])
def test_power_loss_at_every_operation(name: str, volumes_min: int, tmp_path: Path) -> None:
    verdict = examine(record(RUNS[name], tmp_path / "run"), tmp_path / "look")
    assert not verdict.broken, "\n".join(verdict.broken)
    assert verdict.volumes >= volumes_min, verdict
    assert verdict.in_flight >= verdict.volumes / 3 and verdict.mended >= 20, verdict


def test_the_power_fails_again_while_it_is_mended(tmp_path: Path) -> None:
    torn = list(torn_volumes(record(RUNS["everyday"], tmp_path / "run"), tmp_path / "torn"))
    total = Verdict()
    for number, (image, promised) in enumerate(torn[:: max(1, len(torn) // 8)]):
        again = record(going_on(image, promised), tmp_path / f"run-{number}")
        begin = next(at for at, op in enumerate(again.ops) if isinstance(op, Mark) and op.what == "going on")
        verdict = examine(again, tmp_path / "look", begin=begin)
        assert not verdict.broken, "\n".join(verdict.broken)
        total.volumes, total.mended = total.volumes + verdict.volumes, total.mended + verdict.mended
    assert total.volumes >= 300 and total.mended >= 30, total


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


def _no_mending(real: Any) -> Callable[..., None]:
    return lambda self, fd: None


MISTAKES = {
    "the data is not synced before the header": (Volume, "sync", _no_sync_of_data, "everyday"),
    "headers are not synced": (Volume, "_write_header", _no_sync_of_headers, "everyday"),
    "a successor believes what it finds": (Volume, "_take_over", _without_syncs, "killed"),
    "units are used again before the header is free": (Volume, "delete", _free_before_it_is_durable, "everyday"),
    "a header has one copy": (SegmentHeader, "encode", _one_copy, "everyday"),
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
