"""lepton branch, and what `lepton tag` shares with it"""

from __future__ import annotations

from dataclasses import asdict

import click

from leptonstore.cli.ls import print_refs
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset import list_refs
from leptonstore.dataset.branches import create_ref, remove_ref
from leptonstore.dataset.refs import MAIN, resolve_ref, split_spec
from leptonstore.errors import BadInput
from leptonstore.format.commit import KINDS

kind_option = click.option(
    "--kind", type=click.Choice(KINDS), default="dataset", help="What NAME is (default: dataset)."
)


@click.command("branch")
@click.argument("name", required=False)
@click.option("--from", "start", metavar="REF", help="Where it begins: REF of NAME, or NAME@REF (default: main).")
@click.option("-d", "--delete", is_flag=True, help="Remove the branch; its versions must be on another one.")
@click.option("--force", is_flag=True, help="With -d: also when versions are lost.")
@kind_option
@store_option
@json_option
def command(
    name: str | None, start: str | None, delete: bool, force: bool, kind: str, store: str | None, as_json: bool
) -> None:
    """List branches, make branch NAME@BRANCH, or remove it. No row is copied.

    NAME alone lists its branches. Exit codes: 0 done, 2 usage or the name is taken, 3 no such version, 5 another writer was faster.

    \b
    Example:
      lepton branch birds
      lepton branch birds@cleanup --from main~2
      lepton branch -d birds@cleanup
    """
    refs(name, start, delete, force, kind, store, as_json, tag=False)


def refs(
    name: str | None,
    start: str | None,
    delete: bool,
    force: bool,
    kind: str,
    store: str | None,
    as_json: bool,
    tag: bool,
) -> None:
    """List, make or remove branches or tags."""
    what = "tag" if tag else "branch"
    with open_store(store) as opened:
        if name is None or "@" not in name:
            if delete or start is not None:
                raise BadInput(f"name the {what}: NAME@{what.upper()}")
            found = [info for info in list_refs(opened, kind, name) if info.tag == tag]
            if name is not None and not found:
                resolve_ref(opened, kind, f"{name}@{MAIN}")  # an unknown name is told
            none = f"no {what} yet"
            emit({"refs": [asdict(info) for info in found]}, as_json, lambda: print_refs(found, none))
            return
        dataset, ref = split_spec(name)
        if delete:
            lost = remove_ref(opened, kind, dataset, ref, tag, force)
            said = f"{what} {name} is removed" + (f"; {len(lost):,} versions are lost at the next gc" if lost else "")
            emit({"removed": name, "lost": lost}, as_json, said)
            return
        source = start if start is not None and "@" in start else f"{dataset}@{start or MAIN}"
        made = create_ref(opened, kind, dataset, ref, resolve_ref(opened, kind, source)[2], tag)
        emit(asdict(made), as_json, f"{what} {dataset}@{ref} is at {made.commit[:12]}")
