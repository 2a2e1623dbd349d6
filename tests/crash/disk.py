"""Which contents a disk may have after the power failed in the middle of a recording.

What POSIX promises, and no more: fsync of a file makes its bytes and size durable, but not its name; fsync of a directory makes
the names in it durable, but neither the bytes of those files nor the directory's own name. Everything else that was done since
may have reached the disk or not, each operation on its own and in any order; a write may be cut, or its length may be there and
zeros instead of its bytes. A rename happens as a whole or not at all.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from .recording import ROOT, Data, Mark, Name, Op, Sync

SECTOR = 512
TRIED_MAX = 12  # visible pending operations that a sample treats one by one
SUBSETS_MAX = 7  # visible pending operations up to which every subset is tried
# Folders of files that only their living writers, and those who ask whether they live, look into: a power loss ends them all.
OF_THE_LIVING = {"tmp", "writers", "leases"}
Tree = dict[str, bytes | None]  # path -> bytes, None for a directory


@dataclass(frozen=True)
class Loss:
    """One outcome of a power loss: which pending operations reached the disk.

    torn: operation -> (bytes of it that did, whether zeros stand for the rest).
    """

    applied: frozenset[int]
    torn: dict[int, tuple[int, bool]] = field(default_factory=dict)


class Disk:
    """All outcomes of a power loss at every point of a recording. Point n: the operations before the n-th were called."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self._files: dict[int, list[int]] = defaultdict(list)
        self._folders: dict[int, list[int]] = defaultdict(list)
        self._is_folder = {ROOT}
        self._durable_from = [len(ops) + 1] * len(ops)  # the point from which an operation is sure to be on the disk
        unsynced: dict[int, list[int]] = defaultdict(list)
        for at, op in enumerate(ops):
            match op:
                case Data():
                    self._files[op.file].append(at)
                    unsynced[op.file].append(at)
                case Name():
                    for folder in {op.folder, op.origin[0] if op.origin else op.folder}:
                        self._folders[folder].append(at)
                        unsynced[folder].append(at)
                    if op.is_folder and op.child is not None:
                        self._is_folder.add(op.child)
                case Sync():
                    for done in unsynced.pop(op.node, ()):
                        self._durable_from[done] = min(self._durable_from[done], at + 1)
        self._contents: dict[tuple[object, ...], bytes] = {}

    def points(self, every: bool = False) -> list[int]:
        """Before and after each sync, change of a name, and promise; with `every`, each operation."""
        found = {0, len(self.ops)}
        for at, op in enumerate(self.ops):
            if every or not isinstance(op, Data):
                found |= {at, at + 1}
        return sorted(found)

    def pending(self, at: int) -> list[int]:
        """The operations that a power loss at this point may undo."""
        return [n for n in range(at) if self._durable_from[n] > at and isinstance(self.ops[n], Data | Name)]

    def visible(self, at: int) -> list[int]:
        """Those among them that somebody who opens the store could see: nothing under a passing name."""
        done = [op for op in self.ops[:at] if isinstance(op, Name)]
        passing = {op.child for op in done if op.is_folder and op.name in OF_THE_LIVING}
        named = {op.child for op in done if op.folder not in passing}
        found = []
        for n in self.pending(at):
            op = self.ops[n]
            if op.file in named if isinstance(op, Data) else op.folder not in passing:  # type: ignore[union-attr]
                found.append(n)
        return found

    # -- outcomes ------------------------------------------------------------------------------------------------

    def losses(self, at: int, rng: random.Random, every: bool) -> Iterator[Loss]:
        """Outcomes at one point, the extreme ones first. `every`: all subsets where there are few enough."""
        pending, visible = self.pending(at), self.visible(at)
        data = [n for n in visible if isinstance(self.ops[n], Data)]
        names = frozenset(visible) - frozenset(data)
        hidden = frozenset(pending) - frozenset(visible)
        yield Loss(frozenset())
        yield Loss(frozenset(pending))
        yield Loss(names)  # names without bytes: the nastiest
        yield Loss(frozenset(visible), dict.fromkeys(data, (0, True)))
        yield Loss(frozenset(data))
        tried = visible if every or len(visible) <= TRIED_MAX else sorted(rng.sample(visible, TRIED_MAX))
        for n in tried:
            yield from self._with_tears(visible[: visible.index(n) + 1], n, rng)
        for n in tried:
            yield Loss(frozenset({n}))
            yield from self._with_tears(visible, n, rng)
            yield Loss(frozenset(visible) - {n} | hidden)
        if every and len(visible) <= SUBSETS_MAX:
            for size in range(len(visible) + 1):
                for chosen in combinations(visible, size):
                    yield Loss(frozenset(chosen), self._tears(chosen, rng))
                    yield Loss(frozenset(chosen))
        for _ in range(16 if every else 2):
            chosen = [n for n in pending if rng.random() < 0.5]
            yield Loss(frozenset(chosen), self._tears(chosen, rng))

    def _with_tears(self, chosen: list[int], last: int, rng: random.Random) -> Iterator[Loss]:
        yield Loss(frozenset(chosen))
        if isinstance(self.ops[last], Data):
            yield Loss(frozenset(chosen), self._tears([last], rng))

    def _tears(self, chosen: list[int] | tuple[int, ...], rng: random.Random) -> dict[int, tuple[int, bool]]:
        torn = {}
        for n in chosen:
            op = self.ops[n]
            if isinstance(op, Data) and op.data:
                cut = rng.randrange(len(op.data))
                torn[n] = (cut - cut % SECTOR if rng.random() < 0.5 else cut, rng.random() < 0.5)
        return torn

    # -- contents ------------------------------------------------------------------------------------------------

    def tree(self, at: int, loss: Loss) -> Tree:
        """What stands on the disk afterwards."""
        out: Tree = {}
        self._list(ROOT, "", at, loss, out)
        return out

    def _list(self, folder: int, prefix: str, at: int, loss: Loss, out: Tree) -> None:
        entries: dict[str, int] = {}
        for n in self._folders[folder]:
            if n >= at:
                break
            op = self.ops[n]
            assert isinstance(op, Name)
            if self._durable_from[n] > at and n not in loss.applied:
                continue
            if op.origin is not None and op.origin[0] == folder:
                entries.pop(op.origin[1], None)
            if op.folder == folder:
                if op.child is None:
                    entries.pop(op.name, None)
                else:
                    entries[op.name] = op.child
        for name, child in entries.items():
            if child in self._is_folder:
                out[prefix + name] = None
                self._list(child, f"{prefix}{name}/", at, loss, out)
            else:
                out[prefix + name] = self._content(child, at, loss)

    def _content(self, file: int, at: int, loss: Loss) -> bytes:
        done = [n for n in self._files[file] if n < at and (self._durable_from[n] <= at or n in loss.applied)]
        torn = tuple((n, loss.torn[n]) for n in done if n in loss.torn and self._durable_from[n] > at)
        key = (file, tuple(done), torn)
        if key not in self._contents:
            self._contents[key] = self._write(done, dict(torn))
        return self._contents[key]

    def _write(self, done: list[int], torn: dict[int, tuple[int, bool]]) -> bytes:
        content = bytearray()
        for n in done:
            op = self.ops[n]
            assert isinstance(op, Data)
            data = op.data
            if data is None:
                del content[op.offset :]
                content.extend(bytes(op.offset - len(content)))
                continue
            if n in torn:
                kept, zeros = torn[n]
                data = data[:kept] + bytes(len(data) - kept if zeros else 0)
            content.extend(bytes(max(0, op.offset - len(content))))
            content[op.offset : op.offset + len(data)] = data
        return bytes(content)

    def marks(self, at: int) -> list[Mark]:
        """What was promised before this point."""
        return [op for op in self.ops[:at] if isinstance(op, Mark)]
