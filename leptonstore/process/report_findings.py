"""What the page says of findings: how many of which check, pictures of the worst, groups of rows that are alike, and the list."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from leptonstore import limits
from leptonstore.process import charts
from leptonstore.process.clean import CleanReport
from leptonstore.process.clusters import Cluster, marked
from leptonstore.process.gallery import Sample, said
from leptonstore.process.report_gallery import gallery

MEANINGS = {  # of checks: what it says of a row that it found it
    "nulls": "a column that allows none holds a null",
    "undecodable": "empty, truncated, damaged or no image",
    "constant": "every pixel is the same",
    "labels_out_of_range": "the index belongs to no class",
    "duplicates": "the same as an earlier row of its split",
    "leakage": "the same as a row of another split",
    "near_duplicate_images": "looks like another row",
    "near_duplicate_texts": "reads like another row",
    "label_errors": "a model that did not see the row expects another class",
    "class_balance": "a class with far fewer rows than others",
    "outliers": "far from what the column holds otherwise",
    "image_size": "another size or mode than asked for",
    "image_quality": "dark, bright, blurred, or of an odd shape",
    "rules": "breaks a rule of the dataset",
    "text_length": "too short or too long",
    "text_charset": "characters that were not expected",
    "text_quality": "repeats itself, or is hardly text",
    "text_language": "not the language that was asked for",
    "failed": "an operation raised, and the row was set aside",
}
TABLE_ROWS_MAX = 40


def findings(clean: CleanReport) -> dict[str, Any]:
    """Every check with its count (0 is worth saying), and the first findings one by one."""
    counts = clean.counts()
    listed = clean.findings.slice(0, TABLE_ROWS_MAX).to_pylist()
    peak = max(counts.values(), default=0) or 1
    return {
        "clean": clean,
        "rows_found": len(clean.rows_found()),
        "reasons": [
            {
                "name": named(check),
                "meaning": MEANINGS.get(check, ""),
                "count": counts.get(check, 0),
                "width": round(counts.get(check, 0) / peak * 100, 3),
            }
            for check in dict.fromkeys((*clean.checks, *counts))
        ],
        "listed": [(named(one["check"]), one | {"detail": said(one), "score": _score(one["score"])}) for one in listed],
        "scored": any(one["score"] is not None for one in listed),
        "left_out": len(clean.findings) - len(listed),
    }


def _score(score: float | None) -> str:
    return "" if score is None else charts.short(score)


def finding_galleries(samples: Sequence[Sample], counts: dict[str, int], edge: int) -> list[dict[str, Any]]:
    """A gallery for each check that the samples are about, in their order."""
    return [
        {
            "name": named(check) if check else "",
            **gallery(list(some), limits.REPORT_GALLERY_MAX, edge, counts.get(check, 0)),
        }
        for check, some in groupby(samples, key=lambda one: one.about)
    ]


def clusters(parts: Sequence[Cluster], total: int, edge: int) -> dict[str, Any]:
    """Groups of rows side by side. Texts after the first have marked what the first does not have."""
    shown = []
    for part in parts:
        pictures = gallery(part.samples, limits.REPORT_CLUSTER_ROWS_MAX, edge, part.rows)
        first = part.samples[0].text if part.samples else ""
        if first and part.samples[0].image is None:
            for picture, sample in zip(pictures["pictures"][1:], part.samples[1:], strict=False):
                picture.pieces = _pieces(first, sample.text)
        shown.append({"name": named(part.check), "gallery": pictures, "rows": part.rows})
    return {"shown": shown, "total": max(total, len(parts))}


def _pieces(first: str, other: str) -> list[tuple[charts.LongText, bool]]:
    return [(charts.LongText(text), bool(mark)) for text, mark in marked(first, other)]


def named(check: str) -> str:
    """ "near_duplicate_images" -> "Near duplicate images"."""
    return check.replace("_", " ").capitalize()
