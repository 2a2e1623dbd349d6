"""lepton report"""

from __future__ import annotations

import time
from pathlib import Path

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, status, store_option
from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput


@click.command("report")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write here (default: NAME-REF.html).")
@click.option("--vs", metavar="NAME@REF", help="Compare with this version (default: the one before).")
@click.option(
    "--check", is_flag=True, help="Search now, with the quick checks that fit, instead of showing what was found."
)
@click.option(
    "--check-all", is_flag=True, help="With all checks that fit: near duplicates and label errors, too (minutes)."
)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@store_option
@json_option
def command(
    name: str,
    out: Path | None,
    vs: str | None,
    check: bool,
    check_all: bool,
    show: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Write one HTML file that shows version NAME@REF. It loads nothing from the network, and has at most 5 MiB.

    Identity and lineage, sizes and deduplication, charts of every column, samples, findings and rows that are alike (of the
    newest version of NAME.findings about this version, or of a search now with --check or --check-all), and how it differs from
    the version before. What is at FILE is replaced.

    \b
    Example:
      lepton report birds
      lepton report birds@v2 --vs birds@v1 --out birds.html
    """
    begin = time.perf_counter()
    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        against = Dataset.open(opened, vs) if vs is not None else None
        path = out if out is not None else Path(f"{dataset.name}-{dataset.ref}.html".replace("/", "-"))
        if path.is_dir():
            raise BadInput(f"{path} is a directory; name a file with --out {path / 'report.html'}")
        # Imported late: it needs the extra, and what is wrong with the names is told first.
        from leptonstore.process.report import write_report
        from leptonstore.process.report_dataset import dataset_report

        with status("report") as tell:
            page = dataset_report(dataset, against, check, check_all, lambda step: tell(lambda: step))
            write_report(path, page)
    size = path.stat().st_size
    found = page.clean
    value = {
        "dataset": dataset.label,
        "commit": dataset.commit,
        "report": str(path),
        "bytes": size,
        "rows": len(dataset),
        "rows_with_findings": None if found is None else len(found.rows_found()),
        "findings": None if found is None else found.counts(),
        "findings_about": None if found is None else found.commit,
        "seconds": round(time.perf_counter() - begin, 3),
    }

    def text() -> None:
        click.echo(f"{path}  {human_bytes(size)}, {value['seconds']:.1f} s")
        for note in page.notes:
            click.echo(note)

    emit(value, as_json, text)
    if show:
        click.launch(str(path))
