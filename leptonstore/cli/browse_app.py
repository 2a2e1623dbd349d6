"""The screen of `lepton browse`: rows, a line that says where one is, a prompt for searching and jumping."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.widgets import Footer, Input, Static

from leptonstore.cli.browse_grid import RowGrid
from leptonstore.cli.browse_row import RowScreen
from leptonstore.dataset import Dataset
from leptonstore.dataset.window import RowWindow
from leptonstore.errors import LeptonError


class Browser(App[None]):
    """One dataset. Rows are read by a worker thread, searches by another; the screen never waits for either."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title { height: 1; background: $panel; padding: 0 1; }
    #status { height: 1; background: $panel; padding: 0 1; }
    #prompt { height: 1; border: none; padding: 0 1; display: none; }
    #prompt.asked { display: block; }
    """
    BINDINGS: ClassVar = [
        Binding("q", "quit", "Quit"),
        Binding("slash", "ask('/')", "Search", key_display="/"),
        Binding("n", "again(1)", "Next"),
        Binding("N", "again(-1)", "Previous", show=False),
        Binding("g,colon", "ask(':')", "Go to row", key_display="g"),
        Binding("enter", "open", "Whole row"),
        Binding("escape", "stop", "Stop", show=False),
        Binding("down,j", "rows(1)", "Down", show=False),
        Binding("up,k", "rows(-1)", "Up", show=False),
        Binding("pagedown,space,f", "pages(1)", "Page down", show=False),
        Binding("pageup,b", "pages(-1)", "Page up", show=False),
        Binding("home", "to(0)", "First", show=False),
        Binding("end,G", "to(-1)", "Last", show=False),
        Binding("left,h", "columns(-1)", "Columns", key_display="← →"),
        Binding("right,l", "columns(1)", "Columns", show=False),
    ]

    def __init__(self, ds: Dataset, row: int = 0, columns: Sequence[str] = ()) -> None:
        super().__init__()
        self.ds = ds
        self.row_window = RowWindow(ds)
        names = ds.column_names
        shown = [names.index(name) for name in columns] or range(len(names))
        self.grid = RowGrid(self.row_window, shown, row)
        self.sought = ""
        self._said = (-1, "")  # the row at which something was told, and what: it stays until another row is chosen
        self._asked = ""
        self._search = threading.Event()  # set: the search that is under way ends

    def compose(self) -> ComposeResult:
        """Title, rows, status, prompt, keys."""
        ds = self.ds
        title = f"{ds.label}  {ds.commit[:12]}  {len(ds):,} rows, {len(ds.column_names)} columns"
        yield Static(Text(title, "bold"), id="title")
        yield self.grid
        yield Static(id="status")
        yield Input(id="prompt")
        yield Footer()

    def on_mount(self) -> None:
        """The rows have the keys."""
        self.grid.focus()

    # -- reading -------------------------------------------------------------------------------------------------------

    def on_row_grid_moved(self) -> None:
        """Say where one is, and have what is shown read."""
        self._tell()
        if self.grid.wanted():
            self._read()

    @work(thread=True, exclusive=True, group="rows")
    def _read(self) -> None:
        """Read what is shown, column by column, and look again: the screen may have moved on, or columns may fit that did not."""
        while self.is_running:
            wanted = self.call_from_thread(self.grid.wanted)
            if not wanted:
                return
            try:
                self.row_window.read(*wanted[0])
            except LeptonError as error:
                self.call_from_thread(self._tell, str(error))
            self.call_from_thread(self.grid.refresh)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of the rows are none of a whole row's."""
        return action == "quit" or not isinstance(self.screen, RowScreen)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def action_rows(self, count: int) -> None:
        """Choose another row."""
        self.grid.move_to(self.grid.cursor + count)

    def action_pages(self, count: int) -> None:
        """A screen further."""
        self.grid.scroll_rows(count * self.grid.lines)
        self.grid.move_to(self.grid.cursor + (count * self.grid.rows if self._at_end(count) else 0))

    def _at_end(self, count: int) -> bool:
        """Whether a screen further is the end: then the last (or first) row is chosen."""
        return self.grid.top + self.grid.lines >= self.grid.rows if count > 0 else self.grid.top == 0

    def action_to(self, row: int) -> None:
        """The first row, or for -1 the last."""
        self.grid.move_to(row if row >= 0 else self.grid.rows + row)

    def action_columns(self, count: int) -> None:
        """Other columns."""
        self.grid.move_columns(count)

    def action_open(self) -> None:
        """The whole row."""
        if self.grid.rows:
            self.push_screen(
                RowScreen(self.ds, self.grid.cursor, self.sought),
                lambda row: self.grid.move_to(row if row is not None else 0),
            )

    def action_ask(self, what: str) -> None:
        """Show the prompt: "/" for a text, ":" for a row number."""
        prompt = self.query_one("#prompt", Input)
        self._asked = what
        prompt.value = ""
        prompt.placeholder = (
            "search for" if what == "/" else f"row, 0 to {max(self.grid.rows - 1, 0):,}; -1 is the last"
        )
        prompt.add_class("asked")
        prompt.focus()

    def action_stop(self) -> None:
        """Leave the prompt, or end a search."""
        self._search.set()
        self._leave()
        self._tell("")

    def _leave(self) -> None:
        self.query_one("#prompt", Input).remove_class("asked")
        self.grid.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Search, or jump."""
        said = event.value.strip()
        self._leave()
        if self._asked == "/":
            self.sought = said or self.sought
            self.action_again(1, here=True)
            return
        try:
            row = int(said.replace(",", "").replace("_", ""))
        except ValueError:
            self._tell(f"{said!r} is no row number" if said else "")
            return
        if not -self.grid.rows <= row < self.grid.rows:
            self._tell(f"there is no row {row:,}: the last one is {self.grid.rows - 1:,}")
            return
        self.grid.move_to(row + self.grid.rows if row < 0 else row)

    # -- searching -----------------------------------------------------------------------------------------------------

    def action_again(self, count: int, here: bool = False) -> None:
        """Look for the text once more, below (1) or above (-1) the chosen row; here: in it, too."""
        if not self.sought:
            self._tell("press / to search")
            return
        self._search.set()  # the one before ends
        self._search = threading.Event()
        start = self.grid.cursor + (0 if here or count < 0 else 1)
        self._find(self.sought, start, count < 0, self._search)

    @work(thread=True, group="search")
    def _find(self, text: str, start: int, backwards: bool, end: threading.Event) -> None:
        def told(row: int) -> bool:
            if end.is_set() or not self.is_running:
                return False
            self.call_from_thread(self._tell, f"searching for {text!r}: row {row:,} (Esc stops)")
            return True

        try:
            found = self.row_window.find(text, start, backwards, told)
        except LeptonError as error:
            self.call_from_thread(self._tell, str(error))
            return
        if end.is_set() or not self.is_running:
            return
        if found is None:
            where = "above" if backwards else "below"
            self.call_from_thread(
                self._tell, f"{text!r} does not occur {where}; {'n' if backwards else 'N'} looks the other way"
            )
        else:
            self.call_from_thread(self.grid.move_to, found)

    def _tell(self, message: str | None = None) -> None:
        """Say where one is, with `message`; None: with what was told last, while that is about this row."""
        grid = self.grid
        if message is not None:
            self._said = (grid.cursor, message)
        row, said = self._said
        message = said if row == grid.cursor else ""
        share = f" ({(grid.cursor + 1) / grid.rows:.0%})" if grid.rows else ""
        where = f"row {grid.cursor:,}{share}" if grid.rows else "no rows"
        hidden = f", column {grid.left + 1} of {len(grid.columns)}" if grid.left else ""
        self.query_one("#status", Static).update(Text(f"{where}{hidden}   {message}"))
