"""Faults that the power-loss simulation must find: each is what somebody might plausibly get wrong in writing a store.

A fault is a context manager that is entered while a recorder is installed: it wraps the functions of `os` once more.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from leptonstore.store.log import Log
from leptonstore.tiers import durable

Fault = Callable[[], AbstractContextManager[None]]


def path_of(fd: int) -> str:
    """The name under which a descriptor was opened."""
    return os.readlink(f"/proc/self/fd/{fd}")


@contextmanager
def _syncs(wanted: Callable[[int, str], bool]) -> Iterator[None]:
    """Only some fsyncs are done; the others are forgotten."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if wanted(os.fstat(fd).st_mode, path_of(fd)):
            real(fd)

    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = real


def packs_unsynced() -> AbstractContextManager[None]:
    """The bytes of packs are never synced."""
    return _syncs(lambda mode, path: stat.S_ISDIR(mode) or ".pack" not in path)


def log_unsynced() -> AbstractContextManager[None]:
    """The bytes of log entries are never synced."""
    return _syncs(lambda mode, path: stat.S_ISDIR(mode) or ".pack" in path or "config" in path)


def names_of_packs_unsynced() -> AbstractContextManager[None]:
    """The directory of a pack is not synced after the pack was linked there."""
    return _syncs(lambda mode, path: not (stat.S_ISDIR(mode) and os.path.basename(os.path.dirname(path)) == "packs"))


def names_of_entries_unsynced() -> AbstractContextManager[None]:
    """The directory of the log is not synced."""
    return _syncs(lambda mode, path: not (stat.S_ISDIR(mode) and os.path.basename(path) == "log"))


def names_of_directories_unsynced() -> AbstractContextManager[None]:
    """A new directory's own name is not synced."""
    return _syncs(lambda mode, path: not (stat.S_ISDIR(mode) and os.path.basename(path) in ("packs", "store", "disk")))


@contextmanager
def entry_before_its_packs() -> Iterator[None]:
    """Packs are synced only after the log entry that lists them."""
    fsync, late = os.fsync, contextlib.ExitStack()
    link = os.link

    def delayed(fd: int) -> None:
        if "/packs/" in path_of(fd) or ".pack" in path_of(fd):
            again = os.dup(fd)
            late.callback(os.close, again)
            late.callback(fsync, again)
        else:
            fsync(fd)
            if os.path.basename(path_of(fd)) == "log":
                late.close()

    os.fsync = delayed
    try:
        with late:
            yield
    finally:
        os.fsync, os.link = fsync, link


@contextmanager
def entry_written_in_place() -> Iterator[None]:
    """Log entries are linked first and written afterwards: what `open(O_EXCL)` under the final name would be."""
    link, fsync = os.link, os.fsync
    pending: list[tuple[object, object]] = []

    def early(fd: int) -> None:
        path = path_of(fd)
        if path.endswith(".tmp") and ".pack" not in path and "config" not in path:
            pending.append((fd, path))
        else:
            fsync(fd)

    def linked(source: object, target: object) -> None:
        link(source, target)  # type: ignore[arg-type]
        while pending:
            fsync(pending.pop()[0])  # type: ignore[arg-type]

    os.link, os.fsync = linked, early
    try:
        yield
    finally:
        os.link, os.fsync = link, fsync


@contextmanager
def directories_believed() -> Iterator[None]:
    """A directory that is there is believed to be durable, whoever made it."""
    real = durable.make_directory

    def make_directory(path: Path) -> None:
        if not path.is_dir():
            real(path)

    durable.make_directory = make_directory
    try:
        yield
    finally:
        durable.make_directory = real


@contextmanager
def entries_believed() -> Iterator[None]:
    """A log entry that is there is believed to be durable, whoever made it."""
    real = Log.confirm
    Log.confirm = lambda self, state: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Log.confirm = real  # type: ignore[method-assign]


# What only shows when a process builds on what another one did and did not sync.
DISTURBED: dict[str, Fault] = {
    "the names of directories are believed": directories_believed,
    "the names of log entries are believed": entries_believed,
}
FAULTS: dict[str, Fault] = {
    "the bytes of packs are not synced": packs_unsynced,
    "the bytes of log entries are not synced": log_unsynced,
    "the names of packs are not synced": names_of_packs_unsynced,
    "the names of log entries are not synced": names_of_entries_unsynced,
    "the names of directories are not synced": names_of_directories_unsynced,
    "a log entry is published before its packs are durable": entry_before_its_packs,
    "a log entry is linked before its bytes are durable": entry_written_in_place,
}
