"""A daemon under mixed clients for some seconds: nothing goes wrong, nothing is damaged, it stays small. Longer: bench/daemon_soak.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import daemon_soak

SECONDS = 20.0


def test_a_daemon_serves_mixed_clients_while_it_maintains_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = daemon_soak.soak(tmp_path, SECONDS)
    assert found["wrong"] == [] and found["damage"] == []
    assert set(found["idle"]) <= {"maintain"}, "a kind of client got nothing"
    samples = found["watch"].samples
    assert max(one["memory"] for one in samples) < 700, "MiB; 250 are usual"
    assert max(one["descriptors"] for one in samples) < 600
    assert max(one["threads"] for one in samples) < 200
