"""A daemon under 32 mixed clients for ten minutes, with garbage collection, tier moves and a scrub running: does it stay as it is?

    python -m bench.daemon_soak [--seconds 600]        or: python -m bench.daemon --workload soak
    python -m bench.daemon_soak --quick                30 seconds

The clients (bench/daemon_soak_clients.py) are threads in four processes: whole datasets, takes, random chunks, loaders' epochs, pushes and
removals, appends to one dataset, HTTP content, dashboards, tokens and bytes that are none; one has the daemon do its maintenance. The store
has two tiers, the home over its watermark most of the time. The hot cache is smaller than what is read: it is full within the first minute,
as one that has lived for long is, and evicts from then on. Every second the daemon's process is looked at from outside.

"Minute" is a tenth of the run. A figure of a minute is its median.
soak memory        resident, of the last minute beside the second            contract: <= 1.1x
soak own memory    of that, what is neither a file's nor shared (heap)       no contract: what the allocator keeps comes and goes
soak descriptors   open ones, without packs that are kept open for reading    contract: <= 1.1x
soak packs open    descriptors of those, at most: up to three for each of OPEN_PACKS_MAX files, whatever is read     contract: <= 384
soak threads       the same (how many requests are under way)                contract: <= 1.25x
soak wrong         errors that are not typed refusals, answers that are not right, lines of the daemon's log about bugs      contract: == 0
soak damage        what `check --read-data` finds afterwards                 contract: == 0
soak idle          kinds of client that got nothing                          contract: == 0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import harness
from bench.harness import ROOT, Figure, median
from leptonstore.dataset import Source, write_dataset
from leptonstore.digest import digest_of
from leptonstore.limits import MIB
from leptonstore.store import Store, check_store
from leptonstore.store.placement import FEATURE, HOME, Placement, TierSetting
from leptonstore.store.tier_mark import claim_tier
from leptonstore.testing import daemon
from leptonstore.tiers.open_files import OPEN_PACKS_MAX

SECONDS, SECONDS_QUICK = 600.0, 30.0
CLIENTS = (
    ("bulk", "take", "take", "chunks", "chunks", "push", "content", "content", "bad"),
    ("bulk", "take", "take", "chunks", "chunks", "push", "content", "dashboard", "append"),
    ("bulk", "take", "chunks", "push", "append", "content", "dashboard", "bad", "maintain"),
    ("epochs", "epochs", "epochs", "bulk", "chunks"),
)
WATERMARK = 32 * MIB  # of the home: what pushes add goes on to the other tier
CACHE = "48MiB"  # of the 60 MB that are read
TOKENS, TOKEN_ROWS, PICTURES, PICTURE_BYTES = 256, 20_000, 2_000, 20_000
LINES_TOLD = 5  # of what went wrong


def make(place: Path) -> None:
    """A store with two tiers, and what is read of it."""
    rng = np.random.default_rng(0)
    with Store.create(place / "store") as store:
        claim_tier(str(place / "cold"), store)
        tiers = (TierSetting(HOME, watermark=WATERMARK), TierSetting("cold", str(place / "cold")))
        store.configure(Placement(tiers).setting(), (FEATURE,))
        values = pa.array(rng.integers(0, 50_000, TOKEN_ROWS * TOKENS, dtype=np.int32))
        _write(store, "tokens", {"id": range(TOKEN_ROWS), "tokens": pa.FixedSizeListArray.from_arrays(values, TOKENS)})
        pictures = [rng.bytes(PICTURE_BYTES) for _ in range(PICTURES)]
        names = [digest_of(one).hex() for one in pictures]
        data = pa.array(pictures, pa.large_binary())
        _write(store, "pictures", {"id": range(PICTURES), "data": data, "digest": names})
        _write(store, "shared", {"id": np.arange(3), "x": [1, 2, 3]})


def _write(store: Store, name: str, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    write_dataset(store, name, Source(table.schema, ("id",), lambda: iter(table.to_batches(4_096)), table.num_rows, {}))


class Watch(threading.Thread):
    """Looks at a process every second: its memory (MiB), descriptors and threads."""

    def __init__(self, pid: int, every_s: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.pid, self.every_s = pid, every_s
        self.samples: list[dict[str, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every_s):
            try:
                self.samples.append(sample(self.pid))
            except OSError:
                return  # it has ended; whoever waits for it says so

    def minute(self, number: int, name: str) -> float:
        """The median of the `number`-th tenth (-1: the last)."""
        tenth = max(1, len(self.samples) // 10)
        first = (number if number >= 0 else 10 + number) * tenth
        return median(one[name] for one in self.samples[first : first + tenth])


def sample(pid: int) -> dict[str, float]:
    """See Watch."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: int(status[key].split()[0]) / 1024 for name, key in (("memory", "VmRSS"), ("own memory", "RssAnon"))}
    packs, others = 0, 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            is_pack = ".pack" in os.readlink(f"/proc/{pid}/fd/{fd}")
            packs, others = packs + is_pack, others + (not is_pack)
    return {**found, "threads": int(status["Threads"]), "descriptors": others, "packs open": packs}


def soak(place: Path, seconds: float) -> dict[str, Any]:
    """One run: {samples: Watch, counts, wrong, damage}."""
    make(place)
    settings: dict[str, Any] = {"cache": str(place / "hot"), "cache_bytes": CACHE, "folder": place}
    with daemon.running(place / "store", **settings) as served:
        watch = Watch(served.pid, seconds / 600)
        command = [
            sys.executable,
            "-m",
            "bench.daemon_soak_clients",
            served.url,
            served.http_url,
            served.told["token_file"],
        ]
        kinds = [[kind for kind in one if served.http_url or kind not in ("content", "dashboard")] for one in CLIENTS]
        running = [
            subprocess.Popen([*command, str(seconds), str(seed), *some], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for seed, some in enumerate(kinds)
        ]
        watch.start()
        told = [_told(process) for process in running]
        watch.over.set()
        watch.join()
        said = bugs_in(served.log.read_text())
        end = served.stop()
    counts = sum((Counter(one["counts"]) for one in told), Counter[str]())
    wrong = [
        *(line for one in told for line in one["wrong"]),
        *said,
        *([f"the daemon ended with {end}"] if end else []),
    ]
    with Store.open(place / "store", place / "another-index") as store:
        report = check_store(store, read_data=True)
        moved = sum(len(places) > 0 and HOME not in places for places in store.state.placed.values())
    return {
        "watch": watch,
        "counts": dict(sorted(counts.items())),
        "wrong": wrong,
        "damage": [problem.line() for problem in report.problems],
        "idle": sorted({kind for one in kinds for kind in one} - {name.split(":")[0] for name in counts}),
        "moved": moved,
    }


def bugs_in(log: str) -> list[str]:
    """What a daemon's log says of bugs: each with its traceback."""
    found: list[str] = []
    inside = False
    for line in log.splitlines():
        if inside:
            found[-1] += f"\n{line}"
            inside = line.startswith((" ", "Traceback", "\t")) or not line
        elif "internal error" in line or line.startswith("Traceback"):
            found.append(line)
            inside = True
    return found


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    out = process.communicate()[0].strip().split("\n")[-1]
    if process.returncode or not out:
        return {"counts": {}, "wrong": [f"clients ended with {process.returncode}"]}
    found: dict[str, Any] = json.loads(out)
    return found


def figures_of(found: dict[str, Any]) -> list[Figure]:
    """What is promised of a run."""
    watch: Watch = found["watch"]
    units = {"memory": "MiB", "own memory": "MiB", "descriptors": "", "threads": ""}
    bounds = {"memory": "<= 1.1", "descriptors": "<= 1.1", "threads": "<= 1.25"}
    made = [
        Figure(
            f"soak {name}", watch.minute(-1, name), unit, bounds.get(name, ""), "second minute", watch.minute(1, name)
        )
        for name, unit in units.items()
    ]
    open_packs = max(one["packs open"] for one in watch.samples)
    made.append(Figure("soak packs open", open_packs, "", f"<= {3 * OPEN_PACKS_MAX}"))
    for name in ("wrong", "damage", "idle"):
        made.append(Figure(f"soak {name}", float(len(found[name])), "", "== 0"))
    made.append(Figure("soak moved", float(found["moved"]), "packs of the other tier at the end"))
    made += [Figure(f"soak {name}", float(count), "") for name, count in found["counts"].items()]
    return made


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    seconds = getattr(arguments, "seconds", None) or (SECONDS_QUICK if arguments.quick else SECONDS)
    with tempfile.TemporaryDirectory() as place:
        found = soak(Path(place), seconds)
    _tell(found)
    return figures_of(found)


def _tell(found: dict[str, Any]) -> None:
    for name in ("wrong", "damage", "idle"):
        for line in _first(found[name]):
            print(f"{name}: {line}", file=sys.stderr)
    samples = found["watch"].samples
    for one in samples[:: max(1, len(samples) // 20)]:
        print({name: round(value, 1) for name, value in one.items()}, file=sys.stderr)


def _first(lines: Sequence[str]) -> Sequence[str]:
    return [*lines[:LINES_TOLD], *([f"and {len(lines) - LINES_TOLD} more"] if len(lines) > LINES_TOLD else [])]


def main() -> None:
    """Parse the arguments and run."""
    parser = harness.parser("daemon_soak", __doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, help="how long (default: 600, or 30 with --quick)")
    harness.main("daemon_soak", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
