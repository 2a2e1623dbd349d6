"""From the parts of a report to what its page prints: which sections there are, in which order, with which rows.

Values stay numbers as far as the template can format them; this file decides what is shown, and bounds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leptonstore import limits
from leptonstore.errors import listed
from leptonstore.process import charts
from leptonstore.process.gallery import Sample
from leptonstore.process.passages import Passage, leveled
from leptonstore.process.report_columns import column_cards, correlation, drift
from leptonstore.process.report_findings import clusters, finding_galleries, findings
from leptonstore.process.report_gallery import gallery
from leptonstore.process.report_graph import graphs
from leptonstore.process.statistics.results import Analysis, ClassBalance

if TYPE_CHECKING:
    from leptonstore.process.report import EvaluationSection, Report, SizesSection, Version

CONFUSIONS_MAX = 8  # most frequent mistakes that are named
TABLE_ROWS_MAX = 40  # of findings, epochs and lineage entries
LISTED_MAX = 8  # mappings of one list in a lineage: source files, say
STEPS_MAX = 100
PASSAGES_MAX = 12
METRICS_MAX = 8  # columns of the table of epochs


def sections(report: Report, versions: Sequence[Version], edge: int) -> dict[str, Any]:
    """The variables of the template. `edge` bounds thumbnails (pixels). A section without content is None."""

    def pictures(samples: Sequence[Sample], most: int) -> dict[str, Any] | None:
        return gallery(samples, most, edge) if samples else None

    few = limits.REPORT_GALLERY_MAX
    found = {
        "samples": pictures(report.samples, limits.REPORT_SAMPLES_MAX),
        "rows": report.rows,
        "balance": balance(report.analysis) if report.analysis else None,
        "columns": column_cards(report.analysis) if report.analysis else None,
        "correlation": correlation(report.analysis.correlation)
        if report.analysis and report.analysis.correlation
        else None,
        "drift": drift(report.analysis.drift) if report.analysis and report.analysis.drift else None,
        "storage": storage(report.analysis, report.sizes) if report.analysis else None,
        "findings": findings(report.clean) if report.clean else None,
        "clusters": clusters(report.clusters, report.clusters_total, edge) if report.clusters else None,
        "training": training(report.training) if report.training else None,
        "evaluation": evaluation(report.evaluation) if report.evaluation else None,
        "passages": passages(report.passages) if report.passages else None,
        "predictions": pictures(report.predictions, few),
        "steps": steps(report.steps) if report.steps else None,
        "lineage": lineage(versions) if versions else None,
    }
    counts = report.clean.counts() if report.clean else {}
    return found | {
        "head": versions[0] if versions else None,
        "refs": [ref for ref in report.links[0].refs if ref != report.title] if report.links else [],
        "identity": report.dataset.identity if report.dataset is not None else (),
        "facts": facts(report),
        "warnings": warnings(report),
        "finding_pictures": finding_galleries(report.findings, counts, edge),
        "wrong_pictures": pictures(report.evaluation.wrong, few) if report.evaluation else None,
        "published": {link.digest: link.published for link in report.links if link.published},
        "graphs": graphs(report.links, report.links_left_out),
        "present": [name for name, content in found.items() if content],
    }


def facts(report: Report) -> list[tuple[str, str]]:
    """The strip of key figures."""
    shown = list(report.facts)
    if report.analysis:
        sizes = report.analysis.sizes
        shown.append(("Rows", charts.whole(report.analysis.rows)))
        if report.analysis.balance:
            shown.append(("Classes", charts.whole(len(report.analysis.balance[0].names))))
        shown.append(("Logical size", charts.as_bytes(sizes.logical_bytes)))
        shown.append(("Stored", charts.as_bytes(sizes.stored_bytes)))
    if report.clean:
        shown.append(("Rows with findings", charts.whole(len(report.clean.rows_found()))))
    if report.evaluation:
        shown.append(("Accuracy", charts.as_percent(report.evaluation.accuracy)))
    return shown


def warnings(report: Report) -> list[str]:
    """What must not be overlooked: splits that share samples, and a version that drifted."""
    found = report.analysis
    if found is None:
        return []
    told = []
    if found.leakage:
        same = ", ".join(found.leakage.columns)
        for one in found.leakage.leaks:
            counts = charts.whole(one.rows), charts.whole(one.others)
            told.append(f"{counts[0]} rows of {one.first} and {counts[1]} of {one.second} have the same {same}.")
    much = [one.name for one in found.drift.columns if one.level == "much"] if found.drift else []
    if much and found.drift:
        told.append(f"Drifted much since {found.drift.dataset}@{found.drift.ref}: {listed(much)}.")
    return told


def balance(analysis: Analysis) -> dict[str, Any] | None:
    """Rows per class of the first label column: the table with its bars, split by split."""
    if not analysis.balance:
        return None
    first: ClassBalance = analysis.balance[0]
    order = _ranked(first.rows)
    names = [name for name in first.splits if sum(first.splits[name])] or [""]
    parts = [first.splits[name] if name else first.rows for name in names]
    peak, total = max(first.rows, default=0) or 1, sum(first.rows) or 1
    rows = [
        {
            "name": first.names[at],
            "rows": first.rows[at],
            "share": first.rows[at] / total,
            "parts": [part[at] for part in parts],
            "widths": [round(part[at] / peak * 100, 3) for part in parts],
        }
        for at in order
    ]
    filled = [count for count in first.rows if count]
    return {
        "column": first.column,
        "rows": rows,
        "splits": [{"name": name, "tone": tone_of(name, at), "rows": sum(parts[at])} for at, name in enumerate(names)],
        "left_out": len(first.rows) - len(rows),
        "unnamed": first.unnamed,
        "empty": len(first.rows) - len(filled),
        "imbalance": max(filled) / min(filled) if filled else 1.0,
    }


def _ranked(rows: Sequence[int]) -> list[int]:
    """Class indices to show: all in their order, or the largest when they are too many."""
    if len(rows) <= limits.REPORT_CLASSES_MAX:
        return list(range(len(rows)))
    return sorted(range(len(rows)), key=lambda at: (-rows[at], at))[: limits.REPORT_CLASSES_MAX]


def tone_of(split: str, place: int) -> int:
    """Colour of a split: 0 training (or everything), 1 the first held-out one, 2 another."""
    if split.lower() in ("", "train", "training"):
        return 0
    return min(max(place, 1), 2)


def storage(analysis: Analysis, sizes: SizesSection | None) -> dict[str, Any]:
    """Three bars: plain, after deduplication, as stored. With `sizes` what columns take, and what is shared with another version."""
    found = analysis.sizes
    peak = max(found.logical_bytes, found.unique_bytes, found.stored_bytes, 1)
    bars = [
        ("Logical", found.logical_bytes, "all values, plain"),
        ("Unique", found.unique_bytes, _saved("after deduplication", found.dedup_ratio, "nothing repeats")),
        ("Stored", found.stored_bytes, _saved("after compression", found.compression_ratio, "with metadata")),
    ]
    return {
        "headline": _saved("", found.total_ratio, "No smaller"),
        "bars": [{"name": name, "bytes": n, "note": note, "width": round(n / peak * 100, 3)} for name, n, note in bars],
        "shared": _shared(sizes) if sizes and sizes.other else None,
        **(_column_sizes(sizes) if sizes else {"columns": [], "left_out": 0}),
    }


def _shared(sizes: SizesSection) -> dict[str, Any]:
    """How much of the stored bytes another version has, too."""
    stored, own = sizes.stored_bytes, sizes.own_bytes
    return {
        "other": sizes.other,
        "shared": stored - own,
        "own": own,
        "share": (stored - own) / stored if stored else 0.0,
        "width": round((stored - own) / max(stored, 1) * 100, 3),
    }


def _column_sizes(sizes: SizesSection) -> dict[str, Any]:
    """Columns by what they take, the largest first."""
    ordered = sorted(sizes.columns.items(), key=lambda one: -one[1]["stored_bytes"])
    peak = max((one["stored_bytes"] for _, one in ordered), default=0) or 1
    shown = [
        {
            "name": name,
            "logical": one["logical_bytes"],
            "stored": one["stored_bytes"],
            "chunks": one["chunks"],
            "width": round(one["stored_bytes"] / peak * 100, 3),
        }
        for name, one in ordered[:TABLE_ROWS_MAX]
    ]
    return {"columns": shown, "left_out": len(ordered) - len(shown)}


def _saved(after: str, ratio: float, otherwise: str) -> str:
    """What a step saved, in words; `otherwise` when that is less than half a percent."""
    if ratio < 1.005:
        return otherwise
    return f"{after}, {charts.as_ratio(ratio)} smaller" if after else f"{charts.as_ratio(ratio)} smaller"


def training(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Curves, and a table of all numeric metrics (the last rows when there are many)."""
    names = dict.fromkeys(key for row in rows for key in row)
    metrics = [name for name in names if any(charts.is_number(row.get(name)) for row in rows)][:METRICS_MAX]
    last = rows[-TABLE_ROWS_MAX:]
    table = list(zip(*(_metric(name, [row.get(name) for row in last]) for name in metrics), strict=True))
    return {
        "charts": charts.line_charts(rows),
        "metrics": [name.replace("_", " ") for name in metrics],
        "table": table,
        "left_out": len(rows) - len(last),
    }


def _metric(name: str, values: Sequence[object]) -> list[str]:
    """One column of the table: shares as percentages, whole numbers as such, others with equal decimals."""
    shown = [float(value) if charts.is_number(value) else None for value in values]  # type: ignore[arg-type]
    numbers = [number for number in shown if number is not None]
    if name.endswith("accuracy") and all(0 <= number <= 1 for number in numbers):
        return ["–" if number is None else charts.as_percent(number) for number in shown]
    whole = all(number == int(number) for number in numbers)
    decimals = 0 if whole else charts.decimals_for(max(abs(number) for number in numbers))
    return ["–" if number is None else f"{number:,.{decimals}f}" for number in shown]


def evaluation(part: EvaluationSection) -> dict[str, Any]:
    """Per-class accuracy, the confusion matrix (when it is small enough to read) and the most frequent mistakes."""
    if part.confusion is None:
        assert part.counts is not None  # report.render has checked it
        totals, right = np.asarray(part.counts, dtype=np.int64)
        table = np.zeros((0, 0), np.int64)
    else:
        table = np.asarray(part.confusion, dtype=np.int64)
        totals, right = table.sum(axis=1), np.diagonal(table)
    mistakes = table * (1 - np.eye(len(table), dtype=np.int64))
    shares = table / np.maximum(totals[: len(table)], 1)[:, None]
    worst_share = float((shares * (mistakes > 0)).max(initial=0.0)) or 1.0
    # Right answers are tinted by their share, mistakes by theirs of the worst; the root keeps single ones visible.
    strength = np.where(mistakes > 0, np.sqrt(shares / worst_share), shares)
    worst = [at for at in np.argsort(-mistakes, axis=None, kind="stable")[:CONFUSIONS_MAX] if mistakes.flat[at]]
    names = list(part.class_names)
    seen = [at for at in range(len(names)) if totals[at]]
    if len(seen) > limits.REPORT_CLASSES_MAX:  # then the worst classes are the interesting ones
        seen = sorted(seen, key=lambda at: (right[at] / totals[at], at))[: limits.REPORT_CLASSES_MAX]
    peak = max((float((totals[at] - right[at]) / totals[at]) for at in seen), default=0.0) or 1.0
    return {
        "part": part,
        "rows": int(totals.sum()),
        "errors": int(totals.sum() - right.sum()),
        "names": names,
        "matrix": [
            {"name": names[at], "cells": list(zip(table[at].tolist(), strength[at].round(3).tolist(), strict=True))}
            for at in range(len(names))
        ]
        if len(table) and len(names) <= limits.REPORT_CLASSES_MAX
        else None,
        "classes": [
            {
                "name": names[at],
                "accuracy": right[at] / totals[at],
                "right": int(right[at]),
                "rows": int(totals[at]),
                "error_width": round(float((totals[at] - right[at]) / totals[at] / peak) * 100, 3),
            }
            for at in seen
        ],
        "classes_left_out": int((totals > 0).sum()) - len(seen),
        "confusions": [
            (names[at // len(names)], names[at % len(names)], int(mistakes.flat[at])) for at in map(int, worst)
        ],
    }


def passages(parts: Sequence[Passage]) -> dict[str, Any]:
    """At most PASSAGES_MAX passages, and how many there were. A piece is cut where a text of the page is."""
    most = limits.REPORT_TEXT_CHARS_MAX
    shown = [
        {
            "label": part.label,
            "caption": part.caption,
            "pieces": [
                (text[at : at + most], level)
                for text, level in leveled(part.pieces)
                for at in range(0, len(text), most)
            ],
        }
        for part in parts[:PASSAGES_MAX]
    ]
    return {"shown": shown, "total": len(parts)}


def steps(parts: Sequence[tuple[str, float, str]]) -> dict[str, Any]:
    """Steps with bars whose length is their share of the longest."""
    longest = max((seconds for _, seconds, _ in parts), default=0.0) or 1.0
    rows = [
        {"name": name, "seconds": seconds, "summary": summary, "width": round(seconds / longest * 100, 3)}
        for name, seconds, summary in parts[:STEPS_MAX]
    ]
    return {"rows": rows, "total": sum(seconds for _, seconds, _ in parts), "left_out": len(parts) - len(rows)}


def lineage(versions: Sequence[Version]) -> list[dict[str, Any]]:
    """Commits, newest first, with their lineage as flat (key, value) rows."""
    return [{"version": version, "entries": list(_flat(version.lineage))[:TABLE_ROWS_MAX]} for version in versions]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings, and the first of lists of mappings, as dotted keys; other lists stay whole."""
    rows: list[tuple[str, Any]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            rows += _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
            for place, one in enumerate(inner[:LISTED_MAX], 1):
                rows += _line(one, f"{prefix}{key} {place}") or _flat(one, f"{prefix}{key} {place}.")
            if len(inner) > LISTED_MAX:
                rows.append((f"{prefix}{key}", f"and {charts.whole(len(inner) - LISTED_MAX)} more"))
        else:
            rows.append((prefix + str(key), inner))
    return rows


def _line(one: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """A source file, an operation or a count of rows in one row; none of what has more to say."""
    if isinstance(one.get("name"), str) and isinstance(one.get("bytes"), int):
        digest = f", {one['digest'][:12]}" if isinstance(one.get("digest"), str) else ""
        return [(key, f"{one['name']}, {charts.as_bytes(one['bytes'])}{digest}")]
    if not isinstance(one.get("operation"), str):
        return []
    plain = {name: value for name, value in one.items() if name != "operation" and not isinstance(value, Mapping)}
    said = [f"{name.replace('_', ' ')} {_short(value)}" for name, value in plain.items() if value not in (None, "", [])]
    return [(key, ", ".join([one["operation"], *said]))]


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
