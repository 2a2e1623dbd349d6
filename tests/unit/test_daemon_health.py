"""/readyz tells of the store as it is now."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from leptonstore.daemon.http import health as module
from leptonstore.daemon.http.failures import Failed
from leptonstore.daemon.http.health import Health


def test_a_look_that_failed_after_its_probe_had_gone_is_not_told_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store was there again, and the next probe, however late, got the old failure."""
    go_on, away = threading.Event(), [True]

    def refresh() -> None:
        go_on.wait(60)
        if away[0]:
            raise OSError("away")

    health = Health(cast(Any, SimpleNamespace(reading=SimpleNamespace(refresh=refresh))))
    monkeypatch.setattr(module, "READY_S", 0.01)
    with pytest.raises(Failed):
        asyncio.run(health.ready(cast(Any, None)))
    look = health._look
    assert look is not None
    go_on.set()
    assert isinstance(look.exception(60), OSError)
    away[0] = False
    monkeypatch.setattr(module, "READY_S", 10.0)
    assert asyncio.run(health.ready(cast(Any, None))).status_code == 200
    health.close()
