"""Making a block volume: refuse what is in use, preallocate, zero the first header blocks, then write both superblocks.

Until the superblocks are durable there is no volume; a format that was interrupted is simply run again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from leptonstore import limits
from leptonstore.errors import BadInput, Conflict, StoreFull
from leptonstore.format import volume as lvb
from leptonstore.format.volume import Superblock
from leptonstore.tiers import durable
from leptonstore.tiers.block_scan import length_of
from leptonstore.tiers.direct import write_all


def format_block(
    path: Path,
    size: int | None = None,
    *,
    store_id: bytes = bytes(16),
    unit: int = limits.VOLUME_UNIT_BYTES,
    force: bool = False,
) -> Superblock:
    """Make a volume of `size` bytes, durably; of a block device, all of it when `size` is None.

    Raises BadInput (a size that does not fit, something else is there and `force` is not given), Conflict (in use), StoreFull or
    NotPermitted; a file that this made is then removed.
    """
    with durable.failures_named(path), _opened(path) as (fd, is_device):
        _lock(fd, path)
        there = length_of(fd)
        if size is None:
            if not is_device:
                raise BadInput(f"{path} is to be a file: give its size (--size 100G)")
            size = there
        if is_device and size > there:
            raise BadInput(f"{path} has {there} bytes, fewer than the {size} asked for: give a smaller size, or none")
        superblock = lvb.laid_out(secrets.token_bytes(16), size, unit, store_id) if lvb.unit_is_legal(unit) else None
        if superblock is None or superblock.units < limits.VOLUME_UNITS_MIN:
            least = (limits.VOLUME_UNITS_MIN + 2) * unit
            raise BadInput(f"{size} bytes are too few for a volume: make {path} at least {least} bytes long")
        if not force:
            _refuse_content(fd, there, path)
        if not is_device:
            _allocate(fd, there, size, path)
        _write(fd, superblock)
        return superblock


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, bool]]:
    """The file or device for writing, and whether it is a device. A file that was made is removed on failure."""
    made = False
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise BadInput(f"{path} is neither a file nor a block device: it cannot become a volume")
        # O_EXCL of a block device: not while it is mounted.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if stat.S_ISBLK(mode) else 0))
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise BadInput(f"there is no directory {path.parent}: make it first") from None
        mode, made = 0, True
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Conflict(f"{path} is in use (mounted?): unmount it, or take another device") from None
        raise
    try:
        yield fd, stat.S_ISBLK(mode)
        if made:
            durable.sync_directory(path.parent)
    except BaseException:
        if made:
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"{path} is a volume that a process writes to: stop that process first") from None


def _refuse_content(fd: int, there: int, path: Path) -> None:
    """Whatever is not zero at either end is somebody's: partition tables, filesystems and files have something there."""
    head = os.pread(fd, limits.VOLUME_PROBE_BYTES, 0)
    if lvb.begins_like_a_volume(head):
        raise BadInput(f"{path} is a LeptonStore volume already: formatting loses all of its packs; --force does it")
    tail = os.pread(fd, limits.VOLUME_PROBE_BYTES, max(0, there - limits.VOLUME_PROBE_BYTES))
    if any(head) or any(tail):
        raise BadInput(f"{path} holds something else: take another path, or lose what is there with --force")


def _allocate(fd: int, there: int, size: int, path: Path) -> None:
    room = os.statvfs(path)
    if size - there > room.f_bavail * room.f_frsize:  # or else all that there is would be taken before it fails
        raise StoreFull(
            f"{path.parent} has {room.f_bavail * room.f_frsize} bytes free, fewer than the {size} asked for: give a smaller size"
        )
    os.posix_fallocate(fd, 0, size)
    if there > size:
        os.ftruncate(fd, size)


def _write(fd: int, superblock: Superblock) -> None:
    headers = min(limits.VOLUME_HEADERS_STEP, superblock.units)
    write_all(fd, memoryview(bytes((1 + headers) * lvb.BLOCK_BYTES)), lvb.NOTE_OFFSET)  # the note, too
    os.fsync(fd)
    for generation in (1, 2):
        made = replace(superblock, headers=headers, generation=generation)
        write_all(fd, memoryview(made.encode()), made.copy_offset)
        os.fsync(fd)
