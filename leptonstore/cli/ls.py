"""lepton ls"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset import RefInfo, list_refs
from leptonstore.format.commit import KINDS


@click.command("ls")
@click.argument("name", required=False)
@store_option
@click.option("--kind", type=click.Choice(KINDS), help="Only these.")
@json_option
def command(name: str | None, store: str | None, kind: str | None, as_json: bool) -> None:
    """List datasets, models and checkpoints with their branches and tags.

    \b
    Example:
      lepton ls --kind model
    """
    with open_store(store) as opened:
        refs = list_refs(opened, kind, name)
        emit({"store": opened.url, "refs": [asdict(ref) for ref in refs]}, as_json, lambda: print_refs(refs))


def print_refs(refs: list[RefInfo], none: str = "nothing here yet; `lepton import SRC NAME` puts data in") -> None:
    """A line for each, tags marked."""
    if not refs:
        click.echo(none)
    versions = [f"{ref.name}@{ref.branch}" for ref in refs]
    width = max(map(len, versions), default=0)
    for ref, version in zip(refs, versions, strict=True):
        time = datetime.fromtimestamp(ref.time_s).strftime("%Y-%m-%d %H:%M")
        tag = "  tag" if ref.tag else ""
        click.echo(f"{ref.kind:<10}  {version:<{width}}  {ref.commit[:12]}  {time}  {ref.author}{tag}")
