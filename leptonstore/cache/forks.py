"""Forks: what a child inherits of its parent's caches, and must not keep.

A descriptor that a child inherits holds the parent's lock for as long as the child lives. So descriptors that are held for a moment only
(a flight, a value being written) are noted here and closed in the child; and each cache lets no thread of its own be in the middle of a
change while the process forks, and opens a lock of its own in the child. What a view holds is left alone: the child has the view, too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """A cache. Called by the forking thread."""

    def before_fork(self) -> None:
        """Wait until no thread is changing anything, and keep it so."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Go on, with locks of its own."""


transient: set[int] = set()  # descriptors that a child closes
_caches: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registry = threading.Lock()  # of `_caches`; taken before any other lock
_forking: list[Forkable] = []


def register(cache: Forkable) -> None:
    """Tell a cache of forks for as long as it lives."""
    with _registry:
        _caches.add(cache)


def close_transient(file: int) -> None:
    """Close a descriptor that was noted; nothing happens in a child, which has closed it already."""
    if file in transient:
        transient.discard(file)
        os.close(file)


def _before() -> None:
    _registry.acquire()
    _forking[:] = list(_caches)
    for cache in _forking:
        cache.before_fork()


def _after_in_parent() -> None:
    for cache in _forking:
        cache.after_fork_in_parent()
    _forking.clear()
    _registry.release()


def _after_in_child() -> None:
    for cache in _forking:
        cache.after_fork_in_child()
    _forking.clear()
    for file in transient:
        with contextlib.suppress(OSError):
            os.close(file)
    transient.clear()
    _registry.release()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
