"""The hot cache with processes, threads, forks, leases and plans."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_data import BUDGET, key_of, run_python, start_python, value_of

from leptonstore import limits
from leptonstore.cache import HotCache, flight, forks


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HotCache]:
    with HotCache(tmp_path / "cache", BUDGET, on_problem=pytest.fail) as made:
        yield made


# -- processes and threads ---------------------------------------------------------------------------------------------

HAMMER = """
import json, random, sys
from leptonstore.cache import HotCache
from leptonstore.digest import digest_of
folder, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
wrong = fetched = 0
with HotCache(folder, 4 << 20) as cache:
    sys.stdin.readline()
    for turn in range(800):
        number = int(500 * rng.random() ** 2)
        value = number.to_bytes(4, "little") * (1 + number * 37 % 8000)
        def fetch():
            global fetched
            fetched += 1
            return value
        wrong += cache.get_or_put(digest_of(b"%d" % number), fetch).data != value
    stats = cache.stats()
print(json.dumps({"wrong": wrong, "fetched": fetched, "stats": stats}))
"""


def test_four_processes_share_one_cache(tmp_path: Path) -> None:
    """Right bytes, one budget for all, counts summed over all; what one put, others hit."""
    folder = tmp_path / "cache"
    running = [start_python(HAMMER, folder, seed) for seed in range(4)]
    results = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        results.append(json.loads(out))
    assert [result["wrong"] for result in results] == [0] * 4
    with HotCache(folder) as cache:
        stats, counts = cache.stats(), cache.counts()
    assert stats["hits"] + stats["misses"] == 4 * 800 and counts == {name: stats[name] for name in counts}
    fetched = sum(result["fetched"] for result in results)
    assert 300 < fetched <= stats["misses"] and stats["evicted_bytes"] > 0, "nothing was evicted: nothing was tested"
    assert stats["pinned_bytes"] == 0 and stats["linked_bytes"] + stats["index_bytes"] <= BUDGET
    files = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".seg"))
    assert files == stats["linked_bytes"]


FLIGHT = """
import json, sys, time
from leptonstore.cache import HotCache
from leptonstore.digest import digest_of
fetched = 0
def fetch():
    global fetched
    fetched += 1
    time.sleep(0.02)  # a tier's answer: long enough that the others come meanwhile
    return bytes(10_000)
with HotCache(sys.argv[1], 4 << 20) as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(20):
        assert cache.get_or_put(digest_of(b"%d" % number), fetch).data == bytes(10_000)
print(fetched)
"""


def test_of_all_processes_that_miss_one_fetches(tmp_path: Path) -> None:
    running = [start_python(FLIGHT, tmp_path / "cache") for _ in range(3)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    fetched = []
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        fetched.append(int(out.strip().split("\n")[-1]))
    assert sum(fetched) == 20, fetched


def test_a_flight_closes_no_descriptor_that_is_another_threads_by_now(tmp_path: Path) -> None:
    """Whoever waited in vain gives its descriptor back at once, and its number may be used again before it has fetched."""
    first, second = (flight.open_flight(tmp_path / "flights") for _ in range(2))
    assert flight.claim(first, [7]) == [0]
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        flight.land(first, 7)  # while the second waits for it; its value was not kept

    with flight.flight(second, 7, look, kept=lambda: False) as landed:
        assert landed is None and looks >= 1
        others = flight.open_flight(tmp_path / "flights")
        assert others == second, "the number is free"
    assert flight.claim(others, [8]) == [0], "and the descriptor was left alone"
    for file in (first, others):
        forks.close_transient(file)


def test_of_all_threads_that_miss_one_fetches(cache: HotCache) -> None:
    """And an error of the fetcher goes to its caller only: another one fetches."""
    together, fetched, errors = threading.Barrier(6), [], []

    def fetch() -> bytes:
        fetched.append(1)
        if len(fetched) == 1:
            raise OSError("the tier is down")
        return value_of(1)

    def ask() -> None:
        together.wait(60)
        try:
            assert cache.get_or_put(key_of(1), fetch).data == value_of(1)
        except OSError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(fetched) == 2 and errors == ["the tier is down"]


KILLED = """
import sys, time
from leptonstore.cache import HotCache
from leptonstore.digest import digest_of
def fetch():
    print("fetching", flush=True)
    time.sleep(100)
HotCache(sys.argv[1], 4 << 20).get_or_put(digest_of(b"1"), fetch)
"""


def test_a_killed_fetcher_frees_the_others(cache: HotCache) -> None:
    process = start_python(KILLED, cache.path)
    assert process.stdout is not None and process.stdout.readline() == "fetching\n"
    got: list[bytes] = []
    waiting = threading.Thread(target=lambda: got.append(bytes(cache.get_or_put(key_of(1), lambda: value_of(1)).data)))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive(), "nobody waited for the fetcher"
    process.kill()
    process.communicate()
    waiting.join(60)
    assert got == [value_of(1)]


FORK = """
import json, os, sys
from leptonstore.cache import HotCache
from leptonstore.digest import digest_of
key = lambda number: digest_of(b"%d" % number)
cache = HotCache(sys.argv[1], 4 << 20)
cache.put(key(1), b"one" * 1000)
lease = cache.get(key(1))
cache.plan([key(1), key(2)])
ready, go = os.pipe(), os.pipe()
if os.fork() == 0:
    ok = cache.get(key(1)).data == b"one" * 1000 and cache.put(key(2), b"two" * 1000) and cache.plan([key(3)]) == 1
    os.write(ready[1], b"y" if ok and lease.data == b"one" * 1000 else b"n")
    os.read(go[0], 1)  # the lease that it inherited is still there
    os._exit(0)
child_ok = os.read(ready[0], 1) == b"y"
hit = cache.get(key(2)).data == b"two" * 1000
plans = cache.stats()["plans"]
lease.release()
cache.clear()
pinned_by_child = cache.stats()["pinned_bytes"]
os.write(go[1], b"x")
os.wait()
print(json.dumps([child_ok, hit, plans, pinned_by_child > 0, cache.stats()["pinned_bytes"]]))
"""


def test_a_forked_child_uses_the_cache_on(tmp_path: Path) -> None:
    """With locks and a plan of its own; a lease that it inherited pins until it ends; the parent's plan stays the parent's."""
    assert run_python(FORK, tmp_path / "cache") == [True, True, 2, True, 0]


def test_threads_read_and_write_while_others_evict(cache: HotCache) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 400, 250).tolist():
            if cache.get_or_put(key_of(number), lambda number=number: value_of(number)).data != value_of(number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stats = cache.stats()
    assert wrong == [] and stats["evicted_bytes"] > 0 and stats["pinned_bytes"] == 0


STOPPED = """
import sys
from leptonstore.cache import HotCache
cache = HotCache(sys.argv[1])
with cache._lock:
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_stopped_process_that_holds_the_lock_stops_nobody(cache: HotCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hits go on at once, values go uncached after a bounded wait, and it is told once."""
    problems: list[str] = []
    cache._on_problem = problems.append
    cache.put(key_of(1), value_of(1))
    process = start_python(STOPPED, cache.path)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    process.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr(limits, "CACHE_LOCK_WAIT_S_MAX", 0.05)
        for number in range(2, 6):
            assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
        found = cache.get(key_of(1))
        assert found is not None and found.data == value_of(1)
        assert len(problems) == 1 and "stopped" in problems[0], problems
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate("go\n", timeout=30)
    assert cache.stats()["values"] == 1


# -- leases and the budget -----------------------------------------------------------------------------------------------


def test_a_lease_outlives_eviction_and_is_charged(cache: HotCache) -> None:
    """Pinned bytes count against the budget until the last view has gone; then they are free again."""
    cache.put(key_of(0), value_of(0))
    lease = cache.get(key_of(0))
    assert lease is not None
    part = np.frombuffer(lease.data, np.uint8)[100:200]
    lease.release()
    assert len(lease.data) == 0
    cache.clear()
    assert cache.get(key_of(0)) is None
    pinned = cache.stats()["pinned_bytes"]
    assert pinned > 0 and bytes(part) == value_of(0)[100:200]
    for number in range(1, 400):
        cache.put(key_of(number), value_of(number))
    stats = cache.stats()
    assert stats["pinned_bytes"] == pinned and stats["linked_bytes"] + pinned + stats["index_bytes"] <= BUDGET
    assert bytes(part) == value_of(0)[100:200]
    del part
    assert cache.stats()["pinned_bytes"] == 0


@pytest.mark.parametrize("over", [np.frombuffer, lambda data, dtype: np.ndarray(len(data), dtype, data)])
def test_numpys_views_of_views_do_not_pass_the_pin_by(cache: HotCache, over: Any) -> None:
    """An array over a lease, and a part of it, pin as the lease does: numpy refers to the innermost array of its own type."""
    cache.put(key_of(0), value_of(0))
    lease = cache.get(key_of(0))
    assert lease is not None
    part = over(lease.data, np.uint8)[1_000:].reshape(-1, 100)
    lease.release()
    del lease
    cache.clear()
    assert cache.stats()["pinned_bytes"] > 0
    assert part.tobytes() == value_of(0)[1_000:]


def test_when_all_is_pinned_values_go_uncached_and_right(cache: HotCache) -> None:
    for number in range(400):
        cache.put(key_of(number), value_of(number))
    leases = [lease for number in range(400) if (lease := cache.get(key_of(number))) is not None]
    assert cache.get_or_put(key_of(1000), lambda: value_of(1000)).data == value_of(1000)
    stats = cache.stats()
    assert stats["refused"] >= 1 and stats["linked_bytes"] + stats["pinned_bytes"] + stats["index_bytes"] <= BUDGET
    del leases
    assert any(cache.put(key_of(number), value_of(number)) for number in range(1001, 1101))


def test_an_arena_is_a_segment_of_its_own(cache: HotCache) -> None:
    arena = np.random.default_rng(0).bytes(2 << 20)
    lease = cache.get_or_put(key_of(0), lambda: arena)
    assert lease.data == arena and cache.stats()["linked_bytes"] >= 2 << 20
    assert not cache.put(key_of(1), bytes(BUDGET)), "more than the budget"
    assert cache.get(key_of(0)) is not None


def test_a_smaller_budget_evicts(cache: HotCache) -> None:
    for number in range(400):
        cache.put(key_of(number), value_of(number))
    with HotCache(cache.path, 2 << 20) as smaller:
        stats = smaller.stats()
    assert stats["linked_bytes"] + stats["index_bytes"] <= 2 << 20 and stats["values"] > 0


def test_a_much_larger_budget_begins_anew(cache: HotCache) -> None:
    """Its segments and index would be of the wrong size. Who used the old one is told, and goes on without."""
    cache.put(key_of(1), value_of(1))
    problems: list[str] = []
    cache._on_problem = problems.append
    with HotCache(cache.path, 64 * BUDGET, on_problem=pytest.fail) as larger:
        assert larger.get(key_of(1)) is None and larger.put(key_of(1), value_of(1))
        for number in range(400):
            assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
        assert not cache.usable and len(problems) == 1 and "replaced" in problems[0], problems
        found = larger.get(key_of(1))
        assert found is not None and found.data == value_of(1), (
            "the old one's eviction leaves the new one's files alone"
        )


# -- plans ---------------------------------------------------------------------------------------------------------------


def epochs(cache: HotCache, planned: bool, rows: int, count: int) -> float:
    """The share of the bytes that was fetched from the second epoch on; the order of the next epoch is planned before one ends."""
    keys = np.frombuffer(b"".join(map(key_of, range(rows))), np.uint8).reshape(rows, 32)
    orders = [np.random.default_rng(epoch).permutation(rows) for epoch in range(count + 1)]
    fetched = 0
    if planned:
        cache.plan(keys[orders[0]])
    for epoch in range(count):
        if planned:
            cache.plan(keys[orders[epoch + 1]])
        for row in orders[epoch].tolist():
            if cache.get(key_of(row)) is None:
                fetched += epoch > 0
                cache.put(key_of(row), value_of(row, 15_000))
    return fetched / rows / (count - 1)


def test_a_plan_evicts_by_furthest_next_use(tmp_path: Path) -> None:
    """A cache of half the data: no policy fetches less than half of it per epoch, LRU fetches 85 %. Small segments cost some."""
    share = {}
    for planned in (True, False):
        with HotCache(tmp_path / f"{planned}", 500 * 15_000) as cache:
            share[planned] = epochs(cache, planned, rows=1_000, count=3)
    assert share[True] <= 0.6 and share[False] >= 0.8, share


@pytest.mark.parametrize("planned", [True, False])
def test_what_another_client_will_ask_for_is_kept(cache: HotCache, planned: bool) -> None:
    """One client fills the cache with what it plans; what another one plans for sooner stays. (Without its plan it goes.)"""
    for number in range(30):
        cache.put(key_of(number), value_of(number))
    cache.plan([key_of(number) for number in (range(30) if planned else ())])
    with HotCache(cache.path) as other:
        blocks = [range(first, first + 20) for first in range(1000, 1400, 20)]
        many = [number for block in blocks for number in (*block, *block)]
        other.plan([key_of(number) for number in many])
        for number in many:
            other.get_or_put(key_of(number), lambda n=number: value_of(n))
        assert other.stats()["evicted_bytes"] > 0
    found = [cache.get(key_of(number)) is not None for number in range(30)]
    assert all(found) if planned else not any(found), found


def test_the_plan_of_a_dead_client_is_forgotten(cache: HotCache) -> None:
    code = """
import os, sys
from leptonstore.cache import HotCache
cache = HotCache(sys.argv[1])
cache.plan([bytes(32)])
print(cache.stats()["plans"], flush=True)
os.kill(os.getpid(), 9)
"""
    process = start_python(code, cache.path)
    out, _ = process.communicate(timeout=60)
    assert out == "1\n" and process.returncode == -9
    assert cache.stats()["plans"] == 0 and not list(cache.path.glob("*.plan"))


def test_batches_that_threads_read_out_of_turn_do_not_stop_the_plan(cache: HotCache) -> None:
    """With a window of 1,024 keys, what a thread asked for beyond it was never passed by, and the plan stood still for good."""
    batches = np.arange(4 * 4_096).reshape(4, 4_096)
    keys = np.frombuffer(b"".join(key_of(number) for number in batches.ravel().tolist()), np.uint8).reshape(-1, 32)
    cache.plan(keys)
    for batch in (1, 0, 2):
        for number in batches[batch].tolist():
            cache.get(keys[number].tobytes())
    assert cache.plan([]) == 4_096


def test_keys_that_are_asked_for_out_of_turn_move_the_plan_on(cache: HotCache) -> None:
    cache.plan([key_of(number) for number in (0, 1, 2, 3, 0, 1, 2, 3)])
    for number in (1, 0, 3, 2):  # two threads of a loader
        cache.get(key_of(number))
    assert cache.plan([]) == 4
