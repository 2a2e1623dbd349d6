"""Workload cluster: four daemons, each on a host of its own (a network namespace), over one SeaweedFS on a fifth; four loaders, one beside
each daemon, read one fully shuffled epoch each, in four different orders.

cluster        the daemons share one cache; each may keep 0.4 of the data, so that none has all of it      contract: <= 1.1x the data
alone          the same daemons that do not know each other; each may keep all of the data                 no contract: it is 4x at best
killed         as cluster; one daemon is killed (SIGKILL) when its loader is at 0.4 of its epoch           contract: all epochs finish
killed orders  epochs whose rows, bytes, order and receipt are those of a loader that reads the bucket     contract: all of all three runs
               itself

Counted: all bytes that leave the bucket's host, headers and listings included, as the kernel counts them at its link, from before the
daemons start until the last loader has ended; "the data" is what the bucket holds (all packs of the store). No hot cache, neither of
daemons nor of loaders: there would be one for all, as they are on one machine. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from bench.harness import Figure
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Source, write_dataset
from leptonstore.limits import MIB
from leptonstore.store import Store
from leptonstore.testing import daemon, namespaces, seaweed

ROWS, ROWS_QUICK = 8_192, 1_600
VALUE_BYTES = 50_000
BATCH = 64
MEMBERS = 4
PORT = 7400
KEPT_SHARE = 0.4  # of the data that each daemon of the cluster may keep
KILL_AT = 0.4  # of an epoch


@dataclass
class Made:
    """The store in the bucket, the bytes of its packs, a token that reads it, and what clients of the bucket need."""

    url: str
    bytes: int
    token: str
    environment: Mapping[str, str]


@dataclass
class Run:
    """One run: bytes that left the bucket, seconds until the last loader ended, and what each loader told."""

    bytes: int = 0
    seconds: float = 0.0
    loaders: list[dict[str, Any]] = field(default_factory=list)


def make(url: str, environment: Mapping[str, str], rows: int) -> Made:
    """Write the dataset: values that do not compress, no two alike."""
    rng = np.random.default_rng(0)
    schema = pa.schema([pa.field("label", pa.int64(), False), pa.field("value", pa.large_binary(), False)])

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, 400):
            labels = range(first, min(rows, first + 400))
            values = [rng.bytes(VALUE_BYTES) for _ in labels]
            yield pa.record_batch([pa.array(labels, pa.int64()), pa.array(values, pa.large_binary())], schema=schema)

    with Store.create(url) as store:
        write_dataset(store, "values", Source(schema, ("label",), batches))
        _, token = TokenRing.of(store).add("bench", [Grant(Scope.READ)])
        size = sum(record.bytes for record in store.state.packs.values())
    return Made(url, size, token, environment)


class Loader:
    """A process that reads an epoch. `steps` grows as it goes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.steps, self.told, self.said = 0, dict[str, Any](), ""
        self._threads = [
            threading.Thread(target=self._listen, args=(self.process.stdout,)),
            threading.Thread(target=self._hear, args=(self.process.stderr,)),
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("step "):
                self.steps = int(line.split()[1])
            elif line.startswith("{"):
                self.told = json.loads(line)

    def _hear(self, lines: IO[str]) -> None:
        self.said = lines.read()

    def wait(self, seconds: float) -> dict[str, Any]:
        """What it told. Raises RuntimeError."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        for thread in self._threads:
            thread.join()
        if code or not self.told:
            raise RuntimeError(f"a loader ended with {code} at step {self.steps}:\n{self.said[-3000:]}")
        return self.told


@contextmanager
def daemons(
    made: Made, place: Path, hosts: Sequence[namespaces.Host], share: float, together: bool
) -> Iterator[list[daemon.Served]]:
    """One on each host, with so much of the data as blocks on disk."""
    members = [f"{host.address}:{PORT}" for host in hosts] if together else []
    with ExitStack() as stack:
        started = []
        for at, host in enumerate(hosts):
            own = place / f"daemon{at}"
            own.mkdir(parents=True)
            served = daemon.start(
                made.url,
                folder=own,
                environment={**made.environment, **own_place(own), "OMP_NUM_THREADS": "1"},
                inside=host.inside,
                name="store",
                host=host.address,
                port=PORT,
                http_port=PORT + 1,
                insecure=True,
                cache_bytes=0,
                members=members,
                rack=f"rack{at % 2}",
                block_cache=str(own / "blocks"),
                block_cache_bytes=max(64 * MIB, int(share * made.bytes)),
            )
            stack.callback(served.kill)
            started.append(served)
        yield started


def own_place(folder: Path) -> dict[str, str]:
    """Indexes, caches and tokens as if it were the only process of its host."""
    return {name: str(folder / name.lower()) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")} | {
        "LEPTON_CACHE": "none"
    }


def loader_on(host: namespaces.Host, made: Made, place: Path, urls: str, seed: int, batch: int) -> Loader:
    """Begin an epoch beside the daemon of that host."""
    command = [*host.inside, sys.executable, "-m", "bench.daemon_cluster_loader", urls, str(seed), str(batch)]
    environment = {**own_place(place / f"loader{seed}"), "LEPTON_TOKEN": made.token, "OMP_NUM_THREADS": "1"}
    return Loader(command, environment)


def run(
    made: Made,
    place: Path,
    bucket: namespaces.Host,
    hosts: Sequence[namespaces.Host],
    share: float,
    together: bool,
    batch: int,
    kill: bool = False,
) -> Run:
    """An epoch of each loader. kill: the second daemon, in the middle of its loader's."""
    place.mkdir()
    before = bucket.sent
    with daemons(made, place, hosts, share, together) as started:
        began = time.perf_counter()
        loaders = [
            loader_on(host, made, place, f"lepton://{host.address}:{PORT}/store", seed, batch)
            for seed, host in enumerate(hosts)
        ]
        if kill:
            steps = -(-rows_of(made) // batch)
            while loaders[1].steps < KILL_AT * steps and loaders[1].process.poll() is None:
                time.sleep(0.01)
            started[1].kill()
        try:
            told = [loader.wait(600) for loader in loaders]
        except RuntimeError as error:
            said = "\n".join(served.said() for served in started)
            raise RuntimeError(f"{error}\nthe daemons said:\n{said}") from None
        seconds = time.perf_counter() - began
    return Run(bucket.sent - before, seconds, told)


def rows_of(made: Made) -> int:
    """About as many rows as the store has."""
    return made.bytes // VALUE_BYTES


def expected(made: Made, place: Path, batch: int) -> list[dict[str, Any]]:
    """What loaders tell that read the bucket themselves, one after another."""
    told = []
    for seed in range(MEMBERS):
        command = [sys.executable, "-m", "bench.daemon_cluster_loader", made.url, str(seed), str(batch)]
        told.append(Loader(command, {**made.environment, **own_place(place / "direct")}).wait(600))
    return told


def same(run: Run, wanted: Sequence[Mapping[str, Any]]) -> int:
    """How many loaders saw the very rows, in the very order, and have the receipt for it."""
    keys = ("rows", "order", "receipt")
    return sum(all(one[key] == other[key] for key in keys) for one, other in zip(run.loaders, wanted, strict=True))


@contextmanager
def laid_out(place: Path, rows: int) -> Iterator[tuple[Made, namespaces.Host, list[namespaces.Host]]]:
    """The hosts, the bucket on one of them, and the data in it."""
    with namespaces.network(["bucket", *(f"node{at}" for at in range(MEMBERS))]) as hosts:
        (place / "weed").mkdir()
        server = seaweed.start(place / "weed", hosts["bucket"].address, hosts["bucket"].inside)
        before = dict(os.environ)
        try:
            os.environ.update({**server.environment(), **own_place(place / "writer")})
            made = make(f"s3://{seaweed.make_bucket(server)}/store", server.environment(), rows)
            yield made, hosts["bucket"], [hosts[f"node{at}"] for at in range(MEMBERS)]
        finally:
            os.environ.clear()
            os.environ.update(before)
            seaweed.stop(server)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures of the module."""
    why = namespaces.why_not()
    if why:
        raise SystemExit(f"bench.daemon --workload cluster: {why}")
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        place = Path(folder)
        with laid_out(place, ROWS_QUICK if arguments.quick else ROWS) as (made, bucket, hosts):
            wanted = expected(made, place, BATCH)
            cluster = run(made, place / "cluster", bucket, hosts, KEPT_SHARE, True, BATCH)
            alone = run(made, place / "alone", bucket, hosts, 1.2, False, BATCH)
            killed = run(made, place / "killed", bucket, hosts, KEPT_SHARE, True, BATCH, kill=True)
    data = float(made.bytes)
    finished = sum(same(one, wanted) for one in (cluster, alone, killed))
    return [
        Figure("cluster bucket bytes", cluster.bytes, "bytes", "<= 1.1", "the data", data),
        Figure("alone bucket bytes", alone.bytes, "bytes", "", "the data", data),
        Figure("killed bucket bytes", killed.bytes, "bytes", "", "the data", data),
        Figure("cluster epochs as direct", float(finished), "epochs", "== 1", "all", float(3 * MEMBERS)),
        Figure("cluster seconds", cluster.seconds, "s", "", "alone", alone.seconds),
        Figure("killed seconds", killed.seconds, "s", "", "cluster", cluster.seconds),
    ]
