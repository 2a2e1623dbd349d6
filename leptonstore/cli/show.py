"""lepton show"""

from __future__ import annotations

import json
from typing import Any

import click

from leptonstore.cli.log import told_time
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.dataset.diff import Diff, DiffStat
from leptonstore.dataset.refs import resolve_ref
from leptonstore.dataset.schema import shown_type
from leptonstore.dataset.versions import Version, version
from leptonstore.format.commit import KINDS
from leptonstore.format.schema import schema_to_json


@click.command("show")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="dataset", help="What NAME is (default: dataset).")
@click.option("--no-diff", is_flag=True, help="Do not compare it with the version before.")
@store_option
@json_option
def command(name: str, kind: str, no_diff: bool, store: str | None, as_json: bool) -> None:
    """Show version NAME@REF: its message, author, time, parents, lineage, schema and size, and what it changed.

    For stored sizes and deduplication see `lepton stats`, for the changed rows `lepton diff`.

    \b
    Example:
      lepton show birds
      lepton show birds@main~1
    """
    with open_store(store) as opened:
        found = version(opened, resolve_ref(opened, kind, name)[2], kind)
        compare = bool(found.parents) and not no_diff and kind == "dataset"
        stat = Diff(opened, found.parents[0], found.digest).stat() if compare else None
        body: dict[str, Any] = {
            **found.to_json(),
            "schema": schema_to_json(found.commit.schema),
            "identity": found.commit.identity,
            "keyed": found.commit.keyed,
            "changes": None if stat is None else stat.to_json(),
        }
        emit(body, as_json, lambda: _print(found, stat))


def _print(found: Version, stat: DiffStat | None) -> None:
    commit, told = found.commit, found.published
    parents = ", ".join(parent[:12] for parent in found.parents)
    lines = [
        ("version", found.digest),
        ("refs", ", ".join(found.refs)),
        ("published", f"{told_time(told)} by {told.author} on {told.host}" if told else "with a later version"),
        ("parents", f"{parents or 'none'}{' (what came before was forgotten)' if found.forgotten else ''}"),
        ("message", commit.message),
        ("rows", f"{commit.rows:,}"),
        ("size", human_bytes(commit.plain_bytes)),
        ("key" if commit.keyed else "identity", ", ".join(commit.identity)),
        ("lineage", json.dumps(commit.lineage, ensure_ascii=False) if commit.lineage else ""),
    ]
    for name, text in lines:
        if text:
            click.echo(f"{name:<10} {text}")
    click.echo("columns")
    for one in commit.schema:
        click.echo(f"  {one.name:<24} {shown_type(one.type)}{'' if one.nullable else ' not null'}")
    if stat is not None:
        counts = f"{stat.added:,} rows added, {stat.removed:,} removed, {stat.changed:,} changed"
        click.echo(f"changes    against {found.parents[0][:12]}: {counts}")
        for line in [
            *stat.schema.lines(),
            *(f"  {name:<24} {count:>12,} rows" for name, count in stat.columns.items()),
        ]:
            click.echo(line)
