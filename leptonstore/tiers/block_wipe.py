"""What a block volume holds beside its packs: units that are free, and the rest of the last unit of each pack.

Deleting a pack frees its units and leaves its bytes there until others take their place. `wipe` writes zeros over all that is in no
pack; so it may be interrupted, and done again, at any moment.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from leptonstore.tiers import durable
from leptonstore.tiers.block_volume import Volume
from leptonstore.tiers.direct import ALIGN

_Stretch = tuple[int, int]  # offset on the device, bytes


def wipe(volume: Volume) -> int:
    """Zero what is in no pack, durably; returns the bytes that were not zero before. What is being written meanwhile is passed over.

    Raises Conflict while another process writes, NotPermitted, FormatDamaged.
    """
    volume.be_writer()
    wiped = 0
    zeros = mmap.mmap(-1, volume.superblock.unit)  # aligned
    with durable.failures_named(volume.path):
        for unit in range(volume.superblock.units):
            if volume.take(unit):
                try:
                    wiped += _zero(volume, (unit * volume.superblock.unit, volume.superblock.unit), zeros)
                finally:
                    volume.release([unit])
        for slack in _slacks(volume):
            wiped += _zero(volume, slack, zeros)
        volume.sync()
    return wiped


def not_zero(volume: Volume) -> int:
    """Bytes in units that are in no pack, and behind the ends of packs, of stretches that are not all zero."""
    volume.refresh()
    size = volume.superblock.unit
    used = {unit for pack in volume.packs() if (one := volume.find(pack)) is not None for unit in one.units}
    free = [(unit * size, size) for unit in range(volume.superblock.units) if unit not in used]
    return sum(length for at, length in (*free, *_slacks(volume)) if _is_dirty(volume, (at, length)))


def _slacks(volume: Volume) -> Iterator[_Stretch]:
    """Behind the end of each pack, from the first block that it does not reach into; the end of that one was zeroed as it was written."""
    size = volume.superblock.unit
    for pack in volume.packs():
        found = volume.find(pack)
        if found is None:
            continue
        within = -(-(found.length % size) // ALIGN) * ALIGN
        if found.length % size and within < size:
            yield found.units[-1] * size + within, size - within


def _zero(volume: Volume, stretch: _Stretch, zeros: mmap.mmap) -> int:
    if not _is_dirty(volume, stretch):
        return 0
    at, length = stretch
    volume.write_at(volume.superblock.data_offset + at, memoryview(zeros)[:length])
    return length


def _is_dirty(volume: Volume, stretch: _Stretch) -> bool:
    at, length = stretch
    data = volume.read_at(volume.superblock.data_offset + at, length)
    return data.count(0) != len(data)
