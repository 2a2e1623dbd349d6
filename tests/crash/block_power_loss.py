"""The power fails while a block volume is written: at every operation, with what was not synced torn at sectors, is each promise kept?

A volume of a few units is formatted, packs are sealed, given up and deleted, their space is used again, and the writer is killed and
replaced, all recorded write by write. Then, for every point of the recording, volumes are made that a disk may hold after a power loss:
everything that was synced, and of each later write any of its sectors, or half a sector.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from leptonstore import limits
from leptonstore.errors import BadInput, FormatDamaged, LeptonError
from leptonstore.testing.tiers import add_pack, content
from leptonstore.tiers.block import BlockTier
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_volume import Volume
from leptonstore.tiers.direct import Buffers

from .disk import SECTOR, Disk, Loss
from .recording import Data, Mark, Recorder

UNIT, UNITS = 4096, 8
SIZE = (3 + 2 * UNITS) * UNIT
RANDOM_PER_POINT = 4  # volumes of random sectors
TORN_SECTORS_MAX = 8  # a header or superblock at each of its sectors; a longer write at so many


class Killed(BaseException):
    """The process is no more: nothing that it would do afterwards happens."""


class Run:
    """Works on the volume, and says what it promised."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.path = recorder, recorder.root / "volume"
        self.count = 0

    def open(self) -> BlockTier:
        """As another process does."""
        volume = Volume(self.path)
        volume.buffers = Buffers(2 * UNIT, 4)  # so that a pack takes several writes
        return BlockTier(volume)

    def seal(self, tier: BlockTier, size: int) -> str:
        """A pack of `size` bytes."""
        self.count += 1
        pack = f"{self.count:032x}"
        self.recorder.mark("sealing", (pack, size))
        add_pack(tier, content(size, self.count), pack)
        self.recorder.mark("sealed", pack)
        return pack

    def delete(self, tier: BlockTier, pack: str) -> None:
        """Remove it."""
        self.recorder.mark("deleting", pack)
        tier.delete_pack(pack)
        self.recorder.mark("deleted", pack)

    def killed_after(self, operations: int, work: Callable[[], object]) -> None:
        """Do `work`, whose process is killed before its operation of that number (from 0)."""
        last = self.recorder.calls + operations

        def before(call: int) -> None:
            if call >= last:
                raise Killed

        self.recorder.before = before
        try:
            work()
        except Killed:
            return
        finally:
            self.recorder.before = lambda call: None
        raise AssertionError("nothing was in flight when it was to be killed")


def everyday(run: Run) -> None:
    """Packs come and go, and their space is used again."""
    format_block(run.path, SIZE, unit=UNIT)
    run.recorder.mark("formatted")
    tier = run.open()
    first, second = run.seal(tier, 2 * UNIT + 100), run.seal(tier, 10)
    given_up = tier.create_pack(f"{99:032x}")
    given_up.write(content(3 * UNIT, 99))
    run.delete(tier, first)
    third = run.seal(tier, 3 * UNIT)
    given_up.abort()
    del tier, given_up
    tier = run.open()
    run.seal(tier, 0)
    run.delete(tier, second)
    run.delete(tier, third)
    run.seal(tier, 7 * UNIT)


def killed(run: Run) -> None:
    """Writers are killed at each operation of a seal and of a delete; another process goes on with what it finds."""
    format_block(run.path, SIZE, unit=UNIT)
    run.recorder.mark("formatted")
    for operations in range(2, 6):
        tier = run.open()
        kept = run.seal(tier, UNIT)
        gone = run.seal(tier, 2 * UNIT)
        run.killed_after(operations, lambda tier=tier: run.seal(tier, 3 * UNIT) and run.seal(tier, UNIT))
        del tier
        tier = run.open()
        run.killed_after(
            operations % 4 + 2, lambda tier=tier, gone=gone: run.delete(tier, gone) or run.seal(tier, UNIT)
        )
        del tier
        tier = run.open()
        run.seal(tier, UNIT * (1 + operations % 2))
        for pack in list(tier.packs()):
            if pack != kept or operations % 2:
                run.delete(tier, pack)
        del tier


def growing(run: Run) -> None:
    """A device that held something else is formatted, and more and more header blocks come into use."""
    fd = os.open(run.path, os.O_RDWR | os.O_CREAT, 0o666)
    os.pwrite(fd, content(SIZE, 77), 0)
    os.fsync(fd)
    os.close(fd)
    with patch.object(limits, "VOLUME_HEADERS_STEP", 2):
        format_block(run.path, SIZE, unit=UNIT, force=True)
        run.recorder.mark("formatted")
        tier = run.open()
        packs = [run.seal(tier, 10) for _ in range(5)]
        run.delete(tier, packs[1])
        del tier
        run.seal(run.open(), UNIT)


RUNS = {"everyday": everyday, "killed": killed, "growing": growing}


def record(work: Callable[[Run], None], place: Path) -> Recorder:
    """Do `work` on a volume in `place`."""
    place.mkdir(parents=True)
    recorder = Recorder(place)
    with recorder.installed():
        work(Run(recorder))
    everything = Loss(frozenset(range(len(recorder.ops))))
    written = Disk(recorder.ops).tree(len(recorder.ops), everything)["volume"]
    assert written == (place / "volume").read_bytes(), "written behind the recorder's back"
    return recorder


def going_on(image: bytes, promised: Promises) -> Callable[[Run], None]:
    """The next process works on a volume that was torn. Its recording begins with the mark "going on"."""

    def work(run: Run) -> None:
        fd = os.open(run.path, os.O_RDWR | os.O_CREAT, 0o666)
        os.pwrite(fd, image, 0)
        os.fsync(fd)
        os.close(fd)
        tier = run.open()
        run.recorder.mark("formatted")
        for pack in tier.packs():
            run.recorder.mark("sealing", (pack, promised.sizes[pack]))
            run.recorder.mark("sealed", pack)
        run.recorder.mark("going on")
        run.count = 1000
        for pack in list(tier.packs())[:2]:
            run.delete(tier, pack)
        run.seal(tier, UNIT + 1)

    return work


# -- what may stand on the disk --------------------------------------------------------------------------------------


class Volumes:
    """The volumes that there may be after a power loss at a point of a recording."""

    def __init__(self, recorder: Recorder, seed: int = 0) -> None:
        self.ops, self._disk, self._rng = recorder.ops, Disk(recorder.ops), random.Random(seed)

    def at(self, point: int) -> Iterator[bytes]:
        """Each with all that was synced; nothing, all, and parts of what was not."""
        pending = [n for n in self._disk.pending(point) if isinstance(self.ops[n], Data)]
        base = bytearray()
        for n in range(point):
            if n not in pending:
                self._apply(base, n, None)
        yield self._with(base, {})
        yield self._with(base, dict.fromkeys(pending))
        for n in pending:
            others = {m: None for m in pending if m < n}
            sectors = self._sectors(n)
            yield self._with(base, {n: None})
            yield self._with(base, {m: None for m in pending if m != n})
            cuts = range(sectors)
            for cut in cuts if sectors <= TORN_SECTORS_MAX else self._rng.sample(cuts, TORN_SECTORS_MAX):
                yield self._with(base, {**others, n: set(range(cut))})
                yield self._with(base, {n: set(range(cut, sectors))})
                yield self._with(base, {**others, n: set(range(cut + 1))}, half=(n, cut))
        for _ in range(RANDOM_PER_POINT if pending else 0):
            chosen = {n: {at for at in range(self._sectors(n)) if self._rng.random() < 0.5} for n in pending}
            yield self._with(base, chosen)

    def _sectors(self, n: int) -> int:
        op = self.ops[n]
        return -(-len(op.data or b"") // SECTOR) if isinstance(op, Data) else 0

    def _with(self, base: bytearray, chosen: dict[int, set[int] | None], half: tuple[int, int] | None = None) -> bytes:
        made = bytearray(base)
        for n in sorted(chosen):
            self._apply(made, n, chosen[n], half[1] if half and half[0] == n else None)
        return bytes(made)

    def _apply(self, to: bytearray, n: int, sectors: set[int] | None, half: int | None = None) -> None:
        op = self.ops[n]
        if not isinstance(op, Data):
            return
        if op.data is None:
            del to[op.offset :]
            to.extend(bytes(op.offset - len(to)))
            return
        to.extend(bytes(max(0, op.offset + len(op.data) - len(to))))
        for at in range(self._sectors(n)) if sectors is None else sorted(sectors):
            piece = op.data[at * SECTOR : (at + 1) * SECTOR]
            piece = piece[: self._rng.randrange(1, SECTOR)] if at == half else piece
            to[op.offset + at * SECTOR : op.offset + at * SECTOR + len(piece)] = piece


# -- what was promised -----------------------------------------------------------------------------------------------


@dataclass
class Promises:
    """At a point: packs that must be there, and those that may be."""

    formatted: bool = False
    must: set[str] = field(default_factory=set)
    may: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def at(cls, marks: list[Mark]) -> Promises:
        """After these."""
        made = cls()
        for mark in marks:
            match mark.what:
                case "formatted":
                    made.formatted = True
                case "sealing":
                    pack, size = mark.value
                    made.sizes[pack] = size
                    made.may.add(pack)
                case "sealed":
                    made.must.add(mark.value)
                case "deleting":
                    made.must.discard(mark.value)
                case "deleted":
                    made.may.discard(mark.value)
        return made


@dataclass
class Verdict:
    """What the power losses of one recording showed."""

    points: int = 0
    volumes: int = 0  # different ones, with different promises
    in_flight: int = 0  # of them, those in which a pack may be there or not
    mended: int = 0  # volumes with a header or superblock that was torn
    broken: list[str] = field(default_factory=list)


def examine(recorder: Recorder, place: Path, broken_max: int = 20, begin: int = 0, seed: int = 0) -> Verdict:
    """Let the power fail at every point from `begin` on. Works in `place`."""
    volumes, verdict, known = Volumes(recorder, seed), Verdict(), set()
    place.mkdir(parents=True, exist_ok=True)
    for point in range(begin, len(recorder.ops) + 1):
        promised = Promises.at([op for op in recorder.ops[:point] if isinstance(op, Mark)])
        verdict.points += 1
        for image in volumes.at(point):
            key = (
                hashlib.blake2b(image).digest(),
                promised.formatted,
                frozenset(promised.must),
                frozenset(promised.may),
            )
            if key in known or len(verdict.broken) >= broken_max:
                continue
            known.add(key)
            verdict.volumes += 1
            with _no_syncs():
                wrong = _wrong(image, promised, place / "volume", verdict)
            verdict.broken += [f"power loss before operation {point}: {what}" for what in wrong]
    return verdict


def torn_volumes(recorder: Recorder, place: Path) -> Iterator[tuple[bytes, Promises]]:
    """Those on which something is to be mended, with what was promised then; different ones."""
    volumes, known = Volumes(recorder), set()
    place.mkdir(parents=True, exist_ok=True)
    for point in range(len(recorder.ops) + 1):
        promised = Promises.at([op for op in recorder.ops[:point] if isinstance(op, Mark)])
        for image in volumes.at(point) if promised.formatted else ():
            (place / "volume").write_bytes(image)
            volume = Volume(place / "volume")
            if image not in known and (volume._unequal or not volume._mirrored):
                known.add(image)
                yield image, promised


def _wrong(image: bytes, promised: Promises, path: Path, verdict: Verdict) -> list[str]:
    path.write_bytes(image)
    try:
        tier = BlockTier(Volume(path))
    except (BadInput, FormatDamaged) as error:
        return [f"it does not open: {error}"] if promised.formatted else []
    wrong = _missing_or_altered(tier, promised, verdict)
    found = set(tier.packs())
    tier = BlockTier(Volume(path))
    volume = tier._volume
    verdict.mended += bool(volume._unequal) or not volume._mirrored
    try:
        free = volume.superblock.units - volume.used_units
        if free:
            add_pack(tier, content(free * UNIT, 7), "f" * 32)  # whatever looks free is written to
            tier.delete_pack("f" * 32)
        else:
            volume.be_writer()
    except LeptonError as error:
        return [*wrong, f"it cannot be written to: {error}"]
    del tier, volume
    tier = BlockTier(Volume(path))
    wrong += [f"after it went on: {what}" for what in _missing_or_altered(tier, promised, Verdict())]
    if set(tier.packs()) != found:
        wrong.append("after it went on, it has other packs")
    if tier._volume._unequal or not tier._volume._mirrored:
        wrong.append("what was torn was not mended")
    return wrong


def _missing_or_altered(tier: BlockTier, promised: Promises, verdict: Verdict) -> list[str]:
    found = set(tier.packs())
    wrong = [f"pack {pack[-4:]} was lost" for pack in promised.must - found]
    wrong += [f"pack {pack[-4:]} should not be there" for pack in found - promised.may]
    wrong += [f"header {number}: {why}" for number, why in tier.damaged_headers.items()]
    verdict.in_flight += promised.must != promised.may
    for pack in found & promised.may:
        size = promised.sizes[pack]
        if tier.pack_bytes(pack) != size or bytes(tier.read(pack, 0, size)) != content(size, int(pack, 16)):
            wrong.append(f"pack {pack[-4:]} was altered")
    return wrong


@contextmanager
def _no_syncs() -> Iterator[None]:
    """The volumes that are examined need not survive anything."""
    real = os.fsync, os.fdatasync
    os.fsync = os.fdatasync = lambda fd: None
    try:
        yield
    finally:
        os.fsync, os.fdatasync = real
