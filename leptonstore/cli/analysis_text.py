"""An analysis as text: one line for each column, then what else there is to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leptonstore.cli.runtime import human_bytes
from leptonstore.dataset.shown import one_line
from leptonstore.process.charts import short
from leptonstore.process.statistics.results import Analysis, ColumnAnalysis, Drift, Histogram, NumberStats

BLOCKS = " ▁▂▃▄▅▆▇█"
PIPED_CHARS = 160  # of a line that no terminal shows
BARS = 16  # characters of a histogram
CORRELATED_FROM = 0.5  # pairs that are told
CORRELATIONS = 8
TOP = 3
TEXT_CHARS = 24
CLASSES = 8
_STYLES = {"much": "bold red", "some": "yellow"}


def print_analysis(found: Analysis, label: str) -> None:
    """On stdout."""
    console = Console(highlight=False)
    if console.is_terminal:
        _print(console, found, label)
        return
    console = Console(highlight=False, width=PIPED_CHARS)
    with console.capture() as text:
        _print(console, found, label)
    for line in text.get().splitlines():
        click.echo(line.rstrip())


def _print(console: Console, found: Analysis, label: str) -> None:
    sizes = found.sizes
    console.print(Text(f"{label}  {found.commit[:12]}  {found.rows:,} rows", style="bold"))
    console.print(
        f"{human_bytes(sizes.logical_bytes)}, {human_bytes(sizes.stored_bytes)} stored ({sizes.total_ratio:.1f}x)"
    )
    marks = {} if found.drift is None else {one.name: one.level for one in found.drift.columns}
    console.print(_table(found, marks))
    for line in (*_balance(found), *_correlation(found), *_leakage(found), *_drift(found.drift)):
        console.print(line)


def _table(found: Analysis, marks: dict[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("column", no_wrap=True, overflow="ellipsis", max_width=TEXT_CHARS)
    table.add_column("type", no_wrap=True, overflow="ellipsis", max_width=TEXT_CHARS)
    table.add_column("histogram", no_wrap=True, min_width=BARS)
    table.add_column("values", overflow="fold")
    if marks:
        table.add_column("drift", no_wrap=True)
    for column in found.columns:
        cells = [
            Text(one_line(column.name), style="bold"),
            Text(column.semantic or column.type),
            Text(_drawn(column), style="cyan"),
            Text("; ".join(told(column))),
        ]
        if marks:
            level = marks.get(column.name, "new")
            cells.append(Text("" if level == "none" else level, style=_STYLES.get(level, "")))
        table.add_row(*cells)
    return table


def _drawn(column: ColumnAnalysis) -> str:
    stats = column.numeric or column.times or column.lengths
    return "" if stats is None or stats.histogram is None else bars(stats.histogram)


def told(column: ColumnAnalysis) -> list[str]:
    """What there is to say of a column, the most important first."""
    said: list[str] = []
    if column.least is not None and column.greatest is not None:
        said.append(f"{_cut(column.least)} to {_cut(column.greatest)}")
    said += [_frequent(column), _figures(column), *_pictures(column)]
    if column.nulls:
        said.append(f"{column.nulls:,} nulls ({column.nulls / column.rows:.1%})")
    if column.numeric is not None and column.numeric.not_finite:
        said.append(f"{column.numeric.not_finite:,} not finite")
    if column.cardinality is not None:
        said.append(f"{'about ' if column.cardinality.error else ''}{column.cardinality.count:,} different")
    return [part for part in said if part]


def _figures(column: ColumnAnalysis) -> str:
    """Range, median, mean and deviation of numbers; those of lengths of what has lengths."""
    stats: NumberStats | None = column.numeric or column.lengths
    if stats is None or not stats.count or column.semantic == "class_label" or column.type == "bool":
        return ""
    figures = f"{short(stats.min)} to {short(stats.max)}, median {short(stats.quantile(0.5))}"
    figures += f", mean {short(stats.mean)} ± {short(stats.std)}"
    if column.numeric is None:
        return f"{'elements' if column.top is None else 'bytes'} {figures}"
    if column.lengths is not None and column.image is None:  # a list
        figures += (
            f"; {short(column.lengths.min)} to {short(column.lengths.max)} elements, mean {short(column.lengths.mean)}"
        )
    return figures


def _frequent(column: ColumnAnalysis) -> str:
    """The most frequent values of what is no measure."""
    measured = column.numeric is not None and column.semantic != "class_label" and column.type != "bool"
    if column.top is None or not column.top.values or measured or column.top.values[0].rows < 2:
        return ""
    rows = max(column.rows - column.nulls, 1)
    return ", ".join(f"{_cut(one.value)} {one.rows / rows:.1%}" for one in column.top.values[:TOP])


def _pictures(column: ColumnAnalysis) -> list[str]:
    if column.image is None:
        return []
    sizes = column.image.sizes
    shown = ", ".join(f"{one.height} x {one.width} x {one.channels}" for one in sizes[:TOP])
    more = f" and {len(sizes) - TOP:,} more sizes" if len(sizes) > TOP else ""
    means = ", ".join(f"{one:.1f}" for one in column.image.channel_means)
    undecodable = [f"{column.image.undecodable:,} undecodable"] if column.image.undecodable else []
    return [shown + more, f"channel means {means}" if means else "", *undecodable]


def bars(histogram: Histogram) -> str:
    """BARS characters, as high as the bins are full; a bin with a value in it is never empty."""
    step = len(histogram.counts) // BARS
    counts = [sum(histogram.counts[at : at + step]) for at in range(0, len(histogram.counts), step)]
    most = max(counts, default=0) or 1
    return "".join(BLOCKS[math.ceil(count / most * (len(BLOCKS) - 1))] for count in counts)


def _cut(text: str) -> str:
    line = one_line(text) or '""'
    return line if len(line) <= TEXT_CHARS else f"{line[: TEXT_CHARS - 1]}…"


def _balance(found: Analysis) -> Iterator[Text]:
    for balance in found.balance:
        total = sum(balance.rows) or 1
        order = sorted(range(len(balance.names)), key=lambda at: (-balance.rows[at], at))
        shown = ", ".join(f"{_cut(balance.names[at])} {balance.rows[at] / total:.1%}" for at in order[:CLASSES])
        more = f" and {len(order) - CLASSES:,} more classes" if len(order) > CLASSES else ""
        unnamed = f"; {balance.unnamed:,} rows have no class" if balance.unnamed else ""
        yield Text(f"classes of {one_line(balance.column)}: {shown}{more}{unnamed}")
    if found.splits:
        yield Text("splits: " + ", ".join(f"{one_line(name)} {rows:,}" for name, rows in found.splits.items()))


def _correlation(found: Analysis) -> Iterator[Text]:
    if found.correlation is None:
        return
    names, table = found.correlation.columns, found.correlation.values
    pairs = [
        (abs(r), r, names[i], names[j])
        for i in range(len(names))
        for j in range(i)
        if (r := table[i][j]) is not None and abs(r) >= CORRELATED_FROM
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[2:]))
    for _, r, one, other in pairs[:CORRELATIONS]:
        yield Text(f"correlated: {one_line(other)} and {one_line(one)} {r:+.3f}")
    if len(pairs) > CORRELATIONS:
        yield Text(f"and {len(pairs) - CORRELATIONS:,} more pairs with {CORRELATED_FROM} and more (--json tells all)")


def _leakage(found: Analysis) -> Iterator[Text]:
    if found.leakage is None:
        return
    names = ", ".join(one_line(name) for name in found.leakage.columns)
    for leak in found.leakage.leaks:
        said = f"leakage: {leak.rows:,} rows of {leak.first or 'no split'} equal {leak.others:,} of {leak.second or 'no split'} in {names}"
        yield Text(said, style="bold red")


def _drift(drift: Drift | None) -> Iterator[Text]:
    if drift is None:
        return
    against = f"{drift.dataset}@{drift.ref} ({drift.commit[:12]}, {drift.rows:,} rows)"
    marked = drift.marked()
    changes = _changes("new column", drift.added) + _changes("removed column", drift.removed)
    changes += [f"{one_line(one.name)} is {one.after}, was {one.before}" for one in drift.retyped]
    if not marked and not changes:
        yield Text(f"drift against {against}: none")
        return
    yield Text(f"drift against {against}:")
    for one in marked:
        figures = [
            f"PSI {one.psi:.3f}" if one.psi is not None else "",
            f"KS {one.ks:.3f}" if one.ks is not None else "",
        ]
        figures.append(f"TV {one.total_variation:.3f}" if one.total_variation is not None else "")
        of = f" ({one.what})" if one.what else ""
        said = ", ".join(part for part in (*figures, one_line(one.detail)) if part)
        yield Text(f"  {one.level:<4} {one_line(one.name)}{of}: {said}", style=_STYLES[one.level])
    for change in changes:
        yield Text(f"  {change}")


def _changes(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what} {one_line(name)}" for name in names]
