"""kill -9 of clients of a hot cache, at random moments and at each of their steps: no wrong byte, the budget kept, nobody stuck.

python -m tests.crash.test_cache_kill --kills 200 --seed 1      random moments; half of the clients read a dataset through the cache
python -m tests.crash.test_cache_kill --steps 1                 every step (system call or store to shared memory) of a script; N: every Nth
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.cache import HotCache
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.future import future_keys
from leptonstore.digest import digest_of
from leptonstore.errors import LeptonError
from leptonstore.store import Store

PROJECT = Path(__file__).resolve().parents[2]
BUDGET = 1 << 20
CLIENTS = 4
NUMBERS = 120
STUCK_S = 20.0
FETCHING, PUTTING, GETTING, PLANNING, READING = 1, 2, 3, 4, 5


def key_of(number: int) -> bytes:
    return digest_of(b"%d" % number)


def value_of(number: int) -> bytes:
    """Up to 60 KB, all in all four times the budget; the same in every process."""
    return random.Random(number).randbytes(number * 7919 % 60_000)


VALUES = {number: value_of(number) for number in range(NUMBERS)}


# -- random moments ----------------------------------------------------------------------------------------------------


def client(folder: Path, seed: int, state: memoryview) -> None:
    """Work without end; exits with 7 at a wrong byte. state: [operation, operations done]."""
    rng = random.Random(seed)
    cache = HotCache(folder, BUDGET)
    leases: list[tuple[int, Any]] = []

    def fetch(number: int) -> bytes:
        state[0] = FETCHING
        time.sleep(0.001)  # a tier's answer takes time
        state[0] = PUTTING
        return VALUES[number]

    while True:
        number, choice = int(NUMBERS * rng.random() ** 2), rng.random()
        state[0] = GETTING
        if choice < 0.7:
            lease = cache.get_or_put(key_of(number), lambda number=number: fetch(number))  # type: ignore[misc]
        elif choice < 0.95:
            lease = cache.get(key_of(number))
        else:
            lease = None
            state[0] = PLANNING
            cache.plan([key_of(rng.randrange(NUMBERS)) for _ in range(50)], restart=choice < 0.98)
        if lease is not None:
            leases.append((number, lease.data))
        if len(leases) > 3:
            old, data = leases.pop(0)
            if data != VALUES[old]:
                os._exit(7)
            del data
        state[1] += 1


def make_dataset(place: Path) -> str:
    """The values as a dataset of a store; where that is."""
    table = pa.table({"id": list(VALUES), "value": pa.array(list(VALUES.values()), pa.binary())})
    with Store.create(place) as store:
        write_dataset(store, "values", Source(table.schema, ("id",), lambda: iter(table.to_batches())))
        return store.url


def reader(folder: Path, url: str, seed: int, state: memoryview) -> None:
    """Reads rows without end, several at a time, and says which come next; exits with 7 at a wrong byte."""
    rng = random.Random(seed)
    with Store.open(url) as store:
        ds = Dataset.open(store, "values").cached(folder, BUDGET)
        chunks: Any = ds.chunks
        while True:
            rows = rng.sample(range(NUMBERS), rng.randrange(1, 20))
            if rng.random() < 0.3:
                state[0] = PLANNING
                chunks.cache.plan(future_keys(ds, np.array(rows), [len(rows)], ["value"]), restart=True)
            state[0] = READING
            table = ds.take(rows)
            if table.column("value").to_pylist() != [VALUES[row] for row in table.column("id").to_pylist()]:
                os._exit(7)
            state[1] += 1


def run_kills(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill one client after another, and look after each what is left."""
    rng = random.Random(seed)
    url = make_dataset(folder.with_name("store"))
    shared = mmap.mmap(-1, 4096)
    states = [memoryview(shared).cast("Q")[2 * n : 2 * n + 2] for n in range(CLIENTS)]
    started = 0

    def start(n: int) -> int:
        nonlocal started
        started += 1
        states[n][0] = 0
        child = os.fork()
        if child == 0:
            try:
                if n % 2:
                    reader(folder, url, seed * 1_000_003 + started, states[n])
                client(folder, seed * 1_000_003 + started, states[n])
            finally:
                os._exit(8)
        return child

    children = [start(n) for n in range(CLIENTS)]
    wrong: list[str] = []
    died_in: Counter[int] = Counter()
    try:
        for kill in range(kills):
            before = [state[1] for state in states]
            until = time.monotonic() + STUCK_S
            while any(state[1] == count for state, count in zip(states, before, strict=True)):
                if time.monotonic() > until:
                    wrong.append(f"after {kill} kills a client is stuck")
                    break
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.01)
            victim = rng.randrange(CLIENTS)
            os.kill(children[victim], signal.SIGKILL)
            _, status = os.waitpid(children[victim], 0)
            if not os.WIFSIGNALED(status):
                wrong.append(f"a client ended with {os.waitstatus_to_exitcode(status)} (7: a wrong byte, 8: an error)")
            died_in[states[victim][0]] += 1
            taken = segment_bytes(folder)
            if taken > BUDGET:
                wrong.append(f"after {kill} kills the segments take {taken} bytes")
            if wrong:
                break
            children[victim] = start(victim)
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # the last victim
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    wrong += left_over(folder)
    wrong += dataset_left_over(folder, url)
    return {"wrong": wrong, "kills": kills, "died_in": died_in, "operations": sum(state[1] for state in states)}


def segment_bytes(folder: Path) -> int:
    """Counted behind the cache's back."""
    total = 0
    for entry in os.scandir(folder):
        if entry.name.endswith(".seg"):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
    return total


def left_over(folder: Path) -> list[str]:
    """What is wrong with a cache whose clients are all dead."""
    wrong, problems = [], []
    with HotCache(folder, BUDGET, on_problem=problems.append) as cache:
        for number, value in VALUES.items():
            lease = cache.get(key_of(number))
            if lease is not None and lease.data != value:
                wrong.append(f"value {number} has wrong bytes")
        for number, value in VALUES.items():
            if cache.get_or_put(key_of(number), lambda value=value: value).data != value:  # type: ignore[misc]
                wrong.append(f"value {number} has wrong bytes")
        lease = None
        last = key_of(NUMBERS - 1)
        if not cache.put(last, VALUES[NUMBERS - 1]) or cache.get(last) is None:
            wrong.append("nothing can be put any more")
        stats = cache.stats()
        files = segment_bytes(folder)
        if files != stats["linked_bytes"] or stats["pinned_bytes"] or stats["plans"]:
            wrong.append(f"files take {files} bytes: {stats}")
        if files + stats["index_bytes"] > BUDGET:
            wrong.append(f"over budget: {stats}")
    left = [name for name in os.listdir(folder) if name.endswith((".tmp", ".plan"))]
    return wrong + problems + ([f"left behind: {left}"] if left else [])


def dataset_left_over(folder: Path, url: str) -> list[str]:
    """What is wrong with the dataset, read through the cache."""
    with Store.open(url) as store:
        try:
            found = Dataset.open(store, "values").cached(folder, BUDGET).to_arrow().column("value").to_pylist()
        except LeptonError as error:
            return [f"the dataset cannot be read: {error}"]
    return [] if found == list(VALUES.values()) else ["the dataset has wrong bytes"]


# -- each step ----------------------------------------------------------------------------------------------------------

STEPS = (
    (os, ("open", "posix_fallocate", "pwrite", "pwritev", "ftruncate", "unlink", "rename", "close", "mkdir")),
    (fcntl, ("flock", "fcntl")),
)


class Countdown:
    """Kills its process at the given step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self) -> None:
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.step()
            return function(*arguments, **named)

        return call


class CountedWords:
    """The words of a table, whose stores are steps."""

    def __init__(self, words: Any, countdown: Countdown) -> None:
        self.words, self.countdown = words, countdown

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.countdown.step()
        self.words[at] = value

    def release(self) -> None:
        self.words.release()


def script(folder: Path, countdown: Countdown) -> None:
    """Fills the cache, evicts with and without a plan, keeps a large value, clears, and fills again."""
    for module, names in STEPS:
        for name in names:
            setattr(module, name, countdown.counted(getattr(module, name)))
    cache = HotCache(folder, BUDGET)
    assert cache._table is not None
    cache._table.words = CountedWords(cache._table.words, countdown)
    for number in range(0, NUMBERS, 2):
        cache.get_or_put(key_of(number), lambda number=number: VALUES[number])  # type: ignore[misc]
    cache.put(digest_of(b"large"), bytes(200_000))
    cache.plan([key_of(number) for number in range(NUMBERS)])
    for number in range(NUMBERS):
        cache.get_or_put(key_of(number), lambda number=number: VALUES[number])  # type: ignore[misc]
    lease = cache.get(key_of(NUMBERS - 1))
    cache.clear()
    del lease
    cache.put(key_of(1), VALUES[1])
    cache.close()


def run_steps(every: int, folder: Path) -> dict[str, Any]:
    """Die at step `every`, 2 `every`, ... until the script ends; each time look at what is left."""
    wrong: list[str] = []
    deaths, at = 0, 1
    while not wrong:
        place = folder / f"{at}"
        child = os.fork()
        if child == 0:
            try:
                script(place, Countdown(at))
                os._exit(0)
            finally:
                os._exit(8)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status) != 0:
                wrong.append(f"the script failed before step {at}")
            break
        deaths += 1
        wrong += [f"killed at step {at}: {what}" for what in left_over(place)]
        with HotCache(place) as cache:
            cache.clear()
        at += every
    return {"wrong": wrong, "deaths": deaths, "steps": at}


# -- the suite ----------------------------------------------------------------------------------------------------------


def _run(*arguments: str) -> dict[str, Any]:
    """In a process of its own: it forks, and pytest has threads."""
    command = [sys.executable, "-m", "tests.crash.test_cache_kill", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    assert done.returncode == bool(result["wrong"]), done.stderr
    return result


def test_kill_9_at_random_moments_harms_nobody() -> None:
    """The survivors read right bytes and get on, the budget holds after each kill; victims died at different work."""
    result = _run("--kills", "15", "--seed", "3")
    assert result["wrong"] == [] and result["kills"] == 15
    assert len(result["died_in"]) >= 2 and result["operations"] >= 15 * CLIENTS, result


def test_kill_9_at_each_kind_of_step_harms_nobody() -> None:
    """Every 499th system call or store to shared memory: counted files, right bytes, and a cache that works on."""
    result = _run("--steps", "499")
    assert result["wrong"] == [] and result["deaths"] >= 12, result


# What the tests themselves must notice: a body for a module that is run instead, and what is said then.
PLANTED = {
    "published unwritten, and read unchecked": """
        hot.write_record = lambda file, offset, header, value: os.pwrite(file, header, offset)
        segments.digest_of = lambda value: bytes(32)
    """,
    "evicted segments stay": "segments.Segments.remove = lambda self, ordinal: self._table.set_state(ordinal, 0) or True",
    "flights do not end": "flight.close_transient = lambda file: None",
}
SCRIPT = """
import json, os, sys, tempfile, textwrap, time
from pathlib import Path
from leptonstore.cache import flight, hot, segments
from tests.crash import test_cache_kill as kill
kill.STUCK_S = 1.5
with tempfile.TemporaryDirectory() as folder:
    exec(textwrap.dedent(sys.argv[1]))
    result = kill.run_kills(8, 1, Path(folder) / "cache")
print(json.dumps(result))
"""


@pytest.mark.parametrize("fault", PLANTED)
def test_the_test_notices(fault: str) -> None:
    command = [sys.executable, "-c", SCRIPT, PLANTED[fault]]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().split("\n")[-1])["wrong"], fault


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.test_cache_kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.steps:
            result = run_steps(arguments.steps, Path(folder))
        else:
            result = run_kills(arguments.kills, arguments.seed, Path(folder) / "cache")
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
