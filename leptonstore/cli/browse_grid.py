"""The rows of a dataset as lines of a terminal: a widget that asks for what it shows, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa
from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from leptonstore import limits
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.dataset.shown import one_line
from leptonstore.dataset.window import RowWindow

GAP = 2  # blanks between columns
WIDTH_MAX = 40  # of a column; the longest text takes what is left of the line
WHEEL_ROWS = 3


class RowGrid(Widget, can_focus=True):
    """A line of names, then one line for each row. `top` is the first row shown, `cursor` the chosen one, `left` the first column.

    Not read yet: "…". The application reads what `wanted` says when it hears of `Moved`, and calls `refresh`.
    """

    COMPONENT_CLASSES: ClassVar = {"grid--head", "grid--cursor", "grid--soft", "grid--number"}
    DEFAULT_CSS = """
    RowGrid { height: 1fr; }
    RowGrid > .grid--head { text-style: bold; color: $text-accent; }
    RowGrid > .grid--cursor { background: $block-cursor-background; color: $block-cursor-foreground; }
    RowGrid > .grid--soft { color: $text-muted; }
    RowGrid > .grid--number { color: $text-muted; }
    """

    class Moved(Message):
        """Other rows or columns are shown, or another one is chosen."""

    def __init__(self, window: RowWindow, columns: Sequence[int], row: int = 0) -> None:
        super().__init__()
        self.window = window
        self.columns = list(columns)
        self.rows = len(window.ds)
        self.cursor = row
        self.top = row
        self.left = 0
        self._widths = [_first_width(window.fields[column]) for column in self.columns]

    # -- moving --------------------------------------------------------------------------------------------------------

    @property
    def lines(self) -> int:
        """Rows that fit."""
        return max(1, self.size.height - 1)

    def move_to(self, row: int) -> None:
        """Choose a row, and show it."""
        self.cursor = min(max(row, 0), max(self.rows - 1, 0))
        if not self.top <= self.cursor < self.top + self.lines:
            near = abs(self.cursor - self.top) < 2 * self.lines
            below = self.cursor >= self.top
            # A step keeps the screen where it is; a jump puts the row into the middle.
            self.top = self.cursor - (self.lines - 1 if below else 0) if near else self.cursor - self.lines // 2
        self._show()

    def scroll_rows(self, count: int) -> None:
        """Move the screen; the chosen row stays on it."""
        self.top += count
        self._bound()
        self.cursor = min(max(self.cursor, self.top), max(self.top, min(self.top + self.lines, self.rows) - 1))
        self._show()

    def move_columns(self, count: int) -> None:
        """Show other columns."""
        self.left = min(max(self.left + count, 0), max(len(self.columns) - 1, 0))
        self._show()

    def _bound(self) -> None:
        self.top = min(max(self.top, 0), max(self.rows - self.lines, 0))

    def _show(self) -> None:
        self._bound()
        self.refresh()
        self.post_message(self.Moved())

    def on_resize(self) -> None:
        """More or fewer rows fit."""
        self.move_to(self.cursor)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel."""
        self.scroll_rows(WHEEL_ROWS)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel."""
        self.scroll_rows(-WHEEL_ROWS)

    def on_click(self, event: events.Click) -> None:
        """Choose the row that was clicked."""
        if event.y >= 1 and self.top + event.y - 1 < self.rows:
            self.move_to(self.top + event.y - 1)

    # -- drawing -------------------------------------------------------------------------------------------------------

    def wanted(self) -> list[tuple[int, int]]:
        """(block, column) of what is shown and has not been read."""
        shown = [self.columns[at] for at, _ in self._placed()]
        return self.window.missing(self.top, self.top + self.lines, shown)

    def _placed(self) -> list[tuple[int, int]]:
        """(place in `columns`, width) of the columns that fit, the last one cut; a text takes what is left when all fit."""
        self._grow()
        room = self.size.width - self._number_width() - GAP
        placed: list[tuple[int, int]] = []
        for at in range(self.left, len(self.columns)):
            if room <= 0:
                break
            width = min(self._widths[at], WIDTH_MAX)
            placed.append((at, min(width, room)))
            room -= width + GAP
        spare = room + GAP
        texts = [place for place, (at, _) in enumerate(placed) if self._widths[at] > WIDTH_MAX]
        if spare > 0 and texts:
            at, width = placed[texts[0]]
            placed[texts[0]] = at, min(self._widths[at], width + spare)
        return placed

    def _grow(self) -> None:
        """Columns are as wide as the widest cell that was shown: they do not jump about while one scrolls."""
        for at, column in enumerate(self.columns):
            for row in range(self.top, min(self.top + self.lines, self.rows)):
                cell = self.window.cell(row, column)
                if cell is not None and len(cell) > self._widths[at] // 2:
                    self._widths[at] = max(self._widths[at], cell_len(cell))

    def _number_width(self) -> int:
        return len(f"{max(self.rows - 1, 0):,}")

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width = self.size.width
        if y == 0:
            head = self.get_component_rich_style("grid--head")
            return self._line(None, head).adjust_cell_length(width, head)
        row = self.top + y - 1
        if row >= self.rows:
            empty = "no rows" if self.rows == 0 and y == 1 else ""
            return Strip([Segment(empty, self.get_component_rich_style("grid--soft"))]).adjust_cell_length(width)
        chosen = row == self.cursor
        style = self.get_component_rich_style("grid--cursor") if chosen else self.rich_style
        return self._line(row, style).adjust_cell_length(width, style)

    def _line(self, row: int | None, style: Style) -> Strip:
        number = "" if row is None else f"{row:,}"
        soft = style if row is None or row == self.cursor else self.get_component_rich_style("grid--number")
        parts = [Segment(number.rjust(self._number_width()) + " " * GAP, soft)]
        for at, width in self._placed():
            field = self.window.fields[self.columns[at]]
            cell = one_line(field.name) if row is None else self.window.cell(row, self.columns[at])
            parts.append(
                Segment(_fitted(cell if cell is not None else "…", width, _is_number(field)) + " " * GAP, style)
            )
        return Strip(parts)


def _fitted(text: str, width: int, right: bool) -> str:
    """Exactly `width` cells of a terminal (some characters take two)."""
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    return " " * (width - size) + text if right else text + " " * (width - size)


def _is_number(field: pa.Field) -> bool:
    number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    return bool(number and class_names(field) is None)


def _first_width(field: pa.Field) -> int:
    """Until something of the column was read."""
    kinds = pa.types
    if kinds.is_string(field.type) or kinds.is_large_string(field.type):
        width = WIDTH_MAX if semantic_of(field) == "text" else 12
    else:
        width = 6
    return max(width, min(cell_len(one_line(field.name)), limits.BROWSE_CELL_CHARS_MAX))
