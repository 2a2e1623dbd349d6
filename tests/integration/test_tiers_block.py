"""The block tier keeps what a tier promises, on a volume file; and what it refuses, it refuses by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from leptonstore.testing.tiers import PackTierSuite
from leptonstore.tiers.block import BlockTier, open_block
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_volume import Volume

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
