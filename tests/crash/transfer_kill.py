"""kill -9 of a push, right before each operation on files in turn: neither store is harmed, and run again it goes on.

    python -m tests.crash.transfer_kill --every 1

In some rounds a collection takes what arrived before the second attempt. After each death another process
looks at both stores: the ref of the destination is where it was or where it was to be, all that refs lead to is there and whole; then the
push is made again, and everything is at its end. Prints one JSON line; exits with 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.soak import rows_of
from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exchange import push
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from tests.crash.kill import die_at, started

REF = "dataset/t/main"
KILLED = 9


def make(place: Path) -> None:
    """Two stores: the first has a version more than the second."""
    with Store.create(place / "source", cache_dir=place / "made") as source:
        for seed in (1, 2):
            rows = rows_of(seed)
            made = Source(rows.schema, ("id",), lambda rows=rows: iter(rows.to_batches()), rows.num_rows, {})  # type: ignore[misc]
            write_dataset(source, "t", made)
            if seed == 1:
                with Store.create(place / "destination", cache_dir=place / "made") as destination:
                    push(source, destination, [REF])


def transfer(place: Path, death: int) -> None:
    """The push; before operation `death` (0: never) this process kills itself."""
    limits.PACK_BYTES_MAX = 65_536  # several packs
    with (
        Store.open(place / "source", place / "cache") as source,
        Store.open(place / "destination", place / "cache") as destination,
    ):
        if death:
            die_at(death, reads=False)
        push(source, destination, [REF])


def look(place: Path, collected: bool) -> None:
    """Both stores are whole; the transfer goes on from there. Raises AssertionError."""
    with (
        Store.open(place / "source", place / "look") as source,
        Store.open(place / "destination", place / "look") as destination,
    ):
        wanted = source.state.refs[REF].commit
        found = destination.state.refs[REF].commit
        assert found in (wanted, Dataset.open(source, "t").commit_object.parents[0].hex()), "the ref is elsewhere"
        for seed, commit in ((2, wanted), (1, Dataset.open(source, "t").commit_object.parents[0].hex())):
            assert Dataset(source, "t", "main", commit).to_arrow().equals(rows_of(seed))
        for store in (source, destination):
            report = check_store(store, read_data=True)
            assert report.clean, [problem.line() for problem in report.problems]
        if collected:
            collect(destination)
        push(source, destination, [REF])
        assert Dataset(destination, "t", "main", wanted).to_arrow().equals(rows_of(2))
        collect(destination)
        assert check_store(destination, read_data=True).clean
        assert set(destination.tier.packs()) == set(destination.state.packs), "something was left behind"


def run(every: int, place: Path) -> dict[str, Any]:
    """A death before each `every`-th operation, until a push comes to its end. This process never opens a store: it only forks."""
    wrong: list[str] = []
    death, kills, ended = 1, 0, False
    errors = place / "errors"
    if os.waitpid(started(lambda: make(place / "first"), errors), 0)[1]:
        wrong.append("the stores could not be made")
    while not ended and not wrong:
        now = place / "now"
        shutil.copytree(place / "first", now)
        end = os.waitstatus_to_exitcode(os.waitpid(started(lambda: transfer(now, death), errors), 0)[1])  # noqa: B023
        ended = end == 0
        kills += end == -KILLED
        if end not in (0, -KILLED):
            wrong.append(f"the push ended with {end} before operation {death}")
        if os.waitpid(started(lambda: look(now, death % 2 == 0), errors), 0)[1]:  # noqa: B023
            wrong.append(f"a store was not whole after a death before operation {death}")
        shutil.rmtree(now)
        death += every
    if errors.exists():
        wrong.append(errors.read_text())
    return {"kills": kills, "operations": death - every, "wrong": wrong}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.transfer_kill", description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lepton-kill-") as folder:
        result = run(arguments.every, Path(folder))
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
