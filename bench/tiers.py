"""`python -m bench.tiers`: what the tiers cost, each beside the plainest thing that does the same.

block    16 packs of 32 MiB are written (fsync included) and read in pieces of 4 MiB with the page cache dropped, on a volume file and on
         a local tier in the same directory, in turn. The median of all passes: in a virtual machine, one that takes memory which the
         host had taken back costs 2 ns a byte more, more than the reading does, and that meets either.

object   reading from a real S3 server on loopback, beside obstore and s3fs, and over a long link (bench/object_tier.py).

tiered   a store of 1 GB with 200 MB at home and the rest on S3 trains an epoch through an outage (bench/tiered_run.py).

Contract: block >= 0.9x local, both ways; object and tiered as their modules say.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from bench import harness
from bench.harness import Figure
from bench.object_tier import measure_object
from bench.tiered_run import measure_tiered
from leptonstore.limits import MIB
from leptonstore.tiers.block import BlockTier, open_block
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.local import LocalTier

PACKS, PACKS_QUICK = 16, 4
PACK_BYTES = 32 * MIB
WRITE_BYTES, READ_BYTES = 1 * MIB, 4 * MIB
ROUNDS, READS = 7, 2


def write_packs(tier: LocalTier | BlockTier, packs: list[str], data: bytes) -> float:
    """MB/s of writing `data` as each of the packs, one after another, all durable at the end."""
    view, begin = memoryview(data), time.perf_counter()
    for pack in packs:
        sink = tier.create_pack(pack)
        for start in range(0, len(data), WRITE_BYTES):
            sink.write(view[start : start + WRITE_BYTES])
        sink.seal()
        sink.abort()
    return len(packs) * len(data) / (time.perf_counter() - begin) / 1e6


def read_packs(tier: LocalTier | BlockTier, packs: list[str], data: bytes, once: bool) -> float:
    """MB/s of reading the packs in pieces: through the page cache, or around it with `once`."""
    read = tier.read_once if once else tier.read
    begin, total = time.perf_counter(), 0
    for pack in packs:
        for start in range(0, len(data), READ_BYTES):
            total += len(read(pack, start, READ_BYTES))
    seconds = time.perf_counter() - begin
    assert total == len(packs) * len(data)
    assert all(bytes(tier.read(pack, 12_345, 99)) == data[12_345 : 12_345 + 99] for pack in packs)
    return total / seconds / 1e6


def measure_block(quick: bool) -> list[Figure]:
    """The block tier beside the local one, in turn."""
    count = PACKS_QUICK if quick else PACKS
    data = random.Random(0).randbytes(PACK_BYTES)
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        place = Path(folder)
        format_block(place / "volume", (count + 2) * PACK_BYTES)
        tiers: dict[str, LocalTier | BlockTier] = {
            "local": LocalTier(place / "local"),
            "block": open_block(place / "volume"),
        }
        for turn in range(1 if quick else ROUNDS):
            for name in sorted(tiers, reverse=bool(turn % 2)):
                tier, packs = tiers[name], [f"{turn:016x}{n:016x}" for n in range(1, count + 1)]
                found.setdefault((name, "write"), []).append(write_packs(tier, packs, data))
                for how, once in (("read", False), ("read_once", True)) * (1 if quick else READS):
                    harness.make_cold(place)
                    found.setdefault((name, how), []).append(read_packs(tier, packs, data, once))
                for pack in packs:
                    tier.delete_pack(pack)
        for tier in tiers.values():
            tier.close()
    figures = []
    for how in ("write", "read", "read_once"):
        block, local = (harness.median(found[name, how]) for name in ("block", "local"))
        figures.append(Figure(f"block_{how}", block, "MB/s", "" if quick else ">= 0.9", "local", local))
    return figures


MEASURES = {"block": measure_block, "object": measure_object, "tiered": measure_tiered}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The chosen ones."""
    return [figure for name in arguments.only or MEASURES for figure in MEASURES[name](arguments.quick)]


def main() -> None:
    """See the module."""
    parser = harness.parser("tiers", __doc__ or "")
    parser.add_argument("--only", choices=list(MEASURES), action="append", help="only this tier (may be repeated)")
    arguments = parser.parse_args()
    harness.main("tiers", arguments, measure)


if __name__ == "__main__":
    main()
