"""kill -9 of processes that import, collect garbage and read at the same time: no acknowledged commit is lost.

    python -m tests.crash.kill --kills 200

In each round two importers, a collection and a reader work on one store. One of them, the victim, kills itself right before an
operation that was drawn for it (writes, syncs, links, removals; a reader's reads): a moment in the middle of its work that does not
depend on the machine's speed. The others see it die, finish what they have begun, and stop; then another process looks at everything,
with an index of its own or with the one that the killed left behind. What was promised stands in journals, which are written beside
the store, synced, and not counted as operations.

Prints one JSON line. Exits with 1 when anything was lost or wrong, or when a victim had nothing in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.soak import rows_of
from leptonstore import limits
from leptonstore.dataset import Dataset, Source, delete_ref, write_dataset
from leptonstore.errors import Conflict, RefMissing
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect

ROLES = ("importer-0", "importer-1", "collector", "reader")
# What a victim does in about two units of its work: its death is drawn from as many operations.
OPERATIONS = {"importer-0": 250, "importer-1": 250, "collector": 60, "reader": 40}
KEPT_PER_IMPORTER = 3  # datasets; older ones are removed, so that there is garbage
ROUND_SECONDS_MAX = 120
COUNTED = ("pwritev", "fsync", "link", "unlink", "rename", "replace", "posix_fallocate")


class Journal:
    """What one process did, one JSON line each, durable when `add` returns."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._write, self._fsync = os.write, os.fsync  # as they are before the victim counts them

    def add(self, what: str, **values: Any) -> None:
        """One line."""
        self._write(self._fd, json.dumps({"what": what, **values}).encode() + b"\n")
        self._fsync(self._fd)


def die_at(operation: int, reads: bool) -> None:
    """From now on this process counts its operations, and kills itself before the n-th."""
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in (*COUNTED, "pread") if reads else COUNTED:
        setattr(os, name, counted(getattr(os, name)))


# -- the processes ---------------------------------------------------------------------------------------------------


def importer(store: Store, journal: Journal, role: str, number: int, mine: list[tuple[str, str]]) -> None:
    """One unit: a dataset more, and the oldest of this importer's less."""
    name = f"{role}-{number}"
    seed = number * len(ROLES) + ROLES.index(role)
    rows = rows_of(seed)
    source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {})
    journal.add("begin", name=name)
    made = write_dataset(store, name, source).commit
    journal.add("acknowledged", name=name, commit=made, seed=seed)
    mine.append((name, made))
    if len(mine) > KEPT_PER_IMPORTER:
        old, gone = mine[0]
        journal.add("begin", released=gone)
        delete_ref(store, "dataset", old, "main")
        journal.add("removed", commit=gone)
        del mine[0]


def collector(store: Store, journal: Journal) -> None:
    """One unit: a collection."""
    journal.add("begin")
    report = collect(store)
    journal.add("collected", removed=report.packs_removed, repacked=report.repacked)


def reader(store: Store, journal: Journal, rng: random.Random, seeds: dict[str, int]) -> None:
    """One unit: all rows of a version that is held while it is read."""
    journal.add("begin")
    store.refresh()
    refs = sorted(store.state.refs.items())
    if not refs:
        journal.add("nothing to read yet")
        return
    name, record = rng.choice(refs)
    try:
        with store.lease(record.commit):
            rows = Dataset(store, name.split("/")[1], "main", record.commit).to_arrow()
    except RefMissing:
        journal.add("removed meanwhile")
        return
    if record.commit in seeds and not rows.equals(rows_of(seeds[record.commit])):
        raise AssertionError(f"{name} has other rows")
    journal.add("read", name=name)


def work(role: str, place: Path, round_: int, death: int, promised: Promised) -> None:
    """A process of one round. `death`: the operation before which it dies, -1 for those that do not."""
    journal = Journal(place / f"{round_}-{role}.journal")
    rng = random.Random(f"{round_} {role}")
    stop = place / f"{round_}-stop"
    limits.PACK_BYTES_MAX = 65_536  # several packs in each import
    mine = [(name, commit) for name, commit in promised.datasets if name.startswith(role)]
    units = 0
    with Store.open(place / "store", place / "cache") as store:
        if death >= 0:
            die_at(death, reads=role == "reader")
        while death >= 0 or units == 0 or not stop.exists():
            try:
                if role == "collector":
                    collector(store, journal)
                elif role == "reader":
                    reader(store, journal, rng, promised.seeds)
                else:
                    importer(store, journal, role, round_ * 1_000 + units, mine)
            except Conflict as error:
                journal.add("retried", error=type(error).__name__)
            units += 1


class Promised:
    """What the journals of all rounds add up to."""

    def __init__(self) -> None:
        self.seeds: dict[str, int] = {}  # commit -> seed of its rows, while it must be readable
        self.datasets: list[tuple[str, str]] = []  # (name, commit), oldest first
        self.counts: Counter[str] = Counter()

    def add(self, path: Path) -> str:
        """Read one journal; returns what its last line says."""
        last = ""
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            last = entry["what"]
            self.counts[last] += 1
            if last == "acknowledged":
                self.seeds[entry["commit"]] = entry["seed"]
                self.datasets.append((entry["name"], entry["commit"]))
            elif gone := entry.get("released"):
                self.seeds.pop(gone, None)
                self.datasets = [each for each in self.datasets if each[1] != gone]
            elif last == "collected":
                self.counts["packs removed"] += entry["removed"]
                self.counts["packs repacked"] += entry["repacked"]
        return last


def look(place: Path, promised: Promised, cache: str) -> None:
    """Everything is clean and every promise is kept, or AssertionError. `cache`: the index of the others, or one of its own."""
    with Store.open(place / "store", place / cache) as store:
        report = check_store(store, read_data=True)
        assert report.clean, [problem.line() for problem in report.problems]
        for commit, seed in promised.seeds.items():
            assert Dataset(store, "any", "main", commit).to_arrow().equals(rows_of(seed)), f"{commit} has other rows"
        for name, commit in promised.datasets:
            assert store.state.refs[f"dataset/{name}/main"].commit == commit, f"{name} was moved"


def _last(journal: Path) -> str:
    """What the last line of a journal says, which its process may be writing."""
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return str(json.loads(lines[-1])["what"]) if lines else ""


# -- rounds ----------------------------------------------------------------------------------------------------------


def started(run: Callable[[], None], errors: Path) -> int:
    """A forked process that does `run`; what it raises is appended to `errors`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(ROUND_SECONDS_MAX)
        run()
        code = 0
    except BaseException:
        with open(errors, "a") as file:
            file.write(traceback.format_exc())
    finally:
        os._exit(code)


def one_round(place: Path, round_: int, rng: random.Random, promised: Promised) -> list[str]:
    """Returns what was wrong."""
    victim = ROLES[round_ % len(ROLES)]
    death = rng.randint(1, OPERATIONS[victim])
    errors = place / f"{round_}-errors"
    children = {
        role: started(
            lambda role=role: work(role, place, round_, death if role == victim else -1, promised),  # type: ignore[misc]
            errors,
        )
        for role in ROLES
    }
    ends = {victim: os.waitstatus_to_exitcode(os.waitpid(children[victim], 0)[1])}
    journals = {role: place / f"{round_}-{role}.journal" for role in ROLES}
    busy = [role for role, path in journals.items() if role != victim and _last(path) == "begin"]
    promised.counts["others_in_flight"] += len(busy)
    (place / f"{round_}-stop").touch()
    for role in ROLES:
        if role != victim:
            ends[role] = os.waitstatus_to_exitcode(os.waitpid(children[role], 0)[1])
    wrong = [f"{role} ended with {end}" for role, end in ends.items() if end != (-9 if role == victim else 0)]
    lasts = {role: promised.add(path) for role, path in journals.items()}
    if lasts[victim] != "begin":
        wrong.append(f"nothing was in flight: the last that {victim} did was {lasts[victim]!r}")
    looked = started(lambda: look(place, promised, "cache" if round_ % 2 else f"{round_}-cache"), errors)
    if os.waitpid(looked, 0)[1] != 0:
        wrong.append("the store was not as promised")
    if errors.exists():
        wrong.append(errors.read_text())
    return [f"round {round_}, {victim} killed before operation {death}: {what}" for what in wrong]


def run(kills: int, seed: int, place: Path) -> dict[str, Any]:
    """All rounds on one store in `place`, until something is wrong. This process itself never opens the store: it only forks."""
    begin = time.perf_counter()
    rng, promised = random.Random(seed), Promised()
    made = started(lambda: Store.create(place / "store", cache_dir=place / "cache").close(), place / "errors")
    wrong = ["the store could not be made"] if os.waitpid(made, 0)[1] else []
    done = 0
    while done < kills and not wrong:
        wrong = one_round(place, done, rng, promised)
        done += 1
    return {
        "kills": done,
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        **{name.replace(" ", "_"): count for name, count in sorted(promised.counts.items())},
        "readable": len(promised.seeds),
        "wrong": wrong,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lepton-kill-") as folder:
        result = run(arguments.kills, arguments.seed, Path(folder))
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
