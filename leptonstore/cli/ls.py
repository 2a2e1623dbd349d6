"""lepton ls"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset import RefInfo, list_refs
from leptonstore.dataset.refs import meant
from leptonstore.errors import RefMissing, listed
from leptonstore.format.commit import KINDS
from leptonstore.store import Store

NONE = "nothing here yet; `lepton import SRC NAME` puts data in"


@click.command("ls")
@click.argument("name", required=False)
@store_option
@click.option("--kind", type=click.Choice(KINDS), help="Only these.")
@json_option
def command(name: str | None, store: str | None, kind: str | None, as_json: bool) -> None:
    """List datasets, models and checkpoints with their branches and tags; with NAME only those of that name.

    Nothing to list is no error; a NAME that is not there is (exit code 3).

    \b
    Example:
      lepton ls --kind model
      lepton ls birds
    """
    with open_store(store) as opened:
        refs = list_refs(opened, kind) if name is None else _refs_of(opened, kind, name)
        none = f"no {kind} yet" if kind is not None and opened.state.refs else NONE
        emit({"store": opened.url, "refs": [asdict(ref) for ref in refs]}, as_json, lambda: print_refs(refs, none))


def _refs_of(store: Store, kind: str | None, name: str) -> list[RefInfo]:
    """Those of `name`, also when another process has just published them. Raises RefMissing, which names what there is."""
    refs = list_refs(store, kind, name)
    if not refs:
        store.refresh()
        refs = list_refs(store, kind, name)
    if not refs:
        there = sorted({ref.name for ref in list_refs(store, kind)})
        wanted = kind or "dataset, checkpoint or model"
        raise RefMissing(f"no {wanted} {name!r} in {store.url}; there is: {listed(there)}{meant(store, name, there)}")
    return refs


def print_refs(refs: list[RefInfo], none: str = NONE) -> None:
    """A line for each, tags marked."""
    if not refs:
        click.echo(none)
    versions = [f"{ref.name}@{ref.branch}" for ref in refs]
    width = max(map(len, versions), default=0)
    for ref, version in zip(refs, versions, strict=True):
        time = datetime.fromtimestamp(ref.time_s).strftime("%Y-%m-%d %H:%M")
        tag = "  tag" if ref.tag else ""
        click.echo(f"{ref.kind:<10}  {version:<{width}}  {ref.commit[:12]}  {time}  {ref.author}{tag}")
