"""lepton upgrade"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.store.upgrade import UpgradeReport, upgrade_store


@click.command("upgrade")
@store_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@json_option
def command(store: str | None, dry_run: bool, as_json: bool) -> None:
    """Upgrade a store that an older version made. Nothing is rewritten that can be read as it is.

    Exit codes: 0 done or nothing to do, 6 no space, 7 the store is newer than this version.

    \b
    Example:
      lepton upgrade --dry-run
    """
    with open_store(store) as opened:
        report = upgrade_store(opened, dry_run)
        emit({"store": opened.url, **report.to_json()}, as_json, lambda: _print(report))


def _print(report: UpgradeReport) -> None:
    for step in report.steps:
        click.echo(f"{'would do' if report.dry_run else 'done'}: {step}")
    features = f", features {', '.join(report.features)}" if report.features else ""
    click.echo(f"{'' if report.steps else 'nothing to do: '}format {report.format}{features}")
