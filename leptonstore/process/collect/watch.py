"""A directory, collected whenever its files change.

Changes are told by the system (inotify and its like, through `watchfiles`); what they mean is found out by looking at the directory again,
so that a change that was missed costs nothing but time. A file that was written to a moment ago may be half of what it will be: it is left
until it has been quiet for `settle_s` seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from leptonstore.dataset.importers.reading import reading
from leptonstore.dataset.optional import require_module
from leptonstore.errors import SourceError
from leptonstore.process.collect.collect import Collected
from leptonstore.process.collect.items import Item

SETTLE_S = 2.0  # a copy over a network writes more often than this
_LOOK_MS = 500  # how long changes are gathered before we look


def watch(
    folder: str | Path,
    look: Callable[[Iterator[Item]], Collected],
    listing: Callable[[], Iterator[Item]],
    settle_s: float = SETTLE_S,
    stop: threading.Event | None = None,
) -> Iterator[Collected]:
    """Call `look` with the items of `listing`: now, and whenever something below `folder` changes; yield what came of it.

    Those that are not quiet are marked `later`: they are there, and not to be fetched yet.

    Ends when `stop` is set. Raises SourceError (no directory), MissingExtra, and what `look` raises.
    """
    watchfiles = require_module("watching a directory", "collect", "watchfiles")
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"{root} is no directory; only directories of this machine can be watched", str(root))
    stop = stop or threading.Event()
    # The watch begins before the first look, so that nothing falls between them. It wakes up for files that were not quiet yet, too.
    changes = watchfiles.watch(
        root,
        stop_event=stop,
        step=50,
        debounce=_LOOK_MS,
        rust_timeout=_LOOK_MS,
        yield_on_timeout=True,
        raise_interrupt=True,
    )
    waiting, first = True, True
    for changed in changes:
        if not (changed or waiting or first):
            continue
        items, waiting = _quiet(listing(), settle_s)
        first = False
        yield look(iter(items))


def _quiet(items: Iterator[Item], settle_s: float) -> tuple[list[Item], bool]:
    """Those that are there, and whether somebody wrote to one of them lately: these are marked."""
    found, waiting = [], False
    for item in items:
        if isinstance(item.place, Path):
            try:
                with reading(item.place):
                    age = time.time() - item.place.stat().st_mtime
            except SourceError:
                continue  # gone meanwhile
            if 0 <= age < settle_s:
                waiting = True
                item = replace(item, later=True)
        found.append(item)
    return found, waiting
