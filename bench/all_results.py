"""The file of results that `python -m bench.all` writes, and what makes a picture or a table of it reads.

    {"format": "lepton-bench-1",
     "runs": [{
       "name":      of the run (bench/all_runs.py)
       "bench":     the module below bench that measured
       "arguments": what it was started with
       "commit":    12 hex digits, with "+" when files differed from it
       "date":      YYYY-MM-DD
       "machine":   {system, cores, memory_gib, python}
       "quick":     whether it was a small run, whose figures promise nothing
       "seconds":   from start to end; null when it was not told (bench/history.jsonl)
       "exit_code": 0: every bound holds. 1: one falls short, or it failed, and then there are no figures. null: it was ended, by its
                    time limit or by whoever started it
       "figures":   [{name, value, unit, bound, peer, peer_value, ratio, holds}], as `bench.harness.Figure` has them
       "log":       of a run without figures: the end of what it said}]}

bench/results/latest.json is such a file: the newest whole run of each benchmark, from which the table in README.md is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import HISTORY, ROOT, Figure

FORMAT = "lepton-bench-1"
LATEST = ROOT / "bench" / "results" / "latest.json"


@dataclass(frozen=True)
class Result:
    """One run; see the module."""

    name: str
    bench: str
    commit: str
    date: str
    machine: dict[str, Any]
    figures: tuple[Figure, ...] = ()
    arguments: tuple[str, ...] = ()
    quick: bool = False
    seconds: float | None = None
    exit_code: int | None = None
    log: str = ""

    @property
    def measured(self) -> bool:
        """Whether it came to an end with figures."""
        return bool(self.figures)

    @property
    def short(self) -> list[Figure]:
        """The figures whose bound does not hold."""
        return [figure for figure in self.figures if figure.holds is False]

    def to_json(self) -> dict[str, Any]:
        """See the module."""
        return {**vars(self), "figures": [figure.to_json() for figure in self.figures]}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Result:
        """Of `to_json`, or of a line of bench/history.jsonl, which knows neither seconds nor an exit code."""
        figures = tuple(Figure.from_json(one) for one in told["figures"])
        arguments = tuple(told.get("arguments", ()))
        named = {"name": f"{told['bench']} ({figures[0].name if figures else ''})"}
        return cls(**{**named, **told, "figures": figures, "arguments": arguments})


def read(path: Path) -> list[Result]:
    """The runs of a file of results, or of a history, in the order in which they were made. Raises ValueError for another file."""
    try:
        if path.suffix == ".jsonl":
            return [Result.from_json(json.loads(line)) for line in path.read_text().splitlines()]
        told = json.loads(path.read_text())
        if told["format"] != FORMAT:
            raise ValueError(f"{path} has the format {told['format']!r}, not {FORMAT!r}")
        return [Result.from_json(one) for one in told["runs"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file of results ({error!r})") from error


def write(path: Path, results: Iterable[Result]) -> None:
    """All of it, or none: what was measured for hours must survive a kill. A line for each figure, so that diffs can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(as_text(results))
    os.replace(temporary, path)


def as_text(results: Iterable[Result]) -> str:
    """JSON, a line for each figure."""
    runs = []
    for result in results:
        told = result.to_json()
        figures = ",\n  ".join(json.dumps(figure) for figure in told["figures"])
        told["figures"] = []
        runs.append(
            json.dumps(told).replace('"figures": []', f'"figures": [\n  {figures}]' if figures else '"figures": []')
        )
    joined = ",\n".join(runs)
    return f'{{"format": "{FORMAT}", "runs": [\n{joined}\n]}}\n'


def replaced(before: Sequence[Result], new: Result) -> list[Result]:
    """`before` with `new` in the place of what has its name, or at the end."""
    names = [result.name for result in before]
    if new.name not in names:
        return [*before, new]
    return [new if result.name == new.name else result for result in before]


def newest(results: Sequence[Result]) -> list[Result]:
    """The whole runs that still have the newest value of some figure. Of two of one day, the one that stands later counts."""
    kept: list[Result] = []
    seen: set[tuple[str, str]] = set()
    for _, result in sorted(enumerate(results), key=lambda pair: (pair[1].date, pair[0]), reverse=True):
        mine = {(result.bench, figure.name) for figure in result.figures}
        if not result.quick and mine - seen:
            kept.append(result)
            seen |= mine
    return sorted(kept, key=lambda result: (result.bench, result.name, result.date))


def append_history(results: Iterable[Result]) -> None:
    """A line for each, as `--history` of a benchmark writes it."""
    with HISTORY.open("a") as file:
        for result in results:
            told = result.to_json()
            keys = ("bench", "quick", "commit", "date", "machine", "figures")
            file.write(json.dumps({key: told[key] for key in keys}) + "\n")
