"""lepton browse"""

from __future__ import annotations

import sys

import click

from leptonstore.cli.runtime import open_store, store_option
from leptonstore.dataset import Dataset
from leptonstore.dataset.optional import require_module
from leptonstore.errors import BadInput


@click.command("browse")
@click.argument("name")
@click.option(
    "--row", type=int, default=0, show_default=True, help="Begin at this row; negative ones count from the end."
)
@click.option("--column", "columns", multiple=True, help="Only this column; may be given several times.")
@store_option
def command(name: str, row: int, columns: tuple[str, ...], store: str | None) -> None:
    """Look through the rows of dataset NAME[@REF]: a pager for texts and tables of any size.

    Arrows and page keys move, / searches, g jumps to a row, Enter shows a whole row, q leaves. Only the rows on the screen are read.

    \b
    Example:
      lepton browse reviews
      lepton browse birds@v2 --row 1000000 --column path --column label
    """
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # Textual draws on stderr
        raise BadInput("lepton browse needs a terminal; `lepton head` and `lepton get` print rows")
    require_module("lepton browse", "browse", "textual")
    from leptonstore.cli.browse_app import Browser

    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        dataset.fields(columns or None)  # an unknown column is named before the screen is taken
        if len(dataset) and not -len(dataset) <= row < len(dataset):
            raise BadInput(f"row {row}: {name} has {len(dataset):,} rows")
        Browser(dataset, row % max(len(dataset), 1), columns).run()
