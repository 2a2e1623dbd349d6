"""memory://NAME: an object tier in this process, for tests and notebooks. It ends with the process."""

from __future__ import annotations

import threading
from typing import Any

from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.object_client import Client

_lock = threading.Lock()
_stores: dict[str, Any] = {}


def memory_tier(url: str) -> ObjectTier:
    """The tier of that name: the same one for everybody in this process. Raises MissingExtra."""

    def make(obstore: Any) -> Any:
        with _lock:
            if url not in _stores:
                _stores[url] = obstore.store.MemoryStore()
            return _stores[url]

    return ObjectTier(Client(url, make, lives_here=True))
