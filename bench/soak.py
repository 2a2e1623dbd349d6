"""Two writers and a garbage collection on one store, in three processes, for five minutes.

python -m bench.soak [--seconds 300] [--history]
python -m bench.soak --quick                        10 seconds

Each writer makes versions of datasets of its own, which share values with the other's, and of one that both move; it
removes branches and forgets history. The third process collects garbage all the time. An error that is not a typed
conflict, a version that cannot be read, or a `check --read-data` that finds anything, makes it fail. A conflict is retried.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import harness
from bench.harness import Figure
from leptonstore.dataset import Dataset, Source, delete_ref, write_dataset
from leptonstore.errors import Conflict
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect, forget

QUICK_SECONDS = 10.0
WRITERS = 2
NAMES = 4  # datasets of each writer
BOTH = "both"  # the dataset that all writers add versions to, and nobody removes
POOL = 64  # large values that all versions draw from: what one writer drops, the other needs again

Versions = dict[str, tuple[str, int]]  # commit -> (dataset, seed of its rows), of what refs protect


def rows_of(seed: int) -> pa.Table:
    """300 rows that depend on the seed alone; eight of their values are chunks of their own."""
    rng = np.random.default_rng(seed)
    blobs = [np.random.default_rng(1_000_000 + int(at)).bytes(20_000 + int(at)) for at in rng.choice(POOL, 8, False)]
    values = [blobs[at // 40] if at % 40 == 0 else b"" for at in range(300)]
    columns = {"id": np.arange(300), "x": rng.normal(size=300), "blob": pa.array(values, pa.large_binary())}
    return pa.table(columns)


def commit(store: Store, name: str, seed: int) -> str:
    """A version of `name` with `rows_of(seed)`."""
    rows = rows_of(seed)
    source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {"seed": seed})
    return write_dataset(store, name, source).commit


def retried(work: Callable[[], Any], counts: Counter[str]) -> Any:
    """Run `work` until no typed conflict stops it; they are counted by class."""
    while True:
        try:
            return work()
        except Conflict as error:
            counts[type(error).__name__] += 1


def write(url: str, number: int, until: float, counts: Counter[str], versions: Versions) -> None:
    """A writer: new versions of its datasets, branches removed, history forgotten."""
    rng = random.Random(number)
    seed = number * 1_000_000
    histories: dict[str, list[str]] = {}
    with Store.open(url) as store:
        while time.monotonic() < until:
            name = BOTH if rng.random() < 0.2 else f"w{number}-{rng.randrange(NAMES)}"
            seed += 1
            kind = rng.random()
            if kind < 0.7 or name == BOTH or not histories.get(name):
                made = retried(partial(commit, store, name, seed), counts)
                histories.setdefault(name, []).append(made)
                versions[made] = (name, seed)
                counts["commits"] += 1
            elif kind < 0.85:
                retried(partial(delete_ref, store, "dataset", name, "main"), counts)
                for gone in histories.pop(name):
                    versions.pop(gone)
                counts["branches removed"] += 1
            else:
                retried(partial(forget, store, {histories[name][-1]}), counts)
                for gone in histories[name][:-1]:
                    versions.pop(gone)
                histories[name] = histories[name][-1:]
                counts["forgotten"] += 1


def collect_garbage(url: str, number: int, until: float, counts: Counter[str], versions: Versions) -> None:
    """Collections, one after the other."""
    with Store.open(url) as store:
        while time.monotonic() < until:
            report = retried(lambda: collect(store), counts)
            counts["collections"] += 1
            counts["packs removed"] += report.packs_removed
            counts["packs repacked"] += report.repacked


def process(work: Callable[..., None], url: str, number: int, until: float, answer: Path) -> None:
    """One of the three processes: its counts, what it promises, and what went wrong, as JSON."""
    counts: Counter[str] = Counter()
    versions: Versions = {}
    error = ""
    try:
        work(url, number, until, counts, versions)
    except BaseException:
        error = traceback.format_exc()
    counts["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    answer.write_text(json.dumps({"counts": counts, "versions": versions, "error": error}))


def soak(folder: Path, seconds: float) -> tuple[Counter[str], list[str]]:
    """(counts, everything that is wrong)."""
    url = str(folder / "store")
    Store.create(url).close()
    context = multiprocessing.get_context("spawn")
    until = time.monotonic() + seconds
    jobs = [(write, number) for number in range(WRITERS)] + [(collect_garbage, WRITERS)]
    answers = [folder / f"answer-{number}.json" for _, number in jobs]
    running = [
        context.Process(target=process, args=(work, url, number, until, answer))
        for (work, number), answer in zip(jobs, answers, strict=True)
    ]
    for each in running:
        each.start()
    for each in running:
        each.join()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    versions: Versions = {}
    for answer in answers:
        told: dict[str, Any] = (
            json.loads(answer.read_text()) if answer.exists() else {"error": "a process died", "counts": {}}
        )
        counts.update({name: value for name, value in told["counts"].items() if name != "memory_mb"})
        counts["memory_mb"] = max(counts["memory_mb"], told["counts"].get("memory_mb", 0))
        versions.update(told.get("versions", {}))
        wrong += [told["error"]] if told["error"] else []
    counts["errors"] = len(wrong)
    with Store.open(url, folder / "index") as store:
        report = check_store(store, read_data=True)
        wrong += [problem.line() for problem in report.problems]
        counts["clean"] = int(report.clean)
        counts["packs"] = report.packs
        for made, (name, seed) in versions.items():
            if not Dataset(store, name, "main", made).to_arrow().equals(rows_of(seed)):
                wrong.append(f"version {made} of {name} has other rows")
            counts["versions read"] += 1
    return counts, wrong


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """What was done, and that nothing was lost by it."""
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    with tempfile.TemporaryDirectory(prefix="lepton-soak-") as folder:
        counts, wrong = soak(Path(folder), seconds)
    for line in wrong:
        print(line)
    return [
        Figure("seconds", seconds, "s"),
        Figure("commits", counts["commits"], "commits", f">= {seconds / 2:g}"),
        Figure("conflicts", counts["Conflict"] + counts["CommitExpired"], "retried", "" if arguments.quick else ">= 1"),
        Figure("gc_runs", counts["collections"], "collections", f">= {seconds / 10:g}"),
        Figure("packs_removed", counts["packs removed"], "packs", ">= 1"),
        Figure("packs_repacked", counts["packs repacked"], "packs"),
        Figure("branches_removed", counts["branches removed"], "branches"),
        Figure("histories_forgotten", counts["forgotten"], "histories"),
        Figure("versions_read", counts["versions read"], "versions", ">= 1"),
        Figure("peak_memory", counts["memory_mb"], "MB"),
        Figure("errors", counts["errors"], "errors", "== 0"),
        Figure("wrong", len(wrong), "findings", "== 0"),
        Figure("clean", counts["clean"], "yes/no", "== 1"),
    ]


if __name__ == "__main__":
    parser = harness.parser("soak", __doc__ or "")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (default 300)")
    harness.main("soak", parser.parse_args(), measure)
