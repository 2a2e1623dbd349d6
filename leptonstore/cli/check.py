"""lepton check"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.store import CheckReport, check_store


@click.command("check")
@store_option
@click.option("--read-data", is_flag=True, help="Read and verify every byte, not only the structure.")
@json_option
def command(store: str | None, read_data: bool, as_json: bool) -> int:
    """Find what is damaged or missing. Exit code 4 when something is; changes nothing.

    \b
    Example:
      lepton check --read-data
    """
    with open_store(store) as opened:
        with progress("check", len(opened.state.packs), "packs") as report:
            found = check_store(opened, read_data, lambda done, total: report(done))
        emit({"store": opened.url, **found.to_json()}, as_json, lambda: _print(found, read_data))
    return 0 if found.clean else 4


def _print(found: CheckReport, read_data: bool) -> None:
    for problem in found.problems:
        click.echo(problem.line())
    read = f", {human_bytes(found.bytes_read)} read" if read_data else ""
    click.echo(f"{found.packs:,} packs, {found.records:,} records, {found.refs:,} refs{read}")
    if found.unlisted_packs:
        click.echo(f"{found.unlisted_packs:,} packs of interrupted writers are not in use (harmless)")
    click.echo("clean" if found.clean else f"{len(found.problems)} problems")
