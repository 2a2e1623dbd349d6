"""The index at 10,000,000 chunks: filling it from footers, opening it, looking up, memory.

python -m bench.index [--json] [--history]     10,000 packs of 1,000 chunks (about 1 GiB under the temporary directory)
python -m bench.index --quick                  200,000 chunks; figures without the bounds that are meant for the full size

Footers are real ones (header, compressed rows, trailer with its BLAKE3), made from a seed when they are asked for: what is
measured is everything above the read of a file. Each step runs in a process of its own; the page cache is warm unless a name says
"cold". Look-ups are of random chunks over all packs, every one a hit unless a name says otherwise; private memory is that of the
whole process (Python and numpy included) after them, from /proc/self/smaps_rollup.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bench import harness
from bench.harness import Figure
from leptonstore.digest import digest_of, digest_of_parts
from leptonstore.format import pack as lpk
from leptonstore.format.planes import to_planes
from leptonstore.store.index import Index
from leptonstore.store.index_rows import FOOTER, Rows, footer_array
from leptonstore.store.log import LogState, PackRecord

ROWS_PER_PACK = 1_000
STORE_ID = b"bench-index-0001"
_TRAILER = struct.Struct("<4sBBHQQQQQ")


def digests_of(number: int) -> np.ndarray[Any, np.dtype[Any]]:
    """The digests of pack `number`, as rows of bytes."""
    raw = np.random.default_rng(number).bytes(32 * ROWS_PER_PACK)
    return np.frombuffer(raw, "S32")


def footer_of(number: int, pack: str) -> Rows:
    """The rows of pack `number`, parsed and checked as those of a real one."""
    rows = np.zeros(ROWS_PER_PACK, FOOTER)
    rows["digest"] = np.sort(digests_of(number))
    rows["stored"], rows["raw"], rows["kind"], rows["codec"] = 4_000, 6_000, lpk.KIND_CHUNK, lpk.CODEC_ZSTD
    rows["dictionary"] = lpk.DICTIONARY_NONE
    rows["offset"] = lpk.HEADER_BYTES + np.arange(ROWS_PER_PACK, dtype="u8") * (4_000 + lpk.RECORD_HEADER_BYTES)
    footer = zstandard.ZstdCompressor(level=1).compress(to_planes(rows.tobytes(), lpk.FOOTER_ROW_BYTES))
    at = lpk.HEADER_BYTES + ROWS_PER_PACK * (4_000 + lpk.RECORD_HEADER_BYTES)
    size = at + len(footer) + lpk.TRAILER_BYTES
    header = lpk.PackHeader(lpk.CONTENT_DATA, STORE_ID, bytes.fromhex(pack), bytes(32)).encode()
    trailer = _TRAILER.pack(b"LEND", lpk.MAJOR, lpk.MINOR, 0, ROWS_PER_PACK, at, len(footer), size, 0)
    return footer_array(header, footer, trailer + digest_of_parts((header, footer, trailer)), size)


def state_of(packs: int, sequence: int = 1, without: int = 0, more: int = 0) -> LogState:
    """A log that lists packs [without, packs + more)."""
    names = {pack_name(number): PackRecord(1 << 26, lpk.CONTENT_DATA) for number in range(without, packs + more)}
    return LogState(sequence, digest_of(f"entry {sequence}".encode()), {}, names)


def pack_name(number: int) -> str:
    """Random-looking, like real ones, and tells its number."""
    return f"{digest_of(str(number).encode())[:12].hex()}{number:08x}"


def sync(index: Index, state: LogState) -> float:
    """Seconds to bring `index` to `state`."""
    start = time.perf_counter()
    index.sync(state, lambda sequence: digest_of(f"entry {sequence}".encode()), lambda p: footer_of(int(p[24:], 16), p))
    return time.perf_counter() - start


def private_mb() -> float:
    """Anonymous memory of this process."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(next(line for line in text.split("\n") if line.startswith("Anonymous:")).split()[1]) / 1024


def peak_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work`, and the most private memory that was seen meanwhile, in MB."""
    peak, done = [private_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], private_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return work(), peak[0]
    finally:
        done.set()
        watcher.join()


def some_digests(packs: int, batches: int) -> Iterator[list[bytes]]:
    """Batches of random chunks, each from 50 random packs."""
    rng = random.Random(1)
    for _ in range(batches):
        chosen = [digests_of(rng.randrange(packs)) for _ in range(50)]
        digests = [bytes(digest) for digest in np.concatenate(chosen).view("V32")]
        rng.shuffle(digests)
        yield digests


def fill(folder: Path, packs: int) -> dict[str, float]:
    """An empty index, filled. The footers' own making is measured beside it."""
    index = Index(STORE_ID, "bench", folder)
    seconds, peak = peak_of(lambda: sync(index, state_of(packs)))
    size = index._open().info()
    start = time.perf_counter()
    for number in range(min(packs, 1_000)):
        footer_of(number, pack_name(number))
    made = (time.perf_counter() - start) * packs / min(packs, 1_000)
    index.close()
    file_mb = (size["last_pgno"] + 1) * size["page_bytes"] / 1e6
    return {"rebuild_s": seconds, "rebuild_peak_mb": peak, "making_footers_s": made, "file_mb": file_mb}


def look(folder: Path, packs: int) -> dict[str, float]:
    """Open and look up."""
    state, first = state_of(packs), bytes(digests_of(packs // 2).view("V32")[0])
    before = private_mb()
    start = time.perf_counter()
    index = Index(STORE_ID, "bench", folder)
    sync(index, state)
    found = index.get(first)
    opened = time.perf_counter() - start
    if found is None or index.rebuilt:
        raise RuntimeError("the index lost what was put into it")
    seconds: dict[str, list[float]] = {"many": [], "many_cpu": [], "one": [], "missing": []}
    for digests in some_digests(packs, 20 if packs > 1_000 else 4):
        start, start_cpu = time.perf_counter(), time.process_time()
        places = index.get_many(digests)
        seconds["many"].append((time.perf_counter() - start) / len(digests))
        seconds["many_cpu"].append((time.process_time() - start_cpu) / len(digests))
        if None in places:
            raise RuntimeError("a chunk is missing")
        del places
        start = time.perf_counter()
        for digest in digests:
            index.get(digest)
        seconds["one"].append((time.perf_counter() - start) / len(digests))
        absent = [digest[::-1] for digest in digests]
        start = time.perf_counter()
        for digest in absent:
            index.has(digest)
        seconds["missing"].append((time.perf_counter() - start) / len(digests))
    rates = {name: 1 / harness.median(values) for name, values in seconds.items()}
    return {"open_s": opened, "private_mb": private_mb(), "before_mb": before, **rates}


def change(folder: Path, packs: int) -> dict[str, float]:
    """A publish of one pack, 1% of the packs removed, and one pass over everything."""
    index = Index(STORE_ID, "bench", folder)
    one_more = sync(index, state_of(packs, sequence=2, more=1))
    gone = max(1, packs // 100)
    remove, peak = peak_of(lambda: sync(index, state_of(packs, sequence=3, without=gone, more=1)))
    start = time.perf_counter()
    rows = sum(1 for _ in index.items())
    walk = time.perf_counter() - start
    if rows != (packs + 1 - gone) * ROWS_PER_PACK:
        raise RuntimeError(f"{rows} rows are left")
    return {"publish_ms": one_more * 1e3, "remove_s": remove, "change_peak_mb": peak, "items_per_s": rows / walk}


def warm_up(folder: Path) -> None:
    """Bring the files into the page cache."""
    for path in folder.rglob("*.mdb"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def run(step: str, folder: Path, packs: int) -> dict[str, float]:
    """One step in a process of its own."""
    command = [sys.executable, "-m", "bench.index", "--step", step, "--folder", str(folder), "--packs", str(packs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=harness.ROOT)
    result: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Fill, open cold, open warm and look up, change."""
    packs = (200_000 if arguments.quick else arguments.rows) // ROWS_PER_PACK
    full = not arguments.quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled = run("fill", folder, packs)
        harness.make_cold(folder)
        cold = run("look", folder, packs)
        warm_up(folder)
        warm = run("look", folder, packs)
        changed = run("change", folder, packs)
    return [
        Figure("rows", packs * ROWS_PER_PACK, "chunks"),
        Figure("open_s", warm["open_s"], "s", "<= 1"),
        Figure("open_cold_s", cold["open_s"], "s", "<= 1"),
        Figure("private_mb", warm["private_mb"], "MB", "<= 300"),
        Figure("private_before_mb", warm["before_mb"], "MB"),
        Figure("lookups_per_s", warm["many"], "1/s", ">= 300000" if full else ""),
        # Under load, this tells what the machine's other work took from the figure before it.
        Figure("lookups_per_cpu_s", warm["many_cpu"], "1/s"),
        Figure("single_lookups_per_s", warm["one"], "1/s"),
        Figure("missing_per_s", warm["missing"], "1/s"),
        Figure("rebuild_s", filled["rebuild_s"], "s"),
        Figure("rebuild_making_footers_s", filled["making_footers_s"], "s"),
        Figure("rebuild_peak_mb", filled["rebuild_peak_mb"], "MB"),
        Figure("file_mb", filled["file_mb"], "MB"),
        Figure("publish_pack_ms", changed["publish_ms"], "ms"),
        Figure("remove_1_percent_s", changed["remove_s"], "s"),
        Figure("change_peak_mb", changed["change_peak_mb"], "MB"),
        Figure("items_per_s", changed["items_per_s"], "1/s"),
    ]


if __name__ == "__main__":
    parser = harness.parser("index", __doc__ or "")
    parser.add_argument("--rows", type=int, default=10_000_000, help="chunks (default 10,000,000)")
    parser.add_argument("--step", choices=("fill", "look", "change"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packs", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step = {"fill": fill, "look": look, "change": change}[given.step]
        print(json.dumps(step(given.folder, given.packs)))
    else:
        harness.main("index", given, measure)
