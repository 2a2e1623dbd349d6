"""What a notebook shows of processing: what was found, statistics, pipelines, their plans and results, and reports. Everything is escaped.

Small tables, without scripts; a report is its own page in a frame that may do nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from leptonstore import limits
from leptonstore.dataset.shown import one_line
from leptonstore.process import charts
from leptonstore.process.charts import BarChart, histogram_chart, short, whole
from leptonstore.process.findings import counts
from leptonstore.store.notebook import Markup, html_table

if TYPE_CHECKING:
    from leptonstore.process.clean import CleanReport
    from leptonstore.process.pipeline import Pipeline, Result
    from leptonstore.process.plan import Plan
    from leptonstore.process.report import Report
    from leptonstore.process.statistics.results import Analysis, ColumnAnalysis

FRAME_HEIGHT = 640  # pixels
CHART_WIDTH, CHART_HEIGHT = 120, 28  # pixels
PARAMETERS_CHARS_MAX = 120


def clean_html(report: CleanReport) -> str:
    """How many rows each check found."""
    from leptonstore.process.report_findings import MEANINGS, named

    found = report.counts()
    rows = [
        [named(check), whole(found.get(check, 0)), MEANINGS.get(check, "")]
        for check in dict.fromkeys((*report.checks, *found))
    ]
    told = f"{len(report.rows_found()):,} of {report.rows:,} rows with findings"
    return html_table(
        f"{report.dataset} at {report.commit[:12]}: {told}",
        ["searched for", "found", "meaning"],
        rows[: limits.HTML_LINES_MAX],
    )


def analysis_html(analysis: Analysis) -> str:
    """A line for each column, with its histogram."""
    shown = analysis.columns[: limits.HTML_LINES_MAX]
    head = ["column", "type", "nulls", "min", "median", "mean", "max", "distinct", ""]
    more = len(analysis.columns) - len(shown)
    sizes = analysis.sizes
    caption = (
        f"{analysis.dataset} at {analysis.commit[:12]}: {analysis.rows:,} rows, {charts.as_bytes(sizes.logical_bytes)} "
        f"stored as {charts.as_bytes(sizes.stored_bytes)}"
    )
    notes = [f"and {more:,} more columns"] * bool(more)
    if analysis.drift is not None:
        drifted = ", ".join(f"{one_line(one.name)} ({one.level})" for one in analysis.drift.marked())
        notes.append(f"drift since {analysis.drift.dataset}@{analysis.drift.ref}: {drifted or 'none'}")
    return html_table(caption, head, [_column(one) for one in shown], "; ".join(notes))


def _column(column: ColumnAnalysis) -> list[str]:
    stats = column.numeric or column.lengths
    if column.semantic == "class_label" or stats is None:
        numbers = [column.least or "", "", "", column.greatest or ""]
    else:
        numbers = [short(value) for value in (stats.min, stats.quantile(0.5), stats.mean, stats.max)]
    distinct = ""
    if column.cardinality is not None:
        distinct = ("≈ " if column.cardinality.error else "") + whole(column.cardinality.count)
    kind = f"{column.type}{', ' if column.semantic else ''}{column.semantic.replace('_', ' ')}"
    chart = histogram_chart(stats.histogram, one_line(column.name)) if stats is not None and stats.histogram else None
    return [one_line(column.name), one_line(kind), whole(column.nulls), *numbers, distinct, _svg(chart)]


def _svg(chart: BarChart | None) -> str:
    if chart is None or len(chart.bars) < 2:
        return ""
    bars = "".join(f"<rect x='{one.x}' y='{one.y}' width='{one.width}' height='{one.height}'/>" for one in chart.bars)
    return Markup(
        f"<svg width='{CHART_WIDTH}' height='{CHART_HEIGHT}' viewBox='0 0 {charts.WIDTH} {charts.HEIGHT}' "
        f"preserveAspectRatio='none' role='img' aria-label='{escape(chart.summary)}' fill='currentColor'>{bars}</svg>"
    )


def pipeline_html(pipeline: Pipeline) -> str:
    """What it reads and writes, and its operations."""
    caption = f"Pipeline {pipeline.dataset} → {pipeline.into or pipeline.dataset}"
    rows = [[str(at), one.name, _parameters(one.parameters())] for at, one in enumerate(pipeline.operations, 1)]
    note = "a row that an operation fails on " + ("ends it" if pipeline.on_error == "raise" else "is set aside")
    return html_table(caption, ["", "operation", "parameters"], rows, note)


def plan_html(plan: Plan) -> str:
    """Operations with the columns that each leaves otherwise than it found them, and how many passes over the rows it takes."""
    ends = [one.number for one in plan.passes]
    rows = []
    for at, (operation, before, after) in enumerate(zip(plan.operations, plan.schemas, plan.schemas[1:], strict=False)):
        changed = [
            one_line(f"{one.name}: {one.type}")
            for one in after
            if one.name not in before.names or before.field(one.name) != one
        ]
        gone = [f"without {one_line(name)}" for name in before.names if name not in after.names]
        number = 1 + sum(at > end for end in ends)
        rows.append(
            [str(at + 1), operation.name, _parameters(operation.parameters()), ", ".join(changed + gone), str(number)]
        )
    passes = len(plan.passes) + 1
    caption = f"Plan of {len(plan.operations)} operations over {plan.dataset.label}, {len(plan.dataset):,} rows"
    note = "one pass over the rows" if passes == 1 else f"{passes} passes over the rows"
    return html_table(caption, ["", "operation", "parameters", "columns", "pass"], rows, note)


def result_html(result: Result) -> str:
    """What a run made of how many rows, operation by operation, and what it found."""
    ds = result.dataset
    state = "" if result.written else ", which was there already"
    caption = f"{ds.label} {ds.commit[:12]}{state}: {result.rows_out:,} rows of {result.rows_in:,}"
    rows = [
        [
            str(at),
            str(one.get("operation", "")),
            whole(one.get("in", 0)),
            whole(one.get("out", 0)),
            whole(one.get("failed", 0)),
        ]
        for at, one in enumerate(result.counts, 1)
    ]
    found = ", ".join(f"{rows_:,} {check.replace('_', ' ')}" for check, rows_ in counts(result.findings).items())
    note = f"findings: {found or 'none'}; {result.reused:,} results found again, {result.computed:,} worked out"
    return html_table(caption, ["", "operation", "rows in", "rows out", "failed"], rows, note)


def report_html(report: Report) -> str:
    """The page in a frame: it runs nothing and reaches nothing, and keeps its own colours."""
    from leptonstore.process.report import render

    page = escape(render(report, limits.HTML_REPORT_BYTES_MAX))
    return (
        f"<iframe sandbox title='{escape(one_line(report.title))}' srcdoc=\"{page}\" "
        f"style='width:100%;height:{FRAME_HEIGHT}px;border:1px solid #8888;border-radius:4px'></iframe>"
    )


def _parameters(values: Mapping[str, Any] | Sequence[Any]) -> str:
    text = ", ".join(
        f"{name} {json.dumps(value, ensure_ascii=False, default=str)}"
        for name, value in dict(values).items()
        if value not in (None, "")
    )
    return one_line(text, PARAMETERS_CHARS_MAX)
