"""lepton log"""

from __future__ import annotations

from datetime import datetime
from itertools import islice

import click

from leptonstore.cli.graph import graph_lines
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset.reflog import Published
from leptonstore.dataset.refs import list_refs, resolve_ref
from leptonstore.dataset.versions import Version, versions
from leptonstore.format.commit import KINDS


@click.command("log")
@click.argument("name")
@click.option("--all", "all_refs", is_flag=True, help="Of all branches and tags of NAME.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show N versions at most.")
@click.option("--kind", type=click.Choice(KINDS), default="dataset", help="What NAME is (default: dataset).")
@store_option
@json_option
def command(name: str, all_refs: bool, limit: int | None, kind: str, store: str | None, as_json: bool) -> None:
    """Show the versions of dataset NAME[@REF], newest first, and how lines of them parted and were merged.

    \b
    Example:
      lepton log mnist
      lepton log mnist@cleanup --limit 5
      lepton log mnist --all
    """
    with open_store(store) as opened:
        dataset, _, head = resolve_ref(opened, kind, name)
        refs = sorted(list_refs(opened, kind, dataset), key=lambda info: -info.sequence)
        heads = list(dict.fromkeys([head, *(info.commit for info in refs)] if all_refs else [head]))
        found = list(islice(versions(opened, heads, kind), limit))
        emit({"dataset": dataset, "versions": [one.to_json() for one in found]}, as_json, lambda: _print(found))


def told_time(published: Published | None) -> str:
    """Local time to the minute."""
    return "" if published is None else datetime.fromtimestamp(published.time_s).strftime("%Y-%m-%d %H:%M")


def _print(found: list[Version]) -> None:
    joined = list(graph_lines((one.digest, one.parents) for one in found))
    straight = all(before == "*" and not after for before, after in joined)
    for one, (before, after) in zip(found, joined, strict=True):
        graph = "" if straight else f"{before} "
        author = one.published.author if one.published else ""
        refs = f"  [{', '.join(one.refs)}]" if one.refs else ""
        line = f"{one.digest[:12]}  {told_time(one.published):<16}  {author:<10} {one.commit.rows:>12,} rows"
        click.echo(f"{graph}{line}  {one.commit.message}{refs}")
        for more in after:
            click.echo(more)
        if one.forgotten:
            click.echo(f"{'' if straight else '  '}(what came before was forgotten)")
