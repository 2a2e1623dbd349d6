"""What a simulation is about: its setting, and where the values of its dataset stand."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import Key
from leptonstore.daemon.cluster.wire import Part, parts_of
from leptonstore.format.pack import HEADER_BYTES
from leptonstore.limits import PACK_BYTES_MAX

BLOCKS_PER_PACK = PACK_BYTES_MAX // bounds.BLOCK_BYTES
CLUSTER, ALONE, DIRECT = "cluster", "alone", "direct"


@dataclass(frozen=True)
class Setting:
    """What is simulated: one cluster (or so many daemons alone, or loaders without one) and an epoch of each member's loader."""

    members: int
    rows: int
    value_bytes: int
    way: str = CLUSTER
    together: bool = (
        False  # the loaders share one epoch (data-parallel training); else each reads all rows, in an order of its own
    )
    batch: int = 64  # rows of a loader's step
    ahead: int = 4  # steps that are read ahead
    consumed_bytes_s: float = 1e9  # by a loader that never waits
    link_bytes_s: float = 3.125e9  # of a member, each way: 25 Gbit/s
    hop_s: float = 0.0005  # a request to a peer, or its answer, without its bytes
    ram_share: float = 0.0  # of the data that each daemon keeps in memory
    disk_share: float = 1.2  # on disk
    racks: int = 1
    tracked: int | None = None  # loaders that are followed; None: all
    clusters: int = 1  # of which this is one: with `together`, the loaders of all of them share the epoch
    killed_at: float | None = None  # of the second loader's epoch: its daemon dies
    part: float = (
        1.0  # of an epoch's data that this is: what is there once in it (saved second requests) is as much less
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.followed <= self.members or self.rows < 1 or not 0 < self.value_bytes <= PACK_BYTES_MAX // 2:
            raise ValueError(
                "a simulation needs members, rows of 1 byte or more, and at most as many loaders as members"
            )
        if self.killed_at is not None and (self.members < 2 or self.followed < self.members):
            raise ValueError("who is killed must be followed, and leave somebody")
        kept = self.members * (self.ram_share + (1 - bounds.LATEST_SHARE) * self.disk_share)
        if self.way == CLUSTER and self.followed < self.members and kept < 1.5:
            raise ValueError(f"{self.members} members keep {kept:.2f} of the data: follow all of them")

    @property
    def followed(self) -> int:
        """Loaders that are followed."""
        return self.members if self.tracked is None else self.tracked

    @property
    def weight(self) -> float:
        """Loaders that each of these stands for."""
        return self.members / self.followed

    @property
    def global_batch(self) -> int:
        """Rows of a step of all loaders that share an epoch."""
        return self.batch * self.members * self.clusters

    @property
    def data_bytes(self) -> int:
        """Of all values."""
        return self.rows * self.value_bytes


class Data:
    """Where values stand: one after another in packs of PACK_BYTES_MAX with random names."""

    def __init__(self, setting: Setting, rng: random.Random) -> None:
        self._value, self._in_pack = setting.value_bytes, (PACK_BYTES_MAX - HEADER_BYTES) // setting.value_bytes
        count = -(-setting.rows // self._in_pack)
        self.packs = [f"{rng.getrandbits(128):032x}" for _ in range(count)]
        self.sizes = [
            HEADER_BYTES + self._value * min(self._in_pack, setting.rows - at * self._in_pack) for at in range(count)
        ]
        self._known: dict[int, tuple[Part, ...]] = {}
        self._numbers = {pack: at for at, pack in enumerate(self.packs)}

    def parts(self, row: int) -> tuple[Part, ...]:
        """The one or two that a value consists of."""
        found = self._known.get(row)
        if found is None:
            pack, at = divmod(row, self._in_pack)
            found = tuple(parts_of(self.packs[pack], HEADER_BYTES + at * self._value, self._value))
            if len(self._known) < 1 << 20:
                self._known[row] = found
        return found

    @property
    def blocks(self) -> int:
        """Numbers that `numbers_of` gives, at most."""
        return len(self.packs) * BLOCKS_PER_PACK

    def numbers_of(self, rows: np.ndarray) -> np.ndarray:
        """The blocks in which these values begin, as numbers."""
        pack, at = np.divmod(rows, self._in_pack)
        return pack * BLOCKS_PER_PACK + (HEADER_BYTES + at * self._value) // bounds.BLOCK_BYTES

    def key(self, number: int) -> Key:
        """The block of a number."""
        pack, block = divmod(number, BLOCKS_PER_PACK)
        return self.packs[pack], block

    def block_bytes(self, key: Key) -> int:
        """A pack's last block is shorter."""
        return min(bounds.BLOCK_BYTES, self.sizes[self._numbers[key[0]]] - key[1] * bounds.BLOCK_BYTES)
