"""Any sequence of packs made, given up and deleted, with the volume opened again in between, equals a dict; space is never lost."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leptonstore.errors import StoreFull
from leptonstore.format import volume as lvb
from leptonstore.testing.tiers import content, pack_id
from leptonstore.tiers.block import BlockPackSink, BlockTier
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_volume import Volume

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
        self.open: list[tuple[str, BlockPackSink, bytes]] = []

    @initialize(size=st.integers(SIZE - UNIT, SIZE + UNIT))
    def format(self, size: int) -> None:
        self.units = format_block(self.path, size, unit=UNIT).units
        self.tier = BlockTier(Volume(self.path))
        self.other = BlockTier(Volume(self.path))  # only reads

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
        pack, data = pack_id(), content(size, seed)
        sink = self.tier.create_pack(pack)
        sink.write(data[: size // 2], data[size // 2 :])
        self.open.append((pack, sink, data))

    @precondition(lambda self: self.open)
    @rule(choose=st.randoms(use_true_random=False))
    def seal(self, choose: random.Random) -> None:
        pack, sink, data = self.open.pop(choose.randrange(len(self.open)))
        fits = -(-len(data) // UNIT) <= self._free() and len(self.sealed) < self.units
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
        self.tier = BlockTier(Volume(self.path))

    @rule()
    def fill(self) -> None:
        """All of the free space can be used, however scattered it is."""
        free = self._free()
        if 0 < free <= lvb.UNITS_PER_PACK_MAX and len(self.sealed) < self.units:
            pack, data = pack_id(), content(free * UNIT, free)
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
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
