"""The engine on a Ray cluster of two workers on this host: the same as the native runner makes, also when workers die in mid-run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("ray")
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from engine_steps import Chosen, Deadly, Raising, Same, Sieve, Twice, texts
from process_data import write

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import text_field
from leptonstore.dataset.write import publish_commit
from leptonstore.digest import parse_hex
from leptonstore.errors import ClusterLost, LeptonError, SourceError
from leptonstore.format.commit import Commit
from leptonstore.process.engine import Runner, Written, cluster, rows_of, write_rows
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect

NATIVE, RAY = Runner("native"), Runner("ray", workers=2)
ROWS = 30_000


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests of this file."""
    before = limits.ENGINE_TASK_ROWS
    limits.ENGINE_TASK_ROWS = 2_000  # many ranges in a small dataset
    yield
    limits.ENGINE_TASK_ROWS = before
    cluster.disconnect()


@pytest.fixture
def ds(store: Store) -> Dataset:
    return write(store, "texts", texts(ROWS, long_every=300), ("id",))


def published(store: Store, ds: Dataset, written: Written) -> Dataset:
    """A commit of what was written."""
    tree = written.tree
    commit = Commit("dataset", ds.schema, ("id",), tree.root, tree.rows, tree.plain_bytes, (parse_hex(ds.commit),))
    return Dataset(store, "made", "main", publish_commit(store, commit, "dataset/made/main", None))


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args=node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_a_cluster_is_joined_and_when_it_goes_away_that_is_told_and_another_does_the_work(
    store: Store, ds: Dataset
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_DISABLE_DASHBOARD": "1"}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        address = other.stdout.readline().strip()
        joined = Runner("ray", address=address)
        sieve = Sieve(ds.schema, by=3)
        assert write_rows(ds, sieve, ("id",), joined).tree == write_rows(ds, sieve, ("id",), NATIVE).tree
        before = dict(store.state.refs)

        def stop(rows: int) -> None:
            if rows > ROWS // 3:
                other.stdin.close()
                other.wait(120)  # it is gone before the rest can have been made

        with pytest.raises(ClusterLost, match=rf"the Ray cluster at {address} went away: nothing was published"):
            write_rows(ds, Sieve(ds.schema, by=4), ("id",), joined, stop)
        assert other.stdin.closed and store.state.refs == before
    assert write_rows(ds, Same(ds.schema), ("id",), RAY).tree.root == ds.commit_object.root


def test_two_workers_make_the_tree_findings_and_rows_of_the_native_runner(store: Store, ds: Dataset) -> None:
    sieve = Sieve(ds.schema, by=3)
    native, seen = write_rows(ds, sieve, ("id",), NATIVE), []
    made = write_rows(ds, sieve, ("id",), RAY, seen.append)
    assert made.tree == native.tree and made.findings.equals(native.findings)
    assert seen == sorted(seen) and seen[-1] == ROWS
    whole = published(store, ds, made)
    assert whole.to_arrow()["id"].to_pylist() == ds.to_arrow()["id"].to_numpy()[np.arange(ROWS) % 3 != 0].tolist()
    ours, theirs = rows_of(ds, sieve, NATIVE), rows_of(ds, sieve, RAY)
    assert ours[0].equals(theirs[0]) and ours[1].equals(theirs[1])


def test_large_values_that_workers_make_are_theirs_to_store(store: Store, ds: Dataset) -> None:
    schema = ds.schema.append(ds.schema.field("text").with_name("double"))
    twice = Twice(schema)
    made = write_rows(ds, twice, ("id",), RAY)
    assert made.tree == write_rows(ds, twice, ("id",), NATIVE).tree
    assert rows_of(ds, twice, RAY)[0]["double"].to_pylist() == [text * 2 for text in ds.to_arrow()["text"].to_pylist()]


def test_a_step_that_knows_all_rows_is_sent_once(store: Store, ds: Dataset) -> None:
    """As segments after a table operation are: with a megabyte of verdicts, which no task carries."""
    wanted = np.random.default_rng(2).permutation(ROWS * 8)  # 2 MB
    wanted[:ROWS] %= 2
    chosen = Chosen(ds.schema, wanted)
    found, _ = rows_of(ds, chosen, RAY)
    assert found["row"].to_pylist() == np.flatnonzero(wanted[:ROWS]).tolist()


def test_errors_of_workers_arrive_as_what_they_are(store: Store, ds: Dataset) -> None:
    with pytest.raises(SourceError, match=r"^row 7777 is unreadable$"):
        write_rows(ds, Raising(ds.schema, row=7_777), ("id",), RAY)
    with pytest.raises(LeptonError, match=r"^ZeroDivisionError: row 7777 is unreadable$"):
        rows_of(ds, Raising(ds.schema, row=7_777, ours=False), RAY)
    assert write_rows(ds, Same(ds.schema), ("id",), RAY).tree.root == ds.commit_object.root  # and the next one runs


@pytest.mark.parametrize("seed", range(4))
def test_workers_that_are_killed_change_nothing(store: Store, ds: Dataset, tmp_path: Path, seed: int) -> None:
    """One of them, or both one after another, somewhere between the step and the answer."""
    chance = random.Random(seed)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for token in range(1 + seed % 2):
        (tokens / str(token)).touch()
    deadly = Deadly(ds.schema, by=3, tokens=str(tokens), row=chance.randrange(ROWS), delay_s=chance.random() * 0.05)
    made = write_rows(ds, deadly, ("id",), RAY)
    assert (
        len(list(tokens.iterdir())) <= seed % 2
    )  # one did die; a second one only when the first did not answer before
    native = write_rows(ds, Sieve(ds.schema, by=3), ("id",), NATIVE)
    assert made.tree == native.tree and made.findings.equals(native.findings)


def test_the_planner_of_the_cluster_is_killed(store: Store, ds: Dataset) -> None:
    """Daft gives up; what was done is kept, the rest is given out again."""
    killed: list[int] = []

    def kill(rows: int) -> None:
        if not killed and rows > ROWS // 3:
            killed.extend(_processes("RemoteFlotillaRunner"))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    sieve = Sieve(ds.schema, by=3)
    made = write_rows(ds, sieve, ("id",), RAY, kill)
    assert killed and made.tree == write_rows(ds, sieve, ("id",), NATIVE).tree


def test_garbage_collection_in_mid_run_spares_what_workers_wrote(store: Store, ds: Dataset, tmp_path: Path) -> None:
    """Also that of a worker that is dead by then: the caller counts on what it was told of."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "0").touch()
    deadly = Deadly(ds.schema, by=3, tokens=str(tokens), row=ROWS // 2)
    collected: list[int] = []

    def gc(rows: int) -> None:
        if rows > ROWS * 3 // 4 and not collected:
            with Store.open(store.url) as other:
                collected.append(collect(other).packs_removed)

    made = write_rows(ds, deadly, ("id",), RAY, gc)
    assert collected and not list(tokens.iterdir())
    whole = published(store, ds, made)
    with Store.open(store.url) as other:
        collect(other)
        assert not check_store(other, read_data=True).problems
    assert len(whole.to_arrow()) == made.tree.rows


PIPELINE = """
dataset = "texts"
into = "made"
on_error = "quarantine"

[[operation]]
use = "check.duplicates"
action = "drop"

[[operation]]
use = "check.text_length"
action = "tag"
max = 250

[[operation]]
use = "text.mask_pii"

[[operation]]
use = "check.near_duplicate_texts"
action = "drop"

[[operation]]
use = "rows.split"
fractions = [0.7, 0.3]
"""


def test_a_pipeline_gives_the_same_commit_also_when_a_worker_is_killed(tmp_path: Path) -> None:
    """Operations by name, two table operations among them: three passes, the last of which writes."""
    (tmp_path / "p.toml").write_text(PIPELINE)
    pipeline = Pipeline.from_toml(tmp_path / "p.toml")
    commits, findings, killed = set(), [], []

    def kill(what: str, rows: int, total: int) -> None:
        if not killed and what.startswith("pass 3") and 0 < rows < total:
            killed.extend(_processes("RaySwordfishActor")[:1])
            for process in killed:
                os.kill(process, signal.SIGKILL)

    for place, runner, progress in (("a", NATIVE, None), ("b", RAY, None), ("c", RAY, kill)):
        with Store.create(tmp_path / place) as store:
            write(store, "texts", _with_addresses(), ("id",))
            made = pipeline.run(store, runner, *([progress] if progress else []))
            commits.add(made.dataset.commit)
            findings.append(made.findings)
            assert len(made.dataset.to_arrow()) == len(made.dataset)
            assert not check_store(store, read_data=True).problems
    assert len(commits) == 1 and killed
    assert findings[0].equals(findings[1]) and findings[0].equals(findings[2]) and len(findings[0])


def _with_addresses() -> pa.Table:
    """12,000 texts; some twice, some nearly, some with an address, some long."""
    random = np.random.default_rng(5)
    words = np.array([f"word{number}" for number in range(2_000)])
    text = [" ".join(words[random.integers(0, 2_000, 30)]) for _ in range(ROWS * 2 // 5)]
    for row in range(0, len(text), 10):
        text[row] += f" a.b{row}@example.org"
        text[row + 1] = text[row]
        text[row + 2] = text[row].replace("word", "word", 1) + " more"
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), text_field("text")])
    return pa.table([pa.array(range(len(text))), pa.array(text, schema.field("text").type)], schema=schema)


def test_no_cluster_at_an_address_is_told_before_anything_is_done(ds: Dataset) -> None:
    with pytest.raises(ClusterLost, match=r"no Ray cluster answers at 127.0.0.1:9"):
        write_rows(ds, Same(ds.schema), ("id",), Runner("ray", address="127.0.0.1:9"))


def _processes(name: str) -> list[int]:
    """Of the cluster that this process started: descendants whose command has `name`."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if name in (entry / "cmdline").read_text().replace("\0", " "):
                    found.append(int(entry.name))
            except OSError:
                continue
    return [one for one in found if _descends(one, parents)]


def _descends(process: int, parents: dict[int, int]) -> bool:
    while process in parents:
        process = parents[process]
        if process == os.getpid():
            return True
    return False
