"""A whole row on a screen of its own: every value with its name and type, texts unabridged, pictures in coloured blocks."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.dataset.shown import many_lines, one_line, shown
from leptonstore.errors import LeptonError

PICTURE_CELLS = 48  # of the longer edge of a picture


class RowScreen(Screen[int]):
    """Shows row `row` of a dataset; ends with the row that was shown last."""

    BINDINGS: ClassVar = [
        ("escape,q,enter", "back", "Back"),
        ("n,right", "step(1)", "Next row"),
        ("p,left", "step(-1)", "Previous row"),
    ]
    DEFAULT_CSS = "RowScreen VerticalScroll { padding: 0 1; }"

    def __init__(self, ds: Dataset, row: int, sought: str = "") -> None:
        """sought: a text that is marked where it occurs."""
        super().__init__()
        self.ds, self.row, self.sought = ds, row, sought

    def compose(self) -> ComposeResult:
        """The values, and the keys."""
        with VerticalScroll():
            yield Static(id="row")
        yield Footer()

    def on_mount(self) -> None:
        """Read it."""
        self._show()
        self.query_one(VerticalScroll).focus()

    def action_back(self) -> None:
        """To the rows."""
        self.dismiss(self.row)

    def action_step(self, count: int) -> None:
        """Another row."""
        self.row = min(max(self.row + count, 0), len(self.ds) - 1)
        self._show()
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def _show(self) -> None:
        try:
            text = row_text(self.ds, self.row)
            if self.sought:
                text.highlight_words([self.sought], "reverse", case_sensitive=self.sought != self.sought.lower())
        except LeptonError as error:
            text = Text(str(error), "red")
        self.query_one("#row", Static).update(text)


def row_text(ds: Dataset, row: int) -> Text:
    """All of a row. Raises ChunkMissing or ChunkCorrupt."""
    text = Text().append(f"row {row:,} of {len(ds):,}\n", "bold")
    for name, value in ds[row].items():
        field = ds.schema.field(name)
        text.append(f"\n{one_line(name)}", "bold cyan")
        text.append(f"  {semantic_of(field) or field.type}\n", "dim")
        text.append_text(_value(value, field))
        text.append("\n")
    return text


def _value(value: Any, field: pa.Field) -> Text:
    most = limits.BROWSE_TEXT_CHARS_MAX
    if isinstance(value, str):
        told = Text(many_lines(value[:most]))
        if len(value) > most:
            told.append(f"\n… {len(value) - most:,} more characters: lepton get --column {field.name} -o FILE", "dim")
        return told
    if semantic_of(field) == "image" and value is not None:
        size = shown(value, field)
        found = _pixels(value)
        return Text(size) if found is None else _picture(found).append(f"\n{size}", "dim")
    if isinstance(value, np.ndarray):
        return Text(f"{shown(value)}\n{many_lines(np.array2string(value, threshold=100, edgeitems=4))}")
    if value is None or isinstance(value, bytes) or class_names(field) is not None:
        return Text(shown(value, field, limits.BROWSE_CELL_CHARS_MAX))
    said = many_lines(str(value))
    return Text(said if len(said) <= most else f"{said[:most]} …")


def _pixels(value: Any) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """uint8 RGB as large as it is shown; None for what is no picture, and without Pillow."""
    try:
        from leptonstore.process import images

        if isinstance(value, np.ndarray):
            fits = value.dtype == np.uint8 and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3)))
            return images.to_rgb(images.shrink(value, PICTURE_CELLS)) if fits else None
        return images.to_rgb(images.decode_small(value, PICTURE_CELLS))
    except LeptonError:
        return None


def _picture(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Text:
    """Two pixels a cell: the upper one is the colour of a half block, the lower one that of what is behind it."""
    text = Text()
    lines = pixels.tolist()
    for upper, lower in zip(lines[0::2], [*lines[1::2], *([None] if len(lines) % 2 else [])], strict=True):
        for at, (red, green, blue) in enumerate(upper):
            below = f" on rgb({','.join(map(str, lower[at]))})" if lower is not None else ""
            text.append("▀", f"rgb({red},{green},{blue}){below}")
        text.append("\n")
    return text
