"""lepton diff"""

from __future__ import annotations

import json
from itertools import islice

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.cli.shown import change_json, print_changes
from leptonstore.dataset.diff import Diff, DiffStat
from leptonstore.dataset.graph import parents_of
from leptonstore.dataset.refs import resolve_ref
from leptonstore.errors import RefMissing
from leptonstore.store import Store

_SCREEN = 40  # rows whose keys are aligned together


@click.command("diff")
@click.argument("before")
@click.argument("after", required=False)
@click.option("--stat", "only_stat", is_flag=True, help="Only how many rows and columns differ.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Show N rows at most (default: all).")
@store_option
@json_option
def command(
    before: str, after: str | None, only_stat: bool, limit: int | None, store: str | None, as_json: bool
) -> None:
    """Show the rows that were added (+), removed (-) or changed (~) from version BEFORE to version AFTER.

    With one version only: what that changed against the one before it. Versions are NAME@REF as everywhere. Large values are told by
    size and digest. --json prints a line for each row and a summary as the last line.

    \b
    Example:
      lepton diff birds@v1 birds
      lepton diff birds@main~2 birds@cleanup --stat
      lepton diff birds@2026-11-01
    """
    with open_store(store) as opened:
        old, new = _versions(opened, before, after)
        diff = Diff(opened, old, new)
        stat = diff.stat()
        if not as_json:
            for line in stat.schema.lines():
                click.secho(line, fg="cyan")
        told = 0
        if not only_stat and limit != 0:
            changes = diff.rows(limit)
            while screen := list(islice(changes, _SCREEN)):
                told += len(screen)
                if as_json:
                    for change in screen:
                        click.echo(json.dumps(change_json(change), ensure_ascii=False))
                else:
                    print_changes(screen)
        emit({"before": old, "after": new, **stat.to_json()}, as_json, lambda: _print(stat, told, only_stat))


def _versions(store: Store, before: str, after: str | None) -> tuple[str, str]:
    if after is not None:
        return resolve_ref(store, "dataset", before)[2], resolve_ref(store, "dataset", after)[2]
    found = resolve_ref(store, "dataset", before)[2]
    parents = parents_of(store, found)
    if not parents:
        raise RefMissing(f"{before} has no version before it; name two versions")
    return parents[0], found


def _print(stat: DiffStat, told: int, only_stat: bool) -> None:
    rows = stat.added + stat.removed + stat.changed
    if told < rows and not only_stat:
        click.echo(f"… and {rows - told:,} rows more")
    if not stat:
        click.echo("no difference")
        return
    click.echo(
        f"{stat.added:,} rows added, {stat.removed:,} removed, {stat.changed:,} changed "
        f"({stat.rows_before:,} -> {stat.rows_after:,})"
    )
    for name, count in stat.columns.items():
        click.echo(f"  {name:<24} {count:>12,} rows")
