"""What the page says of columns: a card for each, their correlation, and how they differ from another version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leptonstore import limits
from leptonstore.process import charts
from leptonstore.process.statistics.results import (
    Analysis,
    ColumnAnalysis,
    ColumnDrift,
    Correlation,
    Drift,
    NumberStats,
    TopValues,
)

TOP_MAX = 6  # frequent values of a card
PAIRS_MAX = 8  # strongest correlations that are named
DRIFT_ROWS_MAX = 60  # columns of the table
PSI_FULL = 0.5  # where the bar of a column's drift ends: twice what is much


def column_cards(analysis: Analysis) -> dict[str, Any]:
    """One card per column: what it is, its chart, its figures."""
    shown = analysis.columns[: limits.REPORT_COLUMNS_MAX]
    return {"cards": [_card(column) for column in shown], "left_out": len(analysis.columns) - len(shown)}


def _card(column: ColumnAnalysis) -> dict[str, Any]:
    label = column.semantic == "class_label"
    stats = column.numeric or column.times or column.lengths
    what = "pixel values" if column.image else "lengths" if stats is column.lengths else "values"
    chart, box = None, None
    if column.distinct is not None and label:
        what = "rows per class"
        order = column.distinct[: limits.REPORT_CLASSES_MAX]
        chart = charts.counts_chart([one.rows for one in order], [one.name or str(one.value) for one in order], what)
    elif stats is not None and stats.histogram is not None and stats.min != stats.max:
        ends = (column.least, column.greatest) if stats is column.times else (None, None)
        chart = charts.histogram_chart(stats.histogram, what, *ends)
        box = charts.box_of(stats)
    return {
        "column": column,
        "chart": chart,
        "box": box,
        "what": what,
        "top": _top(column.top, column.rows) if not label and not column.image else [],
        "figures": _figures(column, stats, label),
    }


def _figures(column: ColumnAnalysis, stats: NumberStats | None, label: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if stats is not None and not label and stats is column.times:
        found = [("least", column.least or "–"), ("greatest", column.greatest or "–")]
    elif stats is not None and not label:
        about = "≈ " if stats.rank_error else ""
        median = stats.quantile(0.5)
        length = " length" if stats is column.lengths else ""
        names = ("shortest", "longest") if length else ("min", "max")
        found = [
            (names[0], charts.short(stats.min)),
            (f"median{length}", about + charts.short(median)),
            (f"mean{length}", charts.short(stats.mean)),
            (names[1], charts.short(stats.max)),
        ]
        if not length:
            found.append(("std", charts.short(stats.std)))
        if stats.not_finite:
            found.append(("not finite", charts.whole(stats.not_finite)))
    if column.cardinality is not None and not column.image:
        found.append(("distinct", ("≈ " if column.cardinality.error else "") + charts.whole(column.cardinality.count)))
    elif column.distinct is not None and label:
        found.append(("distinct", charts.whole(len(column.distinct))))
    if column.image:
        found += _image_figures(column)
    share = f" ({charts.as_percent(column.nulls / column.rows)})" if column.nulls and column.rows else ""
    return [*found, ("nulls", charts.whole(column.nulls) + share)]


def _image_figures(column: ColumnAnalysis) -> list[tuple[str, str]]:
    image = column.image
    if image is None:
        return []
    shown = [f"{one.height} × {one.width}" + (" × 3" if one.channels == 3 else "") for one in image.sizes[:1]]
    more = len(image.sizes) - 1
    found = [("size", shown[0] + (f" and {charts.whole(more)} more" if more > 0 else ""))] if shown else []
    if len(image.channel_means) == 3:
        found.append(("mean of R, G, B", ", ".join(f"{mean:.1f}" for mean in image.channel_means)))
    if image.undecodable:
        found.append(("undecodable", charts.whole(image.undecodable)))
    return found


def _top(top: TopValues | None, rows: int) -> list[dict[str, Any]]:
    """The most frequent values with their bars; none where hardly a value occurs twice."""
    if top is None or not top.values or top.values[0].rows < 2 or top.values[0].rows <= rows / 1_000:
        return []
    peak = top.values[0].rows
    return [
        {"value": one.value or "(empty)", "rows": one.rows, "width": round(one.rows / peak * 100, 3)}
        for one in top.values[:TOP_MAX]
    ]


def correlation(found: Correlation) -> dict[str, Any] | None:
    """A matrix of coefficients, by numbers of columns so that it stays narrow, and the strongest pairs. None of less than two columns."""
    names = found.columns[: limits.REPORT_CORRELATION_MAX]
    if len(names) < 2:
        return None
    pairs = [
        (abs(value), found.columns[i], found.columns[j], value)
        for i, row in enumerate(found.values)
        for j, value in enumerate(row[:i])
        if value is not None
    ]
    strongest = sorted(pairs, key=lambda one: -one[0])[:PAIRS_MAX]
    return {
        "names": names,
        "rows": [
            {"name": name, "cells": [_coefficient(value) for value in found.values[i][: len(names)]]}
            for i, name in enumerate(names)
        ],
        "strongest": [(one, other, f"{value:+.2f}") for _, one, other, value in strongest if abs(value) >= 0.1],
        "left_out": len(found.columns) - len(names) + len(found.left_out),
    }


def _coefficient(value: float | None) -> dict[str, Any]:
    """Tinted by strength; below zero in another colour."""
    if value is None:
        return {"text": "–", "strength": 0.0, "below": False}
    return {"text": f"{value:.2f}".replace("-", "−"), "strength": round(abs(value), 3), "below": value < 0}


def drift(found: Drift) -> dict[str, Any]:
    """Columns that drifted first, then the others; columns that came, went, or changed their type."""
    rank = {"much": 0, "some": 1}
    ordered = sorted(found.columns, key=lambda one: rank.get(one.level, 2))
    levels = [one.level for one in found.columns]
    return {
        "other": f"{found.dataset}@{found.ref}",
        "commit": "" if found.commit.startswith(found.ref) else found.commit,
        "rows": found.rows,
        "much": levels.count("much"),
        "some": levels.count("some"),
        "columns": [_drifted(one) for one in ordered[:DRIFT_ROWS_MAX]],
        "left_out": max(0, len(ordered) - DRIFT_ROWS_MAX),
        "added": _names(found.added),
        "removed": _names(found.removed),
        "retyped": [f"{one.name}: {one.before} before, {one.after} now" for one in found.retyped],
    }


def _drifted(one: ColumnDrift) -> dict[str, Any]:
    distance = one.ks if one.ks is not None else one.total_variation
    return {
        "name": one.name,
        "level": one.level,
        "what": one.what,
        "psi": "–" if one.psi is None else f"{one.psi:.3f}",
        "width": 0 if one.psi is None else round(min(one.psi / PSI_FULL, 1) * 100, 3),
        "distance": "–" if distance is None else f"{distance:.3f}",
        "detail": one.detail,
    }


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
