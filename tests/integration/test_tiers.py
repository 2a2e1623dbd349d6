"""Every tier passes the conformance suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from leptonstore.testing.tiers import HomeSuite, LockSuite, PackTierSuite
from leptonstore.tiers.durable import LockFile
from leptonstore.tiers.local import LocalTier


class TestLocal(PackTierSuite, HomeSuite, LockSuite):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> LocalTier:
        return LocalTier(tmp_path / "store")

    def reopened(self, tier: LocalTier) -> LocalTier:
        return LocalTier(tier.root)

    def die(self, tier: LocalTier, lock: LockFile) -> None:
        lock.forget()
