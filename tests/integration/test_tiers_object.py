"""The object tier on a real S3 server and in memory: the conformance suite, forks, and everything that servers do wrong."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.testing import tiers as suite
from leptonstore.testing.tiers import HomeSuite, LockSuite, PackTierSuite
from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.object_locks import ObjectLock
from leptonstore.tiers.open import open_tier


def object_tier(url: str) -> ObjectTier:
    tier = open_tier(url)
    assert isinstance(tier, ObjectTier)
    return tier


class _ObjectSuite(PackTierSuite, HomeSuite, LockSuite):
    def reopened(self, tier: ObjectTier) -> ObjectTier:
        return object_tier(tier.url)

    def die(self, tier: ObjectTier, lock: ObjectLock) -> None:
        """Nobody renews it any more; wait until the server's clock says that this is so."""
        lock.forget()
        deadline = time.monotonic() + 30
        path = f"leases/{lock.name}"
        while (tier._keeper.server_time() - tier._client.entry(path).modified).total_seconds() <= limits.LOCK_DEAD_S:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)


class TestMemory(_ObjectSuite):
    @pytest.fixture
    def tier(self, monkeypatch: pytest.MonkeyPatch) -> ObjectTier:
        monkeypatch.setattr(limits, "LOCK_RENEW_S", 0.02)
        monkeypatch.setattr(limits, "LOCK_DEAD_S", 0.3)
        return object_tier(f"memory://{secrets.token_hex(8)}")


class TestS3(_ObjectSuite):
    @pytest.fixture
    def tier(self, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> ObjectTier:
        monkeypatch.setattr(limits, "LOCK_RENEW_S", 0.2)
        monkeypatch.setattr(limits, "LOCK_DEAD_S", 2.5)  # the server's clock has whole seconds
        monkeypatch.setattr(suite, "RACES", 3)  # a race of eight takes SeaweedFS a second
        return object_tier(bucket_url)
