"""The short set of CI: ratios with a peer of the same run, compared with bench/baseline.json.

    {"figures": [{"run", "figure", "better": "higher" | "lower", "ratios": {processor: [ratios of several runs]}}],
     "commit", "date", "machine"}

Two programs that compute do not get faster by the same on every processor: statistics took 0.67 of DuckDB's processor time on one and
0.96 on another. So the baseline is the median of the ratios that this processor had; on a processor that it does not know, the worst
median of those that it knows.

A figure regressed when its ratio is worse than the baseline's by more than a third: below 2/3 of it where higher is better, above 4/3
where lower is. Whatever regressed is measured again, at most MEASURED_MAX times in all, and the best counts: a neighbour of the machine
makes one run slow, a fault makes all of them slow. Absolute times are never compared. Which figures are watched: `watched` in
bench/all_runs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.all_results import Result
from bench.all_runs import RUNS, Run
from bench.harness import ROOT, median

BASELINE = ROOT / "bench" / "baseline.json"
WORSE_BY = 1 / 3
MEASURED_MAX = 3

Measure = Callable[[Run], Result]


@dataclass(frozen=True)
class Expected:
    """A figure of the baseline."""

    run: str
    figure: str
    ratio: float
    higher_is_better: bool

    def regressed(self, ratio: float) -> bool:
        """By more than a third."""
        if self.higher_is_better:
            return ratio < self.ratio * (1 - WORSE_BY)
        return ratio > self.ratio * (1 + WORSE_BY)

    def best(self, ratios: Sequence[float]) -> float:
        """Of several runs."""
        return max(ratios) if self.higher_is_better else min(ratios)


@dataclass(frozen=True)
class Compared:
    """A figure and the ratios that were measured, in order; none when the run did not tell it."""

    expected: Expected
    ratios: tuple[float, ...]

    @property
    def missing(self) -> bool:
        """Renamed, removed, or its run failed: nobody watches it any more."""
        return not self.ratios

    @property
    def failed(self) -> bool:
        """Missing, or worse in every run."""
        return self.missing or self.expected.regressed(self.expected.best(self.ratios))

    def line(self) -> str:
        """For people."""
        one = self.expected
        name = f"{one.run}: {one.figure}"
        if self.missing:
            return f"MISSING    {name}: its run did not tell it (baseline {one.ratio:.3g}x)"
        best, wanted = one.best(self.ratios), "higher" if one.higher_is_better else "lower"
        times = f", best of {len(self.ratios)}" if len(self.ratios) > 1 else ""
        state = "REGRESSED " if self.failed else "holds     "
        return f"{state} {name}: {best:.3g}x{times}; baseline {one.ratio:.3g}x, {wanted} is better"


def watched_runs(names: Sequence[str] = ()) -> list[Run]:
    """The runs of the short set, of these names if there are some."""
    return [run for run in RUNS if run.watched and (not names or run.name in names or run.bench in names)]


def read_baseline(path: Path, processor: str) -> list[Expected]:
    """As it holds on a processor. Raises FileNotFoundError when there is none yet (`--write-baseline` writes it)."""
    return [_expected(one, processor) for one in json.loads(path.read_text())["figures"]]


def _expected(told: Mapping[str, Any], processor: str) -> Expected:
    higher = told["better"] == "higher"
    medians = {name: median(ratios) for name, ratios in told["ratios"].items()}
    worst = min(medians.values()) if higher else max(medians.values())
    return Expected(told["run"], told["figure"], medians.get(processor, worst), higher)


def compare(expected: Sequence[Expected], runs: Sequence[Run], measure: Measure) -> list[Compared]:
    """Measure each run, and those again of which a figure regressed or is missing."""
    compared = []
    for run in runs:
        mine = [one for one in expected if one.run == run.name]
        if not mine:
            continue
        ratios: dict[str, list[float]] = {one.figure: [] for one in mine}
        for _ in range(MEASURED_MAX):
            found = ratios_of(measure(run))
            for name, told in ratios.items():
                told += [found[name]] if name in found else []
            if not any(Compared(one, tuple(ratios[one.figure])).failed for one in mine):
                break
        compared += [Compared(one, tuple(ratios[one.figure])) for one in mine]
    return compared


def ratios_of(result: Result) -> dict[str, float]:
    """Of the figures with a peer. A name that a run tells twice, beside different peers, stands for the first."""
    return {figure.name: figure.ratio for figure in reversed(result.figures) if figure.ratio is not None}


def baseline_of(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Of several results of each run on this machine. Raises ValueError when a watched figure is missing."""
    figures: list[dict[str, Any]] = []
    last: Result | None = None
    for run in RUNS:
        for name in run.watched if run.name in results else ():
            told = [one for result in results[run.name] for one in result.figures if one.name == name]
            ratios = [one.ratio for one in told if one.ratio is not None]
            if not ratios:
                raise ValueError(f"{run.name} told no ratio of {name!r}")
            better = "higher" if told[0].higher_is_better else "lower"
            last = results[run.name][-1]
            mine = {last.machine["processor"]: ratios}
            figures.append({"run": run.name, "figure": name, "better": better, "ratios": mine})
    if last is None:
        raise ValueError("nothing was measured")
    return {"figures": figures, "commit": last.commit, "date": last.date, "machine": last.machine}


def merged(before: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """`new`, with what `before` knows of other processors and of runs that were not measured now, as far as they are watched; in RUNS'
    order. A name in `before` whose ratios no longer hold there (the code was made better) is taken out of the file by hand."""
    by = {(one["run"], one["figure"]): one for one in (before["figures"] if before else [])}
    for one in new["figures"]:
        key = one["run"], one["figure"]
        others = by[key]["ratios"] if key in by else {}
        by[key] = {**one, "ratios": {**others, **one["ratios"]}}
    order = [(run.name, name) for run in RUNS for name in run.watched]
    return {**new, "figures": [by[key] for key in order if key in by]}


def write_baseline(made: Mapping[str, Any], path: Path) -> None:
    """A line for each figure."""
    rest = {key: value for key, value in made.items() if key != "figures"}
    lines = ",\n".join(json.dumps(_rounded(one)) for one in made["figures"])
    path.write_text(f'{{"figures": [\n{lines}\n],\n{json.dumps(rest)[1:]}\n')


def _rounded(figure: Mapping[str, Any]) -> dict[str, Any]:
    ratios = {name: [float(f"{one:.4g}") for one in found] for name, found in figure["ratios"].items()}
    return {**figure, "ratios": ratios}
