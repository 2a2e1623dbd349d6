"""Which hot cache a dataset is read through: its place and its budget travel with the dataset, the open cache does not.

What is read through it are pages, large values and tree nodes. Export, check, repair and garbage collection read around it: they go through
everything once, or must see what is stored.
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from pathlib import Path

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.cache.chunks import CachedChunks
from leptonstore.store import Store

_opened: weakref.WeakSet[HotCache] = weakref.WeakSet()
_told: set[str] = set()


class CacheLink:
    """A hot cache, opened by each process when it is needed. Any thread.

    Views of a dataset share it, and with it are one client; each link is a client of its own, with a plan of its own.
    """

    def __init__(self, cache: str | os.PathLike[str] | HotCache, budget_bytes: int | None = None) -> None:
        """budget_bytes: as HotCache; None for a cache that is not there yet: a quarter of what is free at its place."""
        self._cache = cache if isinstance(cache, HotCache) else None
        self.path = cache.path if isinstance(cache, HotCache) else Path(cache).absolute()
        self.budget_bytes = budget_bytes

    def __getstate__(self) -> tuple[str, int | None]:
        return str(self.path), self.budget_bytes

    def __setstate__(self, state: tuple[str, int | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def chunks(self, store: Store) -> CachedChunks:
        """The store's chunks through the cache. Raises BadInput when they are encrypted and the cache is not in RAM."""
        names = store.hot_names
        if self._cache is None:
            budget = self.budget_bytes
            if budget is None and not (self.path / "table").exists():
                budget = usual_budget_bytes(self.path)
            self._cache = HotCache(self.path, budget, ram_only=names is not None, on_problem=_tell_once)
            _opened.add(self._cache)
        return CachedChunks(store, self._cache, names)


def usual_budget_bytes(path: Path) -> int:
    """The budget of a new cache at `path` when nobody said one. Raises OSError when there is no place."""
    place = path
    while not place.exists():
        place = place.parent
    free = os.statvfs(place)
    return max(limits.CACHE_BUDGET_BYTES_MIN, int(free.f_bavail * free.f_frsize * limits.CACHE_BUDGET_FREE_SHARE))


def _tell_once(message: str) -> None:
    """Once in this process, however many datasets and loaders have links to the cache."""
    if message not in _told:
        _told.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


@atexit.register
def _close_all() -> None:
    """So that the last requests of this process are counted."""
    for cache in list(_opened):
        cache.close()
