"""How what bounds a store grows: measured at several sizes, fitted, and projected. docs/SCALING.md is written from what this finds.

python -m bench.scaling [--only NAME] [--json]          some minutes; each measure in a process of its own
python -m bench.scaling --keep                          and what is found goes to bench/scaling.json, simulation included
python -m bench.scaling_page                            docs/SCALING.md from that file

A measure gives points (size, value) of the real code, and how they are thought to grow: "line" is fitted by least squares as
intercept + slope x size, "power" as a straight line of the logarithms, whose slope is the exponent (0: it does not grow). `r2` is the share
of the variance that the fit explains, `off` the largest |fit / measured - 1|. Times are processor time of the process (all threads), at
best of some tries, unless a name says "seconds": other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench import harness, simulate
from bench.scaling_measures import MEASURES

KEPT = harness.ROOT / "bench" / "scaling.json"


@dataclass(frozen=True)
class Fit:
    """value = intercept + slope x size ("line"), or exp(intercept) x size^slope ("power")."""

    form: str
    slope: float
    intercept: float
    r2: float
    off: float

    def at(self, size: float) -> float:
        """What the fit says of a size."""
        if self.form == "line":
            return self.intercept + self.slope * size
        return float(np.exp(self.intercept) * size**self.slope)


def fitted(form: str, points: Sequence[Sequence[float]]) -> Fit:
    """Least squares; three points or more. A line is fitted to relative errors: small sizes count as much as large ones.

    Raises ValueError for fewer points, or values whose logarithm there is not.
    """
    sizes, values = np.array(points, float).T
    if len(points) < 3 or (sizes <= 0).any() or (values <= 0).any():
        raise ValueError(f"{points}: a fit needs three points of positive sizes and values")
    if form == "line":
        weights = 1 / values
        design = np.stack([weights, sizes * weights], axis=1)
        intercept, slope = np.linalg.lstsq(design, values * weights, rcond=None)[0]
        told = intercept + slope * sizes
        wanted, found = values, told
    else:
        slope, intercept = np.polyfit(np.log(sizes), np.log(values), 1)
        told = np.exp(intercept) * sizes**slope
        wanted, found = np.log(values), np.log(told)
    spread = ((wanted - wanted.mean()) ** 2).sum()
    r2 = 1 - ((wanted - found) ** 2).sum() / spread if spread else 1.0
    return Fit(form, float(slope), float(intercept), float(r2), float(np.abs(told / values - 1).max()))


def measured(name: str) -> dict[str, Any]:
    """One measure, in a process of its own: its points and their fit, as JSON."""
    told = harness.in_process("bench.scaling", "--one", name)
    fit = fitted(told["form"], told["points"])
    return {**told, "fit": asdict(fit)}


def told_of(name: str, found: dict[str, Any]) -> str:
    """A line for people."""
    fit, points = found["fit"], found["points"]
    at = ", ".join(f"{value:.4g} at {size:,.0f}" for size, value in points)
    slope = (
        f"x^{fit['slope']:.3f}"
        if fit["form"] == "power"
        else f"{fit['intercept']:.4g} + {fit['slope']:.4g} a {found['per']}"
    )
    return f"{name:<20} {found['unit']}: {slope} (r2 {fit['r2']:.4f}, off {fit['off']:.0%}): {at}"


def main() -> None:
    """Parse the arguments and run."""
    # No benchmark with bounds: it has neither a quick form nor a history.
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--only", action="append", choices=MEASURES, help="one of them (may be repeated)")
    parser.add_argument(
        "--keep", action="store_true", help="write bench/scaling.json; with --only what else it has stays"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="the simulation, too (with --keep and without --only always)"
    )
    parser.add_argument("--one", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure: Callable[[], dict[str, Any]] = MEASURES[arguments.one]
        print(json.dumps(measure()))
        return
    stamp = {"commit": harness.revision(), "date": datetime.date.today().isoformat(), "machine": harness.machine()}
    before = json.loads(KEPT.read_text()) if arguments.keep and KEPT.exists() else {}
    slopes: dict[str, Any] = dict(before.get("slopes", {}))
    result = {"slopes": slopes, "simulated": before.get("simulated", {})}

    def keep() -> None:
        if arguments.keep:
            KEPT.write_text(json.dumps(result, indent=1) + "\n")

    for name in arguments.only or MEASURES:
        slopes[name] = {**measured(name), **stamp}
        if not arguments.json:
            print(told_of(name, slopes[name]), flush=True)
        keep()
    if arguments.simulate or (arguments.keep and not arguments.only):
        rows = {partitions: simulate.sweep(simulate.NODES, partitions) for partitions in simulate.PARTITIONS}
        result["simulated"] = {**stamp, "rows": [row for some in rows.values() for row in some]}
        keep()
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
