"""All results as one HTML page (complete in itself, in the style of our reports), and the bars of each run as a PNG plot.

Nothing is left out: figures that fall short stand in a section of their own before all others, runs that failed beside them with
what they said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bench.all_bars import (
    AHEAD,
    BEHIND,
    HOLDS,
    SHORT,
    Chart,
    bound_text,
    chart,
    number,
    said_of,
    value_text,
    verdict_of,
)
from bench.all_results import Result
from bench.harness import ROOT, Figure
from leptonstore.limits import REPORT_PASSAGE_CHARS_MAX as LOG_CHARS
from leptonstore.process.charts import LongText, as_ratio
from leptonstore.process.report import environment
from leptonstore.version import __version__

CLASSES = {HOLDS: "holds", SHORT: "short", BEHIND: "behind", AHEAD: "ahead"}
COLOURS = {HOLDS: "#12766d", SHORT: "#b3362b", BEHIND: "#c07a1c", AHEAD: "#9aa0a6"}  # of style.css, on white


def page(results: Sequence[Result]) -> str:
    """The HTML page. The same results give the same bytes. Raises MissingExtra without jinja2 (extra process)."""
    measured = [result for result in results if result.measured]
    failed = [result for result in results if not result.measured]
    runs = [_run(result, f"run-{at}") for at, result in enumerate(measured)]
    figures = [figure for result in measured for figure in result.figures]
    count = [verdict_of(figure) for figure in figures].count
    facts = [
        ("Runs", len(measured)),
        ("Not measured", len(failed)),
        ("Bounds that hold", count(HOLDS)),
        ("Short", count(SHORT)),
        ("Peer better, no bound", count(BEHIND)),
    ]
    made = environment(_template, "the page of the benchmarks", "process")
    return made.get_template("all.html.j2").render(
        facts=facts,
        notes=[*_machines(results), *_small(results)],
        short=[(run, row) for run in runs for row in run["rows"] if row["verdict"] == SHORT],
        failed=[{"name": one.name, "ended": _ended(one), "log": LongText(one.log[-LOG_CHARS:])} for one in failed],
        runs=runs,
        classes=CLASSES,
        version=__version__,
    )


def _template(name: str) -> str:
    if name == "style.css":
        return resources.files("leptonstore.process").joinpath("templates", name).read_text("utf-8")
    return (ROOT / "bench" / "templates" / name).read_text("utf-8")


def _run(result: Result, anchor: str) -> dict[str, Any]:
    return {
        "id": anchor,
        "name": result.name,
        "command": " ".join(["python -m", f"bench.{result.bench}", *result.arguments]),
        "date": result.date,
        "commit": result.commit,
        "seconds": result.seconds,
        "chart": chart(result.figures),
        "rows": [_row(figure) for figure in result.figures],
    }


def _row(figure: Figure) -> dict[str, str]:
    ratio = "" if figure.ratio is None else as_ratio(figure.ratio)
    value = value_text(figure.value, figure.unit)
    return {
        "name": figure.name,
        "measured": f"{value}, {ratio} {figure.peer}" if ratio and figure.holds is False else value,
        "beside": f"{figure.peer} {number(figure.peer_value or 0.0)}" if figure.peer else "",
        "ratio": ratio,
        "wanted": bound_text(figure.bound),
        "verdict": verdict_of(figure),
        "said": said_of(figure),
    }


def _machines(results: Sequence[Result]) -> list[str]:
    """One line for each machine, with the runs it made where there are several."""
    by: dict[str, list[str]] = {}
    for result in results:
        by.setdefault(machine_text(result.machine), []).append(result.name)
    if len(by) == 1:
        return [f"Machine: {next(iter(by))}."]
    return [f"Machine of {', '.join(names)}: {text}." for text, names in by.items()]


def machine_text(machine: dict[str, Any]) -> str:
    """ "Linux x86_64, 2 cores, 23.5 GiB, Python 3.11.7"."""
    return f"{machine['system']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python {machine['python']}"


def _small(results: Sequence[Result]) -> list[str]:
    names = [result.name for result in results if result.quick]
    return [f"Small runs, whose figures promise nothing: {', '.join(names)}."] if names else []


def _ended(result: Result) -> str:
    return "was ended" if result.exit_code is None else f"failed with exit code {result.exit_code}"


# -- plots -------------------------------------------------------------------------------------------------------------


def plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """`folder`/NAME.png of every run with a peer. Raises ImportError without matplotlib (extra dev)."""
    files = []
    for result in results:
        drawn = chart(result.figures)
        if drawn is not None:
            files.append(folder / f"{_stem(result.name)}.png")
            _plot(result, drawn, files[-1])
    return files


def _stem(name: str) -> str:
    """Of a file; a run of a history has its first figure in its name."""
    return re.sub("[^0-9A-Za-z]+", "-", name).strip("-")


def _plot(result: Result, drawn: Chart, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    bars = drawn.bars[::-1]  # the first one on top
    made, axes = pyplot.subplots(figsize=(9, 1.5 + 0.42 * len(bars)), layout="constrained")
    places = range(len(bars))
    axes.barh(places, [bar.times - 1 for bar in bars], left=1, height=0.6, color=[COLOURS[bar.verdict] for bar in bars])
    for at, bar in zip(places, bars, strict=True):
        if bar.times_wanted is not None:
            axes.plot([bar.times_wanted] * 2, [at - 0.42, at + 0.42], color="#1b1f24", linewidth=2)
        marks = {SHORT: "  short", BEHIND: "  peer better"}
        right = bar.times >= 1
        axes.annotate(
            f"{bar.ratio}{marks.get(bar.verdict, '')}", (max(bar.times, 1.0), at), (4, 0), textcoords="offset points",
            va="center", fontsize=8, color=COLOURS[SHORT] if bar.verdict == SHORT else "#1b1f24", clip_on=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8} if right else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.axvline(1, color="#5b636d", linewidth=1)
    axes.set_yticks(places, [f"{bar.name} / {bar.theirs.rsplit(' ', 1)[0]}" for bar in bars], fontsize=8)
    axes.set_xticks([times for _, times in drawn.ticks], [f"{times:g}×" for _, times in drawn.ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(drawn.ticks[0][1], drawn.ticks[-1][1] * 1.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "times better than the peer, logarithmic; labels: the ratio as measured; dark marks: wanted", fontsize=8
    )
    axes.set_title(f"{result.name} ({result.date}, {result.commit})", fontsize=10, loc="left")
    made.savefig(file, dpi=140, metadata={"Software": None})
    pyplot.close(made)
