"""The power fails at every sync point of every run, with every legal outcome: is each promise kept?

    python -m tests.crash.power_loss          a sample of the outcomes, as the tests take it
    python -m tests.crash.power_loss --all    every operation, every subset of what was pending (a long time)

Prints one JSON line per run. Exits with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import LeptonError, NotFound, StoreMissing
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from leptonstore.store.log import HINT

from . import runs
from .disk import OF_THE_LIVING, Disk, Loss, Tree
from .recording import Mark
from .runs import Recording

GO_ON_EVERY = 8  # of so many different disks, one is worked on afterwards
BROKEN_MAX = 20  # broken promises after which the search ends


@dataclass
class Promises:
    """What was promised up to a point."""

    created: bool = False
    refs: dict[str, set[str | None]] = field(default_factory=dict)  # ref -> where it may be
    commits: set[str] = field(default_factory=set)  # which must be readable

    @classmethod
    def at(cls, marks: list[Mark], later: list[Mark]) -> Promises:
        """`later`: the marks that follow; a move that has begun may have happened."""
        promised = cls()
        moving: set[str] = set()
        for mark in marks:
            match mark.what:
                case "created":
                    promised.created = True
                case "moving":
                    moving.add(mark.value)
                case "moved":
                    ref, commit = mark.value
                    promised.refs[ref] = {commit}
                    moving.discard(ref)
                    promised.commits |= {commit} - {None}
                case "released":
                    promised.commits -= set(mark.value)
        for ref in moving:
            ends = [mark.value[1] for mark in later if mark.what == "moved" and mark.value[0] == ref]
            promised.refs[ref] = promised.refs.get(ref, {None}) | set(ends[:1])
            if not ends:  # its process was killed: nobody knows
                del promised.refs[ref]
        return promised


@dataclass
class Found:
    """What stood on one disk."""

    missing: bool = False  # there is no store
    wrong: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    readable: set[str] = field(default_factory=set)

    def broken(self, promised: Promises) -> list[str]:
        """The promises that this disk does not keep."""
        if self.missing:
            return ["there is no store any more"] if promised.created else []
        wrong = list(self.wrong)
        wrong += [f"commit {commit[:12]} was lost" for commit in sorted(promised.commits - self.readable)]
        for ref, allowed in promised.refs.items():
            found = self.refs.get(ref)
            if found not in allowed:
                wrong.append(f"{ref} is at {found}, not at one of {allowed}")
        return wrong


@dataclass
class Verdict:
    """What the power losses of one recording showed."""

    points: int = 0
    in_flight: int = 0  # points at which something was not durable
    outcomes: int = 0
    losing: int = 0  # outcomes in which the disk was another one than without the power loss
    disks: int = 0  # different ones
    continued: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """The sum of both."""
        for name in ("points", "in_flight", "outcomes", "losing", "disks", "continued"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.broken += other.broken


def key_of(tree: Tree, hint: bool) -> frozenset[tuple[str, bytes | None]]:
    """Equal for disks on which nobody could tell a difference. Without `hint`, HEAD makes none: it is ignored when it is wrong."""
    return frozenset(
        (path, data)
        for path, data in tree.items()
        if OF_THE_LIVING.isdisjoint(path.split("/")[1:-1]) and (hint or path != f"store/{HINT}")
    )


class Examiner:
    """Opens disks in `place` and looks. Each different disk is looked at once."""

    def __init__(self, place: Path, tables: dict[str, pa.Table], hint: bool) -> None:
        self.place, self.tables, self.hint = place, tables, hint
        self.continued = 0
        self._known: dict[frozenset[tuple[str, bytes | None]], Found] = {}

    @property
    def disks(self) -> int:
        """How many different ones there were."""
        return len(self._known)

    def look(self, tree: Tree) -> Found:
        """What a user would find."""
        key = key_of(tree, self.hint)
        if key not in self._known:
            self._known[key] = self._look(tree, go_on=len(self._known) % GO_ON_EVERY == 0)
        return self._known[key]

    def _look(self, tree: Tree, go_on: bool) -> Found:
        shutil.rmtree(self.place, ignore_errors=True)
        runs.write_tree(tree, self.place / "disk")
        url = self.place / "disk" / "store"
        found = Found()
        try:
            with Store.open(url, self.place / "cache") as store:
                self._read(store, found)
        except StoreMissing:
            found.missing = True
        except LeptonError as error:
            found.wrong.append(f"the store does not open: {error}")
            return found
        if go_on or found.missing:
            self._go_on(url, found)
        return found

    def _read(self, store: Store, found: Found) -> None:
        found.wrong += [problem.line() for problem in check_store(store, read_data=True).problems]
        found.refs = {ref: record.commit for ref, record in store.state.refs.items()}
        for commit, rows in self.tables.items():
            try:
                if Dataset(store, "any", "main", commit).to_arrow().equals(rows):
                    found.readable.add(commit)
                else:
                    found.wrong.append(f"commit {commit[:12]} has other rows")
            except NotFound:
                continue  # whether that breaks a promise depends on when the power failed
            except LeptonError as error:
                found.wrong.append(f"commit {commit[:12]}: {error}")

    def _go_on(self, url: Path, found: Found) -> None:
        """The next user works on: an import and a collection, then everything is read by a process with an index of its own."""
        self.continued += 1
        rows = runs.table(99)
        source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {})
        try:
            with Store.create(url) if found.missing else Store.open(url, self.place / "cache") as store:
                made = write_dataset(store, "later", source).commit
                collect(store)
            with Store.open(url, self.place / "cache-2") as store:
                after = Found()
                self._read(store, after)
                found.wrong += [f"after it went on: {wrong}" for wrong in after.wrong]
                gone = {record for record in found.refs.values() if record in found.readable} - after.readable
                if gone or not Dataset(store, "later", "main", made).to_arrow().equals(rows):
                    found.wrong.append(f"after it went on, {gone or made} cannot be read")
        except LeptonError as error:
            found.wrong.append(f"it cannot go on: {error}")


def examine(
    recording: Recording, place: Path, every: bool = False, broken_max: int = BROKEN_MAX, seed: int = 0
) -> Verdict:
    """Let the power fail at every sync point of a recording, until `broken_max` promises are broken.

    Works in `place`, which is emptied again and again.
    """
    disk, rng, verdict = Disk(recording.ops), random.Random(seed), Verdict()
    examiner = Examiner(place, recording.tables, hint=every)
    for at in disk.points(every):
        if at < recording.begin or len(verdict.broken) >= broken_max:
            continue
        verdict.points += 1
        verdict.in_flight += bool(disk.pending(at))
        calm = key_of(disk.tree(at, Loss(frozenset(disk.pending(at)))), hint=True)
        promised = Promises.at(disk.marks(at), [op for op in recording.ops[at:] if isinstance(op, Mark)])
        for loss in disk.losses(at, rng, every):
            verdict.outcomes += 1
            tree = disk.tree(at, loss)
            verdict.losing += key_of(tree, hint=True) != calm
            for what in examiner.look(tree).broken(promised):
                text = f"power loss at operation {at}: {what} (on the disk: {sorted(loss.applied)}, torn {loss.torn})"
                verdict.broken.append(text)
    verdict.disks, verdict.continued = examiner.disks, examiner.continued
    return verdict


def examine_run(name: str, every: bool) -> Verdict:
    """Record and examine one run; one that is to be disturbed, at each of its operations."""
    with tempfile.TemporaryDirectory(prefix="lepton-power-loss-") as folder:
        place = Path(folder)
        if name in runs.RUNS:
            return examine(runs.record(runs.RUNS[name], place / "run"), place / "look", every)
        disturbed, total = runs.DISTURBED_RUNS[name], Verdict()
        calm = runs.record(disturbed.first, place / "calm")
        for call, at in enumerate(calm.starts):
            if call >= disturbed.skip and at >= calm.begin and len(total.broken) < BROKEN_MAX:
                with contextlib.suppress(runs.NothingInFlight):
                    total.add(examine(runs.record(disturbed.at(call), place / f"run-{call}"), place / "look"))
                shutil.rmtree(place / f"run-{call}")
        return total


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.power_loss", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every operation and every legal subset")
    names = [*runs.RUNS, *runs.DISTURBED_RUNS]
    parser.add_argument("--run", choices=names, action="append", help="only this run (may be repeated)")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.run or (names if arguments.all else runs.RUNS):
        begin = time.perf_counter()
        verdict = examine_run(name, arguments.all)
        seconds = round(time.perf_counter() - begin, 1)
        print(json.dumps({"run": name, "seconds": seconds, **vars(verdict)}), flush=True)
        failed = failed or bool(verdict.broken)
    sys.exit(failed)


if __name__ == "__main__":
    main()
