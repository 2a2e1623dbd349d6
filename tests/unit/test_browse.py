"""`lepton browse`: what is on the screen, by its keys, of datasets of any size; and only that is read."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import select
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field, image_field, text_field
from leptonstore.dataset.window import RowWindow
from leptonstore.store import Store

pytest.importorskip("textual", reason="textual is not installed (extra browse)")

from textual.widgets import Input, Static

from leptonstore.cli.browse_app import Browser
from leptonstore.cli.browse_row import RowScreen

SIZE = (100, 24)


def written(store: Store, name: str, table: pa.Table, identity: str) -> Dataset:
    batches = table.combine_chunks().to_batches()
    write_dataset(store, name, Source(table.schema, (identity,), lambda: iter(batches), len(table)))
    return Dataset.open(store, name)


def texts(store: Store, rows: int = 5_000) -> Dataset:
    """Short texts with a number, a label and a long text every hundred rows."""
    said = [f"text {at} of many" for at in range(rows)]
    said[::100] = [f"long {at} " + "words and words " * 3_000 for at in range(0, rows, 100)]
    labels = class_label_field("label", ["cat", "dog"])
    schema = pa.schema([pa.field("id", pa.int64(), False), text_field("said"), labels, pa.field("score", pa.float64())])
    columns = [range(rows), said, pa.array(np.arange(rows) % 2, pa.uint8()), np.arange(rows) / 7]
    return written(store, "texts", pa.table(columns, schema=schema), "id")


def lines(app: Browser) -> list[str]:
    """What the rows' part of the screen says."""
    return [app.grid.render_line(y).text.rstrip() for y in range(app.grid.size.height)]


def status(app: Browser) -> str:
    return str(app.query_one("#status", Static).render())


def browsed(app: Browser, use: Callable[[Any], Awaitable[None]]) -> None:
    async def run() -> None:
        async with app.run_test(size=SIZE) as pilot:
            await settled(pilot)
            await use(pilot)

    asyncio.run(run())


async def settled(pilot: Any) -> None:
    """Until everything that was asked for has been read."""
    await pilot.pause()
    while any(worker.is_running or worker.state.name == "PENDING" for worker in pilot.app.workers):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()
    await pilot.pause()


async def press(pilot: Any, *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot)


def test_rows_are_lines_and_keys_move(store: Store) -> None:
    ds = texts(store)

    async def use(pilot: Any) -> None:
        app = pilot.app
        shown = lines(app)
        assert shown[0].split() == ["id", "said", "label", "score"]
        assert shown[2].split() == ["1", "1", "text", "1", "of", "many", "1", "dog", "0.142857"]
        assert "…" not in "".join(shown[2:])
        await press(pilot, "down", "down", "j", "up")
        assert app.grid.cursor == 2 and status(app).startswith("row 2 (0%)")
        await press(pilot, "pagedown")
        assert app.grid.top == app.grid.lines and lines(app)[1].split()[0] == str(app.grid.lines)
        await press(pilot, "end")
        assert app.grid.cursor == 4_999 and lines(app)[-1].split()[1] == "4999" and "100%" in status(app)
        await press(pilot, "pagedown", "down")
        assert app.grid.cursor == 4_999
        await press(pilot, "home")
        assert app.grid.cursor == app.grid.top == 0

    browsed(Browser(ds), use)


def test_a_jump_and_what_is_no_row(store: Store) -> None:
    async def use(pilot: Any) -> None:
        app = pilot.app
        await press(pilot, "g", *"3,210", "enter")
        assert app.grid.cursor == 3_210 and any("text 3210" in line for line in lines(app))
        await press(pilot, "colon", *"-1", "enter")
        assert app.grid.cursor == 4_999
        for said, told in (("5000", "there is no row 5,000"), ("x", "no row number")):
            await press(pilot, "g", *said, "enter")
            assert told in status(app) and app.grid.cursor == 4_999
        await press(pilot, "g", *"7", "escape")
        assert app.grid.cursor == 4_999 and not app.query_one("#prompt", Input).has_class("asked")

    browsed(Browser(texts(store)), use)


def test_a_search_goes_on_and_back_and_says_when_there_is_nothing(store: Store) -> None:
    async def use(pilot: Any) -> None:
        app = pilot.app
        await press(pilot, "slash", *"TEXT 77", "enter")
        assert "does not occur below" in status(app), "a capital counts"
        await press(pilot, "slash", *"text 77", "enter")
        assert app.grid.cursor == 77
        for key, row in (("n", 770), ("n", 771), ("N", 770), ("N", 77)):
            await press(pilot, key)
            assert app.grid.cursor == row
        await press(pilot, "N")
        assert app.grid.cursor == 77 and "does not occur above" in status(app)
        await press(pilot, "home", "slash", *"dog", "enter")
        assert app.grid.cursor == 1, "labels are found by their names"
        await press(pilot, "slash", *"714.14", "enter")
        assert app.grid.cursor == 4_999, "numbers as they are written"

    browsed(Browser(texts(store)), use)


def test_a_whole_row_with_all_of_its_text(store: Store) -> None:
    ds = texts(store)

    async def use(pilot: Any) -> None:
        app = pilot.app
        await press(pilot, "g", *"200", "enter")
        await press(pilot, "enter")
        assert isinstance(app.screen, RowScreen)
        whole = str(app.screen.query_one("#row", Static).render())
        assert ds[200]["said"] in whole and "row 200 of 5,000" in whole and "0 cat" in whole
        await press(pilot, "n", "slash")  # the prompt belongs to the rows
        assert "text 201 of many" in str(app.screen.query_one("#row", Static).render())
        await press(pilot, "escape")
        assert not isinstance(app.screen, RowScreen) and app.grid.cursor == 201

    browsed(Browser(ds), use)


def test_only_what_is_on_the_screen_is_read(store: Store) -> None:
    """Of two million rows and thirty columns: at the start, at the end, and in the middle."""
    rows = 2_000_000
    columns = {f"column {at}": pa.array(np.arange(rows) if at == 0 else np.zeros(rows, np.int8)) for at in range(30)}
    ds = written(store, "large", pa.table(columns), "column 0")

    async def use(pilot: Any) -> None:
        app = pilot.app
        first = ds.pages.reads
        assert first <= 12, "the columns that fit, of one row group"
        await press(pilot, "end")
        assert "1999999" in lines(app)[-1] and ds.pages.reads <= 3 * first
        await press(pilot, "g", *"1000000", "enter")
        assert any("1000000" in line for line in lines(app)) and ds.pages.reads <= 6 * first
        assert len(app.row_window._blocks) <= 6 * first

    browsed(Browser(ds), use)


def test_columns_move_and_can_be_chosen(store: Store) -> None:
    table = pa.table({f"c{at}": np.arange(50) * at for at in range(40)})
    ds = written(store, "wide", table, "c1")

    async def use(pilot: Any) -> None:
        app = pilot.app
        assert "c39" not in lines(app)[0]
        await press(pilot, *["right"] * 60)
        assert lines(app)[0].split() == ["c39"] and "column 40 of 40" in status(app)
        await press(pilot, "left", "h")
        assert lines(app)[0].split() == ["c37", "c38", "c39"]

    browsed(Browser(ds), use)

    async def chosen(pilot: Any) -> None:
        assert lines(pilot.app)[0].split() == ["c9", "c2"] and pilot.app.grid.cursor == 30

    browsed(Browser(ds, 30, ["c9", "c2"]), chosen)


def test_what_data_says_does_not_move_the_cursor(store: Store) -> None:
    evil = "a\x1b[2Jb\r\nc\td \u202e[bold]e"
    ds = written(store, "evil", pa.table({"id": [0, 1], "\x1b[31mt": [evil, "宽字符 " * 60]}), "id")

    async def use(pilot: Any) -> None:
        for line in lines(pilot.app):
            assert line.isprintable()
        from rich.cells import cell_len

        assert {cell_len(pilot.app.grid.render_line(y).text) for y in range(4)} == {SIZE[0]}
        await press(pilot, "enter")
        shown = str(pilot.app.screen.query_one("#row", Static).render())
        assert "[bold]e" in shown and "\x1b" not in shown and "\u202e" not in shown

    browsed(Browser(ds), use)


def test_pictures_and_bytes_are_told_and_a_picture_is_drawn(store: Store) -> None:
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)).save(out, "PNG")
    schema = pa.schema([pa.field("id", pa.int64(), False), image_field("image")])
    columns = [pa.array([0, 1]), pa.array([out.getvalue(), b"no picture"], pa.large_binary())]
    ds = written(store, "pictures", pa.table(columns, schema=schema), "id")

    async def use(pilot: Any) -> None:
        app = pilot.app
        assert f"{len(out.getvalue()):,} bytes" in lines(app)[1] and "10 bytes" in lines(app)[2]
        await press(pilot, "enter")
        assert str(app.screen.query_one("#row", Static).render()).count("▀") == 48 * 16
        await press(pilot, "n")
        assert "10 bytes" in str(app.screen.query_one("#row", Static).render())

    browsed(Browser(ds), use)


def test_an_empty_dataset_has_no_rows_and_no_trouble(store: Store) -> None:
    ds = written(store, "empty", pa.table({"id": pa.array([], pa.int64())}), "id")

    async def use(pilot: Any) -> None:
        await press(pilot, "down", "end", "pageup", "enter", "slash", *"x", "enter")
        assert "no rows" in lines(pilot.app)[1]

    browsed(Browser(ds), use)


def test_damage_is_told_and_the_rest_can_be_seen(store: Store) -> None:
    numbers = np.random.default_rng(0).permutation(2_000)
    ds = written(store, "d", pa.table({"a": numbers, "b": [f"word {at}" for at in range(2_000)]}), "a")
    place = store.locate(ds.leaves.group(0).columns[0][0].digest)
    assert place is not None
    path = store.home.path_of(place.pack)  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[place.row.offset + 100] ^= 1
    path.write_bytes(data)

    async def use(pilot: Any) -> None:
        assert "corrupt" in status(pilot.app) and "(cannot be read)" in lines(pilot.app)[4]
        assert "word 3" in lines(pilot.app)[4]

    browsed(Browser(Dataset.open(Store.open(store.url), "d")), use)


# -- the window ----------------------------------------------------------------------------------------------------


def test_the_window_keeps_so_many_blocks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BROWSE_BLOCKS_MAX", 5)
    window = RowWindow(texts(store))
    for block in range(20):
        window.read(block, 0)
    assert [window.cell(row * 64, 0) is not None for row in range(20)] == [False] * 15 + [True] * 5
    assert window.cell(19 * 64 + 1, 0) == str(19 * 64 + 1)
    assert window.missing(0, 200, [0, 1]) == [(block, column) for block in range(4) for column in (0, 1)]


def test_texts_that_are_long_are_told_by_their_size(store: Store) -> None:
    words = ["short", "x" * (limits.BROWSE_VALUE_BYTES_MAX + 1), "y" * 20_000, None]
    window = RowWindow(written(store, "d", pa.table({"id": range(4), "t": words}), "id"))
    window.read(0, 1)
    cells = [window.cell(row, 1) or "" for row in range(4)]
    assert cells[0] == "short" and cells[1] == "262,145 bytes of text" and cells[3] == "-"
    assert cells[2] == "y" * (limits.BROWSE_CELL_CHARS_MAX - 1) + "…"


@pytest.mark.parametrize("backwards", [False, True])
def test_a_search_finds_what_a_loop_over_all_rows_finds(
    store: Store, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    monkeypatch.setattr(limits, "BROWSE_SEARCH_ROWS", 7)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aB"), 4)) if at % 5 else None for at in range(100)]
    window = RowWindow(written(store, "d", pa.table({"id": range(100), "w": words}), "id"))
    for sought in ("aab", "aaB", "BBBB", "zz"):
        for start in (0, 1, 50, 99, 100):
            rows = range(start - 1, -1, -1) if backwards else range(start, 100)
            plain = sought.islower()
            expected = next(
                (at for at in rows if sought in ((words[at] or "").lower() if plain else words[at] or "")), None
            )
            assert window.find(sought, start, backwards) == expected


def test_a_search_can_be_stopped(store: Store) -> None:
    seen: list[int] = []
    window = RowWindow(texts(store))
    assert window.find("nowhere", 0, told=lambda row: bool(seen.append(row))) is None
    assert seen == [limits.BROWSE_SEARCH_ROWS]


# -- the command ---------------------------------------------------------------------------------------------------

BROWSE = [sys.executable, "-c", "from leptonstore.cli import main; main()", "browse", "texts", "--store"]


def test_without_a_terminal_another_command_is_named(store: Store, tmp_path: Path) -> None:
    texts(store, 10)
    command = [*BROWSE, store.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs a terminal" in done.stderr and "lepton head" in done.stderr


def test_in_a_terminal_rows_come_and_q_leaves(store: Store) -> None:
    """The command itself, with a terminal of its own."""
    texts(store, 10)
    main, other = pty.openpty()
    command = [*BROWSE, store.url]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment) as process:
        seen = b""
        while b"text 3 of many" not in seen and process.poll() is None:
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65_536)
        os.write(main, b"q")
        while process.poll() is None:
            if select.select([main], [], [], 0.1)[0]:
                os.read(main, 65_536)  # else it waits for us
        assert process.returncode == 0 and b"text 3 of many" in seen, seen.decode(errors="replace")
    os.close(main)
    os.close(other)
