"""Writes the measured parts of docs/SCALING.md, and its pictures, from bench/scaling.json. A test compares.

python -m bench.scaling_page

Between <!-- NAME --> and <!-- /NAME --> of the page stands what `parts` makes; all else is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench import harness
from bench.scaling import KEPT, Fit
from bench.simulate import SAMPLES, VALUE_BYTES
from leptonstore import limits
from leptonstore.daemon.cluster import bounds
from loaders.plan import PLAN_KEYS_MAX

PAGE = harness.ROOT / "docs" / "SCALING.md"
PICTURES = {
    "bytes": harness.ROOT / "docs" / "scaling-bytes.png",
    "dollars": harness.ROOT / "docs" / "scaling-dollars.png",
}
CHUNKS, NODES, RANK_ROWS = 10**12, 10_000, 256


class Bound(NamedTuple):
    """A line of the table: what it is, how it grows by what the code does, and sizes of the two stores that it is projected to."""

    measure: str
    what: str
    law: str
    small: float
    large: float
    note: str = ""


def packs(chunks: float) -> float:
    """Of so many chunks of VALUE_BYTES."""
    return chunks * VALUE_BYTES / limits.PACK_BYTES_MAX


SMALL, LARGE = float(SAMPLES), float(CHUNKS)
BOUNDS = (
    Bound("index_bytes", "index of a host, bytes", "linear in chunks", SMALL, LARGE, "the whole index on each host"),
    Bound("index_fill", "filling it, s of processor", "n log n in chunks", SMALL, LARGE),
    Bound(
        "index_look_up",
        "a look-up (dedup: is it there?)",
        "log n, while the index is in memory",
        SMALL,
        LARGE,
        "beyond memory: a read of a disk each",
    ),
    Bound("index_publish", "index, a publish", "linear in listed packs", packs(SMALL), packs(LARGE)),
    Bound("open_seconds", "opening: the log's snapshot", "linear in listed packs", packs(SMALL), packs(LARGE)),
    Bound(
        "open_entries",
        "opening: entries after it",
        f"linear, below {limits.LOG_SNAPSHOT_EVERY} entries",
        limits.LOG_SNAPSHOT_EVERY - 1,
        limits.LOG_SNAPSHOT_EVERY - 1,
    ),
    Bound(
        "open_memory",
        "list of packs in memory",
        "linear in listed packs",
        packs(SMALL),
        packs(LARGE),
        "of each process that opens the store",
    ),
    Bound(
        "snapshot_bytes",
        "a snapshot of the log",
        "linear in listed packs",
        packs(SMALL),
        packs(LARGE),
        f"each {limits.LOG_SNAPSHOT_EVERY} entries",
    ),
    Bound(
        "gc_memory",
        "gc, memory of the mark",
        "constant (sorted runs on disk)",
        SMALL,
        LARGE,
        f"{limits.GC_KEY_BYTES} bytes of disk a chunk",
    ),
    Bound("gc_seconds", "gc, one that finds nothing", "n log n in chunks", SMALL, LARGE),
    Bound("commit_seconds", "a commit of one row", "log n in rows", SMALL, LARGE),
    Bound(
        "tree_levels", "levels of the tree above row groups", f"log n to base {limits.NODE_FANOUT_AVG}", SMALL, LARGE
    ),
    Bound(
        "tree_search",
        "finding a row's row group",
        f"log n while nodes fit in {limits.NODE_CACHE_BYTES >> 20} MiB, then a node to read",
        SMALL,
        SMALL,
        "two regimes, so no power law: from 10^9 rows on, a search in random order reads and parses a node",
    ),
    Bound("order_batch", "order, a position", "constant", SMALL, LARGE),
    Bound("order_seek", "order, a seek (256 rows)", "constant", SMALL, LARGE),
    Bound(
        "cache_plan",
        "plan of a loader, told at once",
        f"linear, {PLAN_KEYS_MAX:,} keys at most",
        PLAN_KEYS_MAX,
        PLAN_KEYS_MAX,
    ),
    Bound(
        "receipt_step",
        "receipt, a step of a rank",
        "linear in rows of the global batch",
        RANK_ROWS * 1_000,
        RANK_ROWS * NODES,
        f"1,000 and {NODES:,} ranks of {RANK_ROWS} rows",
    ),
    Bound(
        "connections_http",
        "daemon, HTTP connections",
        "linear",
        1_000,
        NODES,
        f"1,000 and {NODES:,} of them; a daemon takes 2,048",
    ),
    Bound(
        "connections_flight",
        "daemon, clients of the data plane",
        "linear",
        1_000,
        NODES,
        f"1,000 and {NODES:,} of them",
    ),
)


def quantity(value: float, unit: str) -> str:
    """A number with a unit that people read: bytes, seconds, or what it is."""
    steps: tuple[tuple[float, str], ...]
    if unit.startswith("bytes"):
        steps = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    elif unit.startswith("s "):
        steps = (
            (86_400 * 365.25, "years"),
            (86_400, "days"),
            (3_600, "h"),
            (60, "min"),
            (1.0, "s"),
            (1e-3, "ms"),
            (1e-6, "us"),
            (1e-9, "ns"),
        )
    else:
        return f"{value:.3g}"
    for size, name in steps:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.2g} {unit.split()[0]}"


def slope_of(found: Mapping[str, Any]) -> str:
    """The measured slope: a number for each, or an exponent; and how well it fits."""
    fit = Fit(**found["fit"])
    how = f"R² {fit.r2:.3f}, ±{fit.off:.0%}"
    if fit.form == "line":
        base = (
            f"{quantity(fit.intercept, found['unit'])} + "
            if fit.intercept > 0.01 * fit.at(found["points"][-1][0])
            else ""
        )
        return f"{base}{quantity(fit.slope, found['unit'])} a {found['per']} ({how})"
    return f"n^{fit.slope:.3f} ({how})"


def projected(found: Mapping[str, Any], size: float) -> float:
    """The fit at that size. What got faster with size by a hair is taken not to grow: its last point."""
    fit = Fit(**found["fit"])
    if abs(size / found["points"][-1][0] - 1) < 1e-3:
        return float(found["points"][-1][1])  # it was measured
    return float(found["points"][-1][1]) if fit.form == "power" and fit.slope < 0 else fit.at(size)


def sizes_of(found: Mapping[str, Any]) -> str:
    """Where it was measured."""
    first, last = found["points"][0], found["points"][-1]
    unit = found["unit"]
    return f"{quantity(first[1], unit)} at {first[0]:.3g}, {quantity(last[1], unit)} at {last[0]:.3g}"


def slopes_table(slopes: Mapping[str, Any]) -> str:
    """All bounds."""
    lines = [
        "| bound | grows | measured slope | measured at | "
        f"10^9 samples ({packs(SMALL):.2g} packs) | 10^12 chunks ({packs(LARGE):.2g} packs) | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for bound in BOUNDS:
        found = slopes.get(bound.measure)
        if found is None:
            continue
        small, large = (quantity(projected(found, size), found["unit"]) for size in (bound.small, bound.large))
        cells = (bound.what, bound.law, slope_of(found), sizes_of(found), small, large, bound.note)
        lines.append(f"| {' | '.join(cells)} |")
    stamps = sorted(
        {(one["date"], one["commit"], one["machine"]["cores"], one["machine"]["system"]) for one in slopes.values()}
    )
    told = "; ".join(f"{date}, commit {commit}, {cores} cores, {system}" for date, commit, cores, system in stamps)
    missing = [bound.what for bound in BOUNDS if bound.measure not in slopes]
    left = f" Not measured yet: {'; '.join(missing)}." if missing else ""
    return "\n".join([*lines, "", f"Measured by `python -m bench.scaling`: {told}.{left}"])


def simulated_table(rows: list[dict[str, Any]]) -> str:
    """All that was simulated."""
    lines = [
        "| nodes | read through | partitions | bytes out of the bucket | requests | requests cost | egress, out of the region "
        "| epoch | p99 wait | refused | bound by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        clusters = f"{row['clusters']} clusters" if row["clusters"] > 1 else row["way"]
        lines.append(
            f"| {row['nodes']:,} | {clusters} | {row['partitions']} | {row['ratio']:,.2f} x | {row['requests']:.2g} | "
            f"${row['dollars_requests']:,.0f} | ${row['dollars_egress']:,.0f} | {quantity(row['epoch_s'], 's ')} | "
            f"{quantity(row['wait_s_p99'], 's ')} | {row['refused_share']:.0%} | {row['bottleneck']} |"
        )
    return "\n".join(lines)


def opening_table(rows: list[dict[str, Any]]) -> str:
    """What filling the indexes of all daemons takes of the bucket."""
    lines = ["| daemons | bytes | times the data | requests | requests cost |", "| --- | --- | --- | --- | --- |"]
    seen: dict[int, dict[str, float]] = {row["nodes"]: row["opening"] for row in rows if row["way"] == "cluster"}
    for nodes, told in sorted(seen.items()):
        cells = (
            quantity(told["bytes"], "bytes"),
            f"{told['ratio']:.2g} x",
            f"{told['requests']:.2g}",
            f"${told['dollars']:,.0f}",
        )
        lines.append(f"| {nodes:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(found: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the marks, by name."""
    rows = found["simulated"].get("rows", [])
    return {
        "slopes": slopes_table(found["slopes"]),
        "together": simulated_table([row for row in rows if row["together"]]),
        "each": simulated_table([row for row in rows if not row["together"]]),
        "opening": opening_table(rows),
    }


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with its parts. Raises ValueError: it has no place for one."""
    for name, text in parts(found).items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE} has no place for {name!r}, or several")
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n{text}\n\n{end}{after}"
    return page


def draw(rows: list[dict[str, Any]], file: Path, value: str, label: str) -> None:
    """Lines over the number of nodes, on logarithmic scales: left, loaders that share an epoch; right, an epoch for each."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = {"cluster": "#2563eb", "alone": "#dc2626", "direct": "#6b7280"}
    names = {
        "cluster": f"cluster (of {bounds.MEMBERS_MAX:,} at most)",
        "alone": "daemons alone",
        "direct": "no daemon: a request for each value",
    }
    made, both = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axes, together in zip(both, (True, False), strict=True):
        for way, colour in colours.items():
            points = sorted(
                (row["nodes"], row[value])
                for row in rows
                if row["way"] == way and row["together"] == together and row["partitions"] == 1
            )
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    "o--" if way == "direct" else "o-",
                    color=colour,
                    label=names[way],
                    markersize=4,
                )
        axes.set(xscale="log", yscale="log", xlabel="nodes")
        axes.set_title("one epoch, shared by all nodes" if together else "an epoch for each node", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel(label)
    both[1].legend(fontsize=8, frameon=False)
    made.savefig(file, dpi=140, metadata={"Software": None})
    pyplot.close(made)


def main() -> None:
    """Write page and pictures."""
    found = json.loads(KEPT.read_text())
    PAGE.write_text(written(PAGE.read_text(), found))
    rows = found["simulated"].get("rows", [])
    draw(rows, PICTURES["bytes"], "ratio", "bytes out of the bucket / bytes of the data")
    draw(rows, PICTURES["dollars"], "dollars_requests", "dollars an epoch, requests only")


if __name__ == "__main__":
    main()
