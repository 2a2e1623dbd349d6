"""Samples as the page shows them: thumbnails within a bound, texts, and what a screen reader says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leptonstore.process import charts
from leptonstore.process.gallery import Sample, thumbnail

SHORT_LABEL_CHARS_MAX = 6  # labels of a narrow gallery; longer ones get wider pictures


@dataclass
class Picture:
    """One figure of a gallery. pieces: its text, with whether each is marked."""

    uri: charts.Drawn
    width: int
    height: int
    tiny: bool
    label: str
    caption: str
    row: int | None
    wrong: bool
    alt: str
    pieces: Sequence[tuple[charts.LongText, bool]] = field(default=())


def gallery(samples: Sequence[Sample], most: int, edge: int, total: int = 0) -> dict[str, Any]:
    """At most `most` pictures of `edge` pixels, and how many there were (`total`, where that is more than was picked)."""
    pictures = []
    for sample in samples[:most]:
        small = thumbnail(sample.image, edge)
        where = f"row {sample.row}" if sample.row is not None else "picture"
        alt = ", ".join(part for part in (where, sample.label, sample.caption) if part)
        pieces = [(charts.LongText(sample.text), False)] if sample.text else []
        pictures.append(
            Picture(
                charts.Drawn(small.uri), small.width, small.height, small.tiny,
                sample.label, sample.caption, sample.row, sample.wrong, alt, pieces,
            )
        )  # fmt: skip
    wordy = any(sample.caption or len(sample.label) > SHORT_LABEL_CHARS_MAX for sample in samples)
    texts = any(sample.text and sample.image is None for sample in samples)
    return {"pictures": pictures, "total": max(total, len(samples)), "wordy": wordy, "texts": texts}
