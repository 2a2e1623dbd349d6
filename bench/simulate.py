"""A simulation of the cooperative cache and of S3's request limits, event by event, at 10 to 10,000 nodes.

python -m bench.simulate --check [--measure]     bytes that leave the bucket, beside the measurement with four real daemons
python -m bench.simulate --nodes 10000           one size: with a cluster, with daemons alone, with none
python -m bench.simulate [--json]                all sizes (what docs/SCALING.md shows; bench/scaling.py keeps it)

What it asks of the bucket, and what it leaves out, stands in bench/simulate_cluster.py, the bucket in bench/simulate_bucket.py.

**The epoch at scale** (`at_scale`): 10^9 values of 100 KB in a full shuffle; nodes with 25 Gbit/s, 30 TB of NVMe, and accelerators
that take 1 GB/s. Simulated is a part of it: some steps of each loader, over as much less data (`part`). Rates are those of the whole, so
that waits and queues are; bytes, requests and seconds are multiplied, but for the wait for the first answer, which is there once. Of
clusters that are equal one is simulated, with its share of the bucket's limits, and so are daemons alone and loaders without one.

--check compares with bench/daemon_cluster.py: the last line of bench/history.jsonl that has it, else what decision 60 has of it, or with
--measure a run, which needs root. The frames of packs (header and end, which each daemon reads to fill its index) are added; what else a
daemon says to a bucket (log, leases, listings) is not: hence the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bench import daemon_cluster, harness
from bench.harness import Figure
from bench.simulate_bucket import ANSWER_BYTES, Bucket, BucketLimits, dollars, s3_price
from bench.simulate_cluster import Cluster
from bench.simulate_data import ALONE, CLUSTER, DIRECT, Setting
from bench.simulate_events import Events
from leptonstore import limits
from leptonstore.daemon.cluster import bounds
from leptonstore.format.pack import HEADER_BYTES

NODES = (10, 100, 1_000, 10_000)
PARTITIONS = (1, 256)  # a bucket that nobody read before, and one that S3 has partitioned as far as our keys allow
WAYS = (CLUSTER, ALONE, DIRECT)
SAMPLES, VALUE_BYTES = 10**9, 100_000
NVME_BYTES = 30e12
BATCH, AHEAD = 32, 128  # rows; 400 MB ahead, where there are so many steps
STEPS_MIN, STEPS_MAX = 12, 128  # of each loader that are simulated where they share an epoch, and rows of all of them
ROWS_TOGETHER = 600_000
TRACKED_TOGETHER, TRACKED_EACH = 8, 2
BLOCKS_MIN, BLOCKS_PER_MEMBER = 2_048, 4  # where each has its own

CHECK_SEEDS = 5
# Measured on 2026-11-27 (docs/decisions/0060-cluster.md), 411 MB: bytes that left the bucket, times the data.
MEASURED = {"cluster bucket bytes": 1.028, "alone bucket bytes": 4.023, "killed bucket bytes": 1.204}
TOLERANCE = {
    CLUSTER: 0.05,
    ALONE: 0.05,
    "killed": 0.15,
}  # of what was measured; two measurements differ by 0.07 for the last
FIGURES = {CLUSTER: "cluster bucket bytes", ALONE: "alone bucket bytes", "killed": "killed bucket bytes"}


@dataclass(frozen=True)
class Outcome:
    """What an epoch of all loaders came to. Of times, seconds; `least_s`: what each resource alone would have needed at least."""

    data_bytes: float
    bucket_bytes: float
    requests: float
    refused: float
    given_up: float
    peer_bytes: float
    far_bytes: float
    hedged_bytes: float
    epoch_s: float
    first_wait_s: float
    wait_s_p50: float
    wait_s_p99: float
    waiting_share: float
    least_s: dict[str, float]

    @property
    def ratio(self) -> float:
        """Bytes out of the bucket, times the data."""
        return self.bucket_bytes / self.data_bytes

    @property
    def bottleneck(self) -> str:
        """The resource that was in use for the longest."""
        return max(self.least_s, key=lambda name: self.least_s[name])


def simulate(setting: Setting, given: BucketLimits | None = None) -> Outcome:
    """Run it. `given`: of the bucket."""
    given = given or BucketLimits()
    events = Events()
    # Daemons alone, and loaders without one, meet in the bucket only: those that are followed have their share of it.
    parts = setting.clusters * (1.0 if setting.way == CLUSTER else setting.weight)
    bucket = Bucket(events, given, random.Random(setting.seed), 1 / parts)
    cluster = Cluster(setting, events, bucket)
    cluster.run()
    return _outcome(setting, given, bucket, cluster, parts)


def _outcome(setting: Setting, given: BucketLimits, bucket: Bucket, cluster: Cluster, parts: float) -> Outcome:
    waits = np.array([wait for loader in cluster.loaders for wait in loader.waits[1:]] or [0.0])
    epoch_s = max(loader.ended_at for loader in cluster.loaders)
    steps = max(loader.steps for loader in cluster.loaders)
    took_s = steps * setting.batch * setting.value_bytes / setting.consumed_bytes_s
    followed = [cluster.node(loader.number) for loader in cluster.loaders]
    working = setting.members if setting.way == CLUSTER else setting.followed
    gets, counts, weight = bucket.gets, cluster.counts, setting.weight * setting.clusters
    links_s = [max(node.incoming.busy_s, node.outgoing.busy_s) for node in followed]
    return Outcome(
        setting.data_bytes,
        gets.bytes * parts,
        gets.requests * parts,
        gets.refused * parts,
        gets.given_up * parts,
        counts["peer_bytes"] * weight,
        counts["far_bytes"] * weight,
        counts["hedged_bytes"] * weight,
        epoch_s,
        max(loader.waits[0] for loader in cluster.loaders if loader.steps),
        float(np.quantile(waits, 0.5)),
        float(np.quantile(waits, 0.99)),
        float(1 - took_s / epoch_s),
        {
            "accelerators": took_s,
            "links of nodes": max(links_s),
            "bucket's requests": gets.requests / (given.gets_s * given.partitions * bucket.share),
            "bucket's bytes": bucket.pipe.busy_s,
            "connections to the bucket": sum(node.connection_s for node in cluster.nodes)
            / working
            / bounds.BUCKET_THREADS,
        },
    )


# -- the epoch at scale ------------------------------------------------------------------------------------------------


def setting_of(nodes: int, way: str, together: bool, seed: int = 0) -> Setting:
    """What is simulated of so many nodes."""
    clusters = -(-nodes // bounds.MEMBERS_MAX) if way == CLUSTER else 1
    members = nodes // clusters
    disk_share = NVME_BYTES / (SAMPLES * VALUE_BYTES)
    tracked = min(members, TRACKED_TOGETHER if together else TRACKED_EACH)
    if together:
        steps = min(max(STEPS_MIN, ROWS_TOGETHER // (BATCH * nodes)), STEPS_MAX)
        rows = steps * BATCH * members * clusters
    else:
        blocks = max(BLOCKS_MIN, BLOCKS_PER_MEMBER * members if way == CLUSTER else 0)
        rows = blocks * bounds.BLOCK_BYTES // VALUE_BYTES
        steps = rows // BATCH
    if way == CLUSTER and members * disk_share < 2:  # what stays where there is hardly room is decided block by block
        tracked = members
    return Setting(
        members,
        rows,
        VALUE_BYTES,
        way=way,
        together=together,
        batch=BATCH,
        ahead=min(AHEAD, max(3, steps // (4 if together else 50))),  # a small part of what is simulated
        disk_share=disk_share,
        racks=max(1, members // 16),
        tracked=tracked,
        clusters=clusters,
        part=rows / SAMPLES,
        seed=seed,
    )


def at_scale(nodes: int, way: str, together: bool, given: BucketLimits | None = None, seed: int = 0) -> dict[str, Any]:
    """One epoch of all the data by so many nodes, as JSON."""
    setting = setting_of(nodes, way, together, seed)
    part = setting.rows / SAMPLES
    found = simulate(setting, given)
    price = s3_price()
    once_s = min(found.first_wait_s, (given or BucketLimits()).first_byte_s_p99)  # the first request
    epoch_s = once_s + (found.epoch_s - once_s) / part
    told: dict[str, Any] = {
        "nodes": setting.members * setting.clusters,
        "way": way,
        "together": together,
        "clusters": setting.clusters,
        "partitions": (given or BucketLimits()).partitions,
        "part": part,
        "followed": setting.followed,
        "ratio": found.ratio,
        "bucket_bytes": found.bucket_bytes / part,
        "requests": found.requests / part,
        "refused_share": found.refused / (found.refused + found.requests),
        "given_up": found.given_up / part,
        "peer_bytes": found.peer_bytes / part,
        "epoch_s": epoch_s,
        "wait_s_p50": found.wait_s_p50,
        "wait_s_p99": found.wait_s_p99,
        "waiting_share": found.waiting_share,
        "bottleneck": found.bottleneck,
        "least_s": {name: seconds / part for name, seconds in found.least_s.items()},
        "dollars_requests": dollars(price, found.requests / part, 0, 0),
        "dollars_egress": dollars(price, 0, 0, found.bucket_bytes / part),
    }
    return told | {"opening": opening(nodes if way != DIRECT else 0)}


def opening(daemons: int, data_bytes: float = SAMPLES * VALUE_BYTES) -> dict[str, float]:
    """What filling their indexes costs, once for each host: size, header and end of each pack. (Loaders without a daemon have one, too.)"""
    packs = math.ceil(data_bytes / limits.PACK_BYTES_MAX)
    gets = 3.0 * packs * daemons
    sent = packs * daemons * frame_bytes()
    return {"requests": gets, "bytes": sent, "ratio": sent / data_bytes, "dollars": dollars(s3_price(), gets, 0, 0)}


def frame_bytes() -> int:
    """Of a pack, that each daemon reads to fill its index."""
    return limits.FOOTER_TAIL_BYTES + HEADER_BYTES + 3 * ANSWER_BYTES


# -- beside four real daemons ------------------------------------------------------------------------------------------


def check_setting(what: str, rows: int, seed: int) -> Setting:
    """bench/daemon_cluster.py's hosts, data and budgets."""
    data = rows * daemon_cluster.VALUE_BYTES
    kept = 1.2 if what == ALONE else daemon_cluster.KEPT_SHARE
    return Setting(
        daemon_cluster.MEMBERS,
        rows,
        daemon_cluster.VALUE_BYTES,
        way=ALONE if what == ALONE else CLUSTER,
        batch=daemon_cluster.BATCH,
        ram_share=bounds.RAM_BEFORE_DISK_BYTES / data,
        disk_share=max(bounds.DISK_BYTES_MIN, kept * data) / data,
        racks=2,
        killed_at=daemon_cluster.KILL_AT if what == "killed" else None,
        seed=seed,
    )


def simulated(what: str, rows: int, seeds: int = CHECK_SEEDS) -> list[float]:
    """Bytes out of the bucket, times the data, under some seeds (other packs, and so other owners), in ascending order."""
    found = []
    for seed in range(seeds):
        setting = check_setting(what, rows, seed)
        packs = math.ceil(setting.data_bytes / limits.PACK_BYTES_MAX)
        frames = packs * setting.members * frame_bytes() / setting.data_bytes
        found.append(simulate(setting).ratio + frames)
    return sorted(found)


def measured_before() -> tuple[int, dict[str, float]]:
    """(rows, ratios by figure) of the last line of the history that has the four daemons; without one, those of decision 60."""
    for line in reversed(harness.HISTORY.read_text().splitlines()):
        found = [one for one in json.loads(line)["figures"] if one["name"] in MEASURED]
        if len(found) == len(MEASURED):
            return int(found[0]["peer_value"]) // daemon_cluster.VALUE_BYTES, {
                one["name"]: one["ratio"] for one in found
            }
    return daemon_cluster.ROWS, MEASURED


def check(rows: int, wanted: dict[str, float]) -> list[Figure]:
    """Each figure of the simulation beside the measured one, and how far they are apart."""
    figures = []
    for what, name in FIGURES.items():
        found = simulated(what, rows)
        middle = statistics.median(found)
        figures += [
            Figure(f"{what}, simulated", middle, "x the data", "", "measured", wanted[name]),
            Figure(f"{what}, seeds differ by", found[-1] - found[0], "x the data"),
            Figure(f"{what}, off by", abs(middle / wanted[name] - 1), "x measured", f"<= {TOLERANCE[what]}"),
        ]
    return figures


def measure(arguments: Namespace) -> list[Figure]:
    """--check."""
    rows = daemon_cluster.ROWS_QUICK if arguments.quick else daemon_cluster.ROWS
    if arguments.measure:
        told = {one.name: one.ratio for one in daemon_cluster.measure(arguments) if one.ratio is not None}
    else:
        rows, told = measured_before()
    return check(rows, told)


# -- the command -------------------------------------------------------------------------------------------------------


def sweep(nodes: tuple[int, ...], partitions: int) -> list[dict[str, Any]]:
    """All ways at these sizes."""
    given = replace(BucketLimits(), partitions=partitions)
    return [at_scale(count, way, together, given) for together in (True, False) for count in nodes for way in WAYS]


def show(row: dict[str, Any]) -> str:
    """A line for people."""
    kind = "one epoch of all" if row["together"] else "an epoch of each"
    cost = f"${row['dollars_requests']:,.0f} + ${row['dollars_egress']:,.0f} out of the region"
    return (
        f"{row['nodes']:>6,} nodes, {row['way']:<8} {kind}: {row['ratio']:>9,.3f} x the data, {row['requests']:.3g} requests, {cost}, "
        f"{row['epoch_s'] / 3600:,.2f} h, wait p99 {row['wait_s_p99']:.3g} s, {row['waiting_share']:.0%} waiting, "
        f"{row['refused_share']:.0%} refused, by {row['bottleneck']}"
    )


def main() -> None:
    """Parse the arguments and run."""
    parser = harness.parser("simulate", (__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="beside the measurement with four daemons")
    parser.add_argument("--measure", action="store_true", help="with --check: measure now (needs root)")
    parser.add_argument("--nodes", type=int, action="append", help=f"default: {', '.join(map(str, NODES))}")
    parser.add_argument("--partitions", type=int, default=1, help="of the bucket's keys, 1 (default) to 256")
    arguments = parser.parse_args()
    if arguments.check:
        harness.main("simulate", arguments, measure)
    nodes = tuple(arguments.nodes or NODES)
    if not 1 <= arguments.partitions <= 256 or min(nodes) < 1:
        raise argparse.ArgumentTypeError("1 to 256 partitions, and a node or more")
    rows = sweep(nodes, arguments.partitions)
    if not arguments.json:
        for row in rows:
            print(show(row))
    print(json.dumps({"limits": asdict(replace(BucketLimits(), partitions=arguments.partitions)), "rows": rows}))


if __name__ == "__main__":
    main()
