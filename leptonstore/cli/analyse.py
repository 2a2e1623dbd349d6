"""lepton analyse"""

from __future__ import annotations

import json

import click

from leptonstore.cli.runtime import json_option, open_store, progress, store_option
from leptonstore.dataset import Dataset

NO_VERSION = "none"  # as --vs: no drift


@click.command("analyse")
@click.argument("name")
@click.option(
    "--vs",
    metavar="NAME[@REF]",
    help="Tell how the columns differ from this version (default: the first parent; none: do not compare).",
)
@click.option(
    "--column",
    "--columns",
    "chosen",
    multiple=True,
    help="Only these columns, separated by commas or given one by one.",
)
@click.option("--again", is_flag=True, help="Read all pages, also those whose statistics are kept on this host.")
@store_option
@json_option
def command(name: str, vs: str | None, chosen: tuple[str, ...], again: bool, store: str | None, as_json: bool) -> None:
    """Describe the columns of dataset NAME[@REF]: counts, nulls, quantiles, frequent values, lengths, images, classes, correlation, drift.

    Statistics of pages are kept on this host: a new version costs its new pages. Figures are exact, or say by how much they may be off.

    \b
    Example:
      lepton analyse birds
      lepton analyse birds@main --vs birds@v1 --columns label,width
      lepton analyse birds --json
    """
    from leptonstore.cli.analysis_text import print_analysis
    from leptonstore.process.analyse import analyse

    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        against = _other(dataset, vs)
        total = len(dataset) + (0 if against is None else len(against))
        with progress("analysing", total) as tell:
            found = analyse(dataset, _names(dataset, chosen), against, keep=not again, progress=tell)
        if as_json:
            click.echo(json.dumps(found.to_json() | {"ref": dataset.ref}, ensure_ascii=False, allow_nan=False))
        else:
            print_analysis(found, dataset.label)


def _other(dataset: Dataset, vs: str | None) -> Dataset | None:
    """What is compared with. Raises RefMissing, BadInput."""
    if vs == NO_VERSION:
        return None
    if vs is not None:
        return Dataset.open(dataset.store, vs)
    parents = dataset.commit_object.parents
    return dataset.at(f"{dataset.ref}~1", parents[0].hex()) if parents else None


def _names(dataset: Dataset, chosen: tuple[str, ...]) -> list[str] | None:
    if not chosen:
        return None
    known = set(dataset.column_names)
    return list(dict.fromkeys(name for one in chosen for name in ([one] if one in known else one.split(","))))
