"""Worker processes of the loader: the same batches whoever makes them and whatever ends them; nothing is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loader_data import ROWS, ids, joined, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from torch.utils.data import get_worker_info  # noqa: E402

from loaders import DataLoader, Order  # noqa: E402
from loaders.mixture import Mixture  # noqa: E402
from loaders.workers import STEP_DEATHS_MAX, WorkerFailed  # noqa: E402

Make = Callable[..., Source]
TWO: dict[str, Any] = {"num_workers": 2, "worker_mode": "process", "multiprocessing_context": "fork"}


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


def length(text: str | None) -> int:
    return 0 if text is None else len(text)


def drawn(text: str | None) -> list[float]:
    """A sample that draws from all three global generators."""
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def same(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7))
        if torch.is_tensor(one[name])
        else one[name] == other[name]
        for name in one
    )


def open_files() -> list[str]:
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd))


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def workers() -> list[Any]:
    return [child for child in multiprocessing.active_children() if child.name.startswith("lepton-loader")]


# -- the same batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arena_bytes_max", [None, 0])
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_are_those_of_one_process(ds: Dataset, arena_bytes_max: int | None, persistent: bool) -> None:
    options: dict[str, Any] = {"shuffle": True, "arena_bytes_max": arena_bytes_max, "transforms": {"text": [length]}}
    plain = DataLoader(ds, 100, **options)
    loader = DataLoader(ds, 100, persistent_workers=persistent, **options, **TWO)
    for _ in range(2):
        kept = list(loader)  # more batches than there are slabs
        assert len(kept) == 27 and all(same(one, other) for one, other in zip(kept, plain, strict=True))
        kept[0]["id"].zero_()
    assert joined(ids(kept[1:])) == Order(ROWS, 0, 1).rows_at(100, ROWS).tolist()
    assert bool(workers()) == persistent


def test_seeds_are_those_of_the_sample_and_not_of_the_worker(ds: Dataset) -> None:
    def epoch(**options: Any) -> list[list[list[float]]]:
        loader = DataLoader(ds.select(np.arange(60)), columns=["id", "text"], transforms={"text": [drawn]}, **options)
        return [sample for batch in loader for sample in batch["text"]]

    two = epoch(batch_size=10, **TWO)
    assert two == epoch(batch_size=15, **{**TWO, "num_workers": 1})
    assert len({number for sample in two for number in sample}) == 3 * 60
    assert two != epoch(batch_size=10, seed=1, **TWO)


def tell_worker(batch: dict[str, Any]) -> dict[str, Any]:
    info = get_worker_info()
    assert info is not None
    return {**batch, "worker": info.id, "workers": info.num_workers, "rows": len(info.dataset), "pid": os.getpid()}


started: list[int] = []


def test_a_worker_init_fn_means_worker_processes(ds: Dataset) -> None:
    loader = DataLoader(
        ds, 200, columns=["id"], transform=tell_worker, num_workers=2, worker_init_fn=started.append,
        multiprocessing_context="fork",
    )  # fmt: skip
    batches = list(loader)
    assert {batch["worker"] for batch in batches} == {0, 1} and {batch["workers"] for batch in batches} == {2}
    assert {batch["rows"] for batch in batches} == {ROWS} and os.getpid() not in {batch["pid"] for batch in batches}
    assert not started and get_worker_info() is None


def test_workers_of_a_process_with_more_descriptors_than_select_knows(ds: Dataset) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2_048), hard), hard))
    held = []
    try:
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
        loader = DataLoader(ds, 200, columns=["id"], num_workers=1, worker_mode="process")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a worker that dies is told
            assert sum(len(batch["id"]) for batch in loader) == len(ds)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": torch.tensor([row["id"] for row in rows]), "text": [row["text"] for row in rows]}


def test_a_state_with_workers_gives_the_rest(ds: Dataset) -> None:
    for options in (TWO, {"collate_fn": collate, "num_workers": 2, "multiprocessing_context": "fork"}):
        loader = DataLoader(ds, 300, shuffle=True, **options)
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        again = DataLoader(ds, 300, shuffle=True, **options)
        again.load_state_dict(loader.state_dict())
        assert joined(ids(again)) == Order(ROWS, 0, 0).rows_at(1_200, ROWS).tolist()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_start_in_every_way_from_code_without_a_file(ds: Dataset, store: Store, method: str) -> None:
    """As a notebook does: __main__ has no file."""
    code = f"""
import sys
from leptonstore.dataset import Dataset
from leptonstore.store import Store
from loaders import DataLoader
with Store.open({str(store.url)!r}) as store:
    ds = Dataset.open(store, "samples")
    loader = DataLoader(ds, 500, shuffle=True, columns=["id", "text"], num_workers=2, worker_mode="process",
                        multiprocessing_context={method!r}, collate={{"text": len}})
    print(sum(batch["id"].sum().item() for batch in loader), loader.stats["restarts"])
"""
    done = subprocess.run([sys.executable], input=code, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(ROWS * (ROWS - 1) // 2), "0"], done.stderr


# -- errors ----------------------------------------------------------------------------------------------------------


def broken(text: str | None) -> int:
    if text == "row 250":
        raise KeyError("row 250 is bad")
    return 0


def test_an_error_comes_at_its_batch_and_names_the_sample(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, columns=["id", "text"], transforms={"text": [broken]}, **TWO)
    batches = iter(loader)
    assert [next(batches)["id"][0].item() for _ in range(2)] == [0, 100]
    with pytest.raises(KeyError, match="row 250 is bad") as caught:
        next(batches)
    assert caught.value.sample[2:4] == (250, "text")  # type: ignore[attr-defined]
    notes = "\n".join(caught.value.__notes__)
    assert "row 250 column 'text' (position 250 of epoch 0)" in notes and "in broken" in notes
    assert loader.state_dict()["consumed"] == 200 and not workers()


def unready(number: int) -> None:
    raise OSError("no licence")


def test_an_error_of_worker_init_fn_is_raised(ds: Dataset) -> None:
    with pytest.raises(OSError, match="no licence"):
        next(iter(DataLoader(ds, 100, worker_init_fn=unready, **TWO)))
    assert not workers()


def ending(number: int) -> None:
    os._exit(3)


def test_a_worker_that_never_starts_is_an_error(ds: Dataset) -> None:
    with pytest.warns(RuntimeWarning), pytest.raises(WorkerFailed, match=r"exit code 3 before it was ready, 3 times"):
        next(iter(DataLoader(ds, 100, worker_init_fn=ending, **TWO)))
    assert not workers()


def deadly(text: str | None) -> int:
    if text == "row 250":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def test_a_sample_that_ends_its_workers_is_named(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, columns=["id", "text"], transforms={"text": [deadly]}, **TWO)
    batches = iter(loader)
    named = r"SIGKILL at the step at position 200 of epoch 0 \(last at .* row 250 column 'text'"
    with pytest.warns(RuntimeWarning, match="is started again"):
        assert [next(batches)["id"][0].item() for _ in range(2)] == [0, 100]
        with pytest.raises(WorkerFailed, match=named):
            next(batches)
    assert loader.stats["restarts"] >= STEP_DEATHS_MAX - 1 and not workers()


def test_a_sample_that_ends_its_workers_is_left_out_when_the_policy_says_so(ds: Dataset) -> None:
    told: list[tuple[Any, ...]] = []
    loader = DataLoader(
        ds, 100, columns=["id", "text"], transforms={"text": [deadly]}, policy="skip",
        on_fault=lambda *fault: told.append(fault), **TWO,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="is started again"):
        batches = list(loader)
    assert [batch["_valid"].sum().item() for batch in batches] == [100, 100, 99] + [100] * 23 + [3]
    assert [fault[:4] for fault in told] == [(250, 250, "", "skip")] and loader.stats["faults"] == 1


def hanging(text: str | None) -> int:
    if text == "row 250":
        time.sleep(60)
    return 1


@pytest.mark.parametrize("policy", ["raise", "substitute"])
def test_a_sample_that_hangs_is_named_or_replaced(ds: Dataset, policy: Any) -> None:
    options: dict[str, Any] = {"columns": ["id", "text"], "transforms": {"text": [hanging]}, "timeout": 0.5, **TWO}
    loader = DataLoader(ds.select(np.arange(400)), 100, policy=policy, **options)
    if policy == "raise":
        with pytest.raises(
            RuntimeError, match=r"timed out after 0\.5 seconds, waiting for dataset .* row 250 column 'text'"
        ):
            list(loader)
    else:
        rows = joined(ids(loader))
        assert rows[:250] + rows[251:] == [row for row in range(400) if row != 250] and rows[250] != 250
        assert loader.stats["faults"] == 1
    assert not workers()


# -- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:DataLoader worker:RuntimeWarning")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["columns", "rows"])
def test_twenty_killed_workers_change_nothing(ds: Dataset, kind: str, persistent: bool) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 4}
    options |= {"transforms": {"text": [length]}} if kind == "columns" else {"collate_fn": collate}
    expected = list(DataLoader(ds, 50, **options))
    mode = TWO if kind == "columns" else {"num_workers": 2, "multiprocessing_context": "fork"}
    loader = DataLoader(ds, 50, persistent_workers=persistent, **options, **mode)
    chance, killed, found = random.Random(7), set[int](), []
    for batch in loader:
        found.append(batch)
        alive = [child.pid for child in workers() if child.pid not in killed]
        if alive and len(killed) < 20:
            os.kill(victim := chance.choice(alive), signal.SIGKILL)
            killed.add(victim)
    assert len(killed) == 20 and loader.stats["restarts"] == 20
    assert len(found) == 53 and all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert loader.stats["rows"] == ROWS


# -- nothing is left behind ------------------------------------------------------------------------------------------


def memory_of(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_and_descriptors_stay_over_epochs(ds: Dataset) -> None:
    loader = DataLoader(ds, 50, shuffle=True, persistent_workers=True, arena_bytes_max=0, **TWO)
    sizes: list[list[int]] = []
    for _ in range(5):
        for _batch in loader:
            pass
        pids = [os.getpid(), *sorted(child.pid for child in workers())]
        sizes.append([*map(memory_of, pids), *(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)])
    assert all(last <= 1.05 * second for second, last in zip(sizes[1], sizes[-1], strict=True)), sizes
    assert sizes[1][3:] == sizes[-1][3:]


def test_a_loader_that_is_dropped_in_mid_epoch_leaves_nothing(ds: Dataset) -> None:
    list(DataLoader(ds, 500, **TWO))  # what Python itself keeps open
    gc.collect()  # what tests before this one left behind
    before = Counter(open_files())
    for persistent in (False, True):
        loader = DataLoader(ds, 50, persistent_workers=persistent, **TWO)
        batches = iter(loader)
        batch = next(batches)
        pids = [child.pid for child in workers()]
        assert len(pids) == 2
        del batches, loader
        gc.collect()
        assert not workers() and not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        assert batch["id"].tolist() == list(range(50))
        del batch
        gc.collect()
        assert not Counter(open_files()) - before, "files that were not open before"


def test_a_pass_that_is_left_gives_its_persistent_workers_to_the_next(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, persistent_workers=True, transforms={"text": [length]}, **TWO)
    first = iter(loader)
    next(first)
    pids = {child.pid for child in workers()}
    assert joined(ids(loader)) == list(range(ROWS)) and {child.pid for child in workers()} == pids
    with pytest.raises(RuntimeError, match="taken its persistent workers"):
        next(first)


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_of_worker_processes_are_pinned(ds: Dataset) -> None:
    for batch in DataLoader(ds, 100, pin_memory=True, transforms={"text": [length]}, **TWO):
        assert all(values.is_pinned() for values in batch.values() if isinstance(values, torch.Tensor))


def test_a_copy_of_a_loader_has_workers_of_its_own(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, persistent_workers=True, transforms={"text": [length]}, **{**TWO, "num_workers": 1})
    next(iter(loader))
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert joined(ids(twin)) == joined(ids(loader)) and len(workers()) == 2
    del loader, twin
    gc.collect()
    assert not workers()


def test_weights_of_a_mixture_change_in_mid_run(ds: Dataset) -> None:
    """What was made ahead by the workers is dropped and made anew; substitutes and steps are those of one process."""
    found = []
    for options in ({}, TWO, {**TWO, "persistent_workers": True}):
        mixture = Mixture({"a": (ds.select(np.arange(900)), 1), "b": (ds.select(np.arange(900, ROWS)), 1)})
        loader = DataLoader(mixture, 50, columns=["id", "text"], transforms={"text": [length]}, **options)
        rows: list[list[int]] = []
        for batch in loader:
            rows.append(batch["id"].tolist())
            if len(rows) == 5:
                loader.set_weights({"a": 9, "b": 1})
            if len(rows) == 12:
                break
        found.append(rows)
    assert found[0] == found[1] == found[2]


SCRIPT = """
import multiprocessing, os, sys, time
from leptonstore.dataset import Dataset
from leptonstore.store import Store
from loaders import DataLoader
def slow(text):
    time.sleep({sleep})
    return 1
store = Store.open({url!r})
ds = Dataset.open(store, "samples")
loader = DataLoader(ds, 10, columns=["id", "text"], transforms={{"text": [slow]}}, num_workers=2, {options})
for batch in loader:
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    {then}
"""


PROCESSES, THREADS = "worker_mode='process', multiprocessing_context='fork'", "worker_mode='thread'"


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (PROCESSES, signal.SIGINT),
        (THREADS, signal.SIGINT),
        (PROCESSES, signal.SIGKILL),
        (PROCESSES, None),
        (THREADS, None),
    ],
)
def test_the_end_of_a_process_is_the_end_of_its_workers(store: Store, ds: Dataset, options: str, how: Any) -> None:
    """Ctrl-C while samples hang, kill -9, and a script that ends in mid-epoch."""
    then = "sys.exit(7)" if how is None else "slow = None"
    code = SCRIPT.format(url=str(store.url), options=options, sleep=0.001 if how is None else 0.02, then=then)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert len(pids) == 2 * ("process" in options)
        if how is not None:
            script.send_signal(how)
        _, errors = script.communicate(timeout=60)
    assert script.returncode == (7 if how is None else -how) or (how is signal.SIGINT and "KeyboardInterrupt" in errors)
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)  # they notice by themselves
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_arguments_that_do_not_fit_are_named(ds: Dataset) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"worker_mode": "both"}, "worker_mode is 'thread' or 'process'"),
        ({"worker_mode": "thread", "worker_init_fn": ending}, "run in worker processes"),
        ({"worker_mode": "process"}, "worker_mode='process' needs num_workers"),
        ({"policy": "ignore"}, "policy is one of raise, skip, substitute"),
        ({"policy": "skip", "as_tuple": ["id"]}, "leaves out '_valid'"),
        ({"policy": "skip", "collate_fn": list}, "policy and collate_fn exclude each other"),
        ({"transforms": {"nope": [length]}}, "transforms names 'nope'"),
        ({"collate": {"nope": len}}, "collate names 'nope'"),
        ({"sampler": [1], "worker_mode": "process", "num_workers": 1}, "worker_mode: only for a LeptonStore dataset"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            DataLoader(ds, **arguments)


def test_a_worker_forked_while_another_thread_reads_the_dataset_does_not_wait_for_its_locks(ds: Dataset) -> None:
    """One in a hundred did: the locks of a dataset's caches are held for some microseconds, so here they are held on purpose."""
    cold: dict[str, Any] = {"columns": ["id", "text"], "arena_bytes_max": 0, "timeout": 20}
    loader = DataLoader(ds, 500, **cold, **TWO)
    source: Any = loader._source
    pages = source.dataset.pages
    list(DataLoader(ds, 500, columns=["id", "text"], arena_bytes_max=0))
    with pages._lock, pages._layouts._lock, source.dataset.leaves._nodes._lock:
        assert joined(ids(loader)) == list(range(ROWS))
