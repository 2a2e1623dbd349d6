"""lepton repair"""

from __future__ import annotations

import click

from leptonstore import limits
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.store.copies import open_copy
from leptonstore.store.repair import RepairReport, repair_store


@click.command("repair")
@store_option
@click.option(
    "--from",
    "copies",
    metavar="PATH",
    multiple=True,
    help="Where to fetch what is lost: another store, or a directory with copies of packs. May be given more than once.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and what would stay lost; change nothing.")
@click.option("--force", is_flag=True, help="Go on although the files of most packs are missing.")
@json_option
def command(store: str | None, copies: tuple[str, ...], dry_run: bool, force: bool, as_json: bool) -> int:
    """Mend damaged and missing packs: save what is whole, fetch the rest from copies, and say what is lost.

    With several tiers, a damaged copy is replaced by the whole one of another tier. Damaged files are kept under damaged/.
    Importing the same data again heals what stays lost.
    Exit codes: 0 everything is whole (again), 4 something stays lost, 11 a tier does not answer, so that nothing was judged.

    \b
    Example:
      lepton repair --from /backup/store
    """
    with open_store(store) as opened:
        found = [open_copy(opened, path) for path in copies]
        total = sum(record.bytes for record in opened.state.packs.values())
        with progress("repair", max(1, total // limits.MIB), "MiB") as bar:
            report = repair_store(opened, found, dry_run, force, lambda done, _: bar(done // limits.MIB))
        for copy in found:
            copy.close()
        emit({"store": opened.url, **report.to_json()}, as_json, lambda: _print(report))
    return 0 if report.whole else 4


def _print(report: RepairReport) -> None:
    would = "would be " if report.dry_run else ""
    for copy in report.replaced:
        how = "removed from" if copy.extra else "replaced in"
        click.echo(f"pack {copy.pack}: {copy.why}; {would}{how} tier {copy.tier}: tier {copy.source} has it whole")
    for one in report.repaired:
        copied = f", {one.copied:,} taken from a copy of it" if one.copied else ""
        lost = f", {one.lost:,} lost with it" if one.lost else ""
        click.echo(f"pack {one.pack}: {one.why}; {one.saved:,} chunks {would}saved{copied}{lost}")
    if report.fetched:
        click.echo(f"{report.fetched:,} chunks ({human_bytes(report.fetched_bytes)}) {would}fetched from copies")
    for gone in report.lost:
        click.echo(f"lost: {gone.line()}")
    count = len(report.repaired) + len({copy.pack for copy in report.replaced})
    click.echo(f"{report.packs:,} packs examined, {count:,} {would}repaired")
    if report.whole:
        click.echo("whole")
    else:
        click.echo("give another copy with --from, or import the same data again, to heal what is lost")
