"""lepton forget"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.dataset.forget import Forgotten, forget_all_but, forget_before
from leptonstore.dataset.reflog import parse_date
from leptonstore.dataset.refs import delete_ref, split_spec
from leptonstore.errors import BadInput, listed
from leptonstore.format.commit import KINDS
from leptonstore.store.gc import collect


@click.command("forget")
@click.argument("name")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep the newest N versions.")
@click.option("--before", metavar="DATE", help="Forget versions published before DATE (2026-11-01, or with a time).")
@click.option("--all", "whole", is_flag=True, help="Remove the branch itself.")
@click.option("--kind", type=click.Choice(KINDS), default="dataset", help="What NAME is (default: dataset).")
@click.option("--no-estimate", is_flag=True, help="Do not compute what `lepton gc` would free.")
@store_option
@json_option
def command(
    name: str,
    keep: int | None,
    before: str | None,
    whole: bool,
    kind: str,
    no_estimate: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Forget old versions of NAME[@BRANCH]; `lepton gc` then frees what only they needed.

    A version that another branch or tag leads to stays, with all that came before it: history is never cut there.

    Exit codes: 0 done, 2 usage, 3 no such name, 5 another writer moved the branch.

    \b
    Example:
      lepton forget mnist --keep 3
    """
    if (keep is not None) + (before is not None) + whole != 1:
        raise BadInput("say what to forget with one of --keep N, --before DATE or --all")
    with open_store(store) as opened:
        if whole:
            delete_ref(opened, kind, *split_spec(name))
            done = Forgotten(0, 1, ())
        elif keep is not None:
            done = forget_all_but(opened, kind, name, keep)
        else:
            done = forget_before(opened, kind, name, parse_date(before or ""))
        freed = None if no_estimate else collect(opened, dry_run=True).bytes_freed

        def text() -> None:
            if whole:
                click.echo(f"{kind} {name} is removed")
            else:
                click.echo(f"{kind} {name}: {done.kept:,} versions kept, {done.forgotten:,} forgotten")
            if done.held:
                click.echo(
                    f"older ones stay: {listed(done.held)} lead to them; remove these, or forget their versions, first"
                )
            if freed is not None:
                click.echo(f"`lepton gc` would free {human_bytes(freed)} in this store")

        result = {"name": name, "kind": kind, **done._asdict(), "bytes_to_free": freed}
        emit(result, as_json, text)
