"""lepton erase"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from leptonstore.cache import HotCache
from leptonstore.cli.cache import NO_CACHE, cache_path
from leptonstore.cli.edits import format_option, rows_of
from leptonstore.cli.gc import stages
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.dataset import Dataset
from leptonstore.dataset.erase import ErasePlan, ErasureReport, erase, resume
from leptonstore.errors import BadInput, NotFound
from leptonstore.store import Store
from leptonstore.store.remote_store import refused

EXIT_FOUND = 4


@click.command("erase")
@click.argument("names", metavar="NAME…", nargs=-1)
@click.option("--where", metavar="CONDITION", help="Rows that this holds for, as in SQL.")
@click.option(
    "--key", "key_values", metavar="VALUE", multiple=True, help="A row by its key (of one column); may be repeated."
)
@click.option("--keys", metavar="SRC", help="Rows of a keyed table whose keys stand in this file.")
@click.option("--rows", "numbers", metavar="N,N-N…", help="Rows of the version NAME[@REF] by their numbers.")
@click.option("--everywhere", is_flag=True, help="In all datasets in which the same rows can be told.")
@click.option(
    "--same-identity/--only-matching",
    "same_identity",
    default=None,
    help="Without a key: whether rows go, too, that look like one that is meant but do not fit the condition.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--resume", "finish", is_flag=True, help="Finish an erasure that was interrupted, and search again.")
@click.option(
    "--cache", "folders", metavar="DIR", multiple=True, type=click.Path(path_type=Path),
    help="A hot cache of this host to empty; may be repeated (default: $LEPTON_CACHE, else this user's in /dev/shm).",
)  # fmt: skip
@click.option("--author", default="", help="Who the log says it was (default: the user).")
@format_option
@store_option
@json_option
def command(
    names: tuple[str, ...],
    where: str | None,
    key_values: tuple[str, ...],
    keys: str | None,
    numbers: str | None,
    everywhere: bool,
    same_identity: bool | None,
    dry_run: bool,
    yes: bool,
    finish: bool,
    folders: tuple[Path, ...],
    author: str,
    source_format: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Erase rows of NAME from every version of it, and from every byte of the store. This cannot be undone.

    All versions that have the rows are written anew; names of the old ones lead to those that stand for them. Then garbage,
    dictionaries, tiers and this host's caches are cleared, everything that is left is decoded and searched, and the proof is printed.
    Readers of these versions and all writers must have ended. Interrupted, `lepton erase --resume` goes on. Objects that were imported
    with --reference are not the store's: remove those where they stand.

    Exit codes: 0 done and nothing found, 2 usage, 3 no such name, 4 something was found, or could not be removed or read, 5 readers or
    writers are at work, 6 disk full, 11 a tier does not answer.

    \b
    Example:
      lepton erase people --where "email = 'ada@example.org'" --dry-run
      lepton erase people --key 1017 --key 1018
      lepton erase --resume
    """
    if finish == bool(names):
        raise click.UsageError("give the datasets to erase rows from, or --resume without any")
    with open_store(store) as opened, _caches(folders) as caches:
        if opened.is_served:  # before rows are looked for and the user is asked
            raise refused(opened.url)
        with stages() as progress:
            if finish:
                report = resume(opened, caches, progress)
            else:
                given = _keys(opened, names[0], key_values, keys, source_format)
                report = erase(
                    opened,
                    names,
                    where,
                    given,
                    _numbers(numbers),
                    everywhere,
                    same_identity,
                    dry_run,
                    caches,
                    author,
                    progress,
                    lambda made: yes or _ask(made),
                )
        emit({"store": opened.url, **report.to_json()}, as_json, lambda: print_report(report))
    if not report.dry_run and (report.replaced or finish) and not report.absent:
        click.get_current_context().exit(EXIT_FOUND)


def _keys(store: Store, name: str, values: tuple[str, ...], path: str | None, source_format: str | None) -> Any:
    """The keys that were given, None when there are none. Raises BadInput, SourceError."""
    if path is not None and values:
        raise click.UsageError("give --key or --keys, not both")
    if path is not None:
        return rows_of(path, source_format)
    if not values:
        return None
    version = Dataset.open(store, name)
    if not version.commit_object.keyed or len(version.identity) != 1:
        raise BadInput(f"{name} has no key of one column: say which rows with --keys FILE, --where or --rows")
    kind = version.schema.field(version.identity[0])
    try:
        return pa.table({kind.name: pa.array(values).cast(kind.type)})
    except pa.ArrowException as error:
        raise BadInput(f"--key: no value of column {kind.name!r} ({kind.type}): {error}") from None


def _numbers(text: str | None) -> list[int] | None:
    """ "3,17,20-30" -> row numbers."""
    if text is None:
        return None
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise BadInput(f"--rows {text!r}: write row numbers such as 3,17,20-30")
        out += range(int(first), int(last or first) + 1)
    return out


@contextlib.contextmanager
def _caches(folders: tuple[Path, ...]) -> Iterator[list[HotCache]]:
    """The hot caches that were named; else this user's, if there is one."""
    usual = cache_path(None)
    for place in folders:
        if not (place / "table").exists():
            raise NotFound(f"there is no hot cache at {place}: name the directory of one")
    places = list(folders) or ([usual] if str(usual) != NO_CACHE and (usual / "table").exists() else [])
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(HotCache(place)) for place in places]


def _ask(made: ErasePlan) -> bool:
    click.echo(_plan_text(made), err=True)
    if not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone: look at it with --dry-run, then give --yes")
    return click.confirm("erase them for good?", err=True)


def _plan_text(made: ErasePlan) -> str:
    return (
        f"{made.row_count:,} rows in {len(made.rows):,} versions of {', '.join(made.names)}; {len(made.order):,} versions are "
        f"written anew, {len(made.refs):,} branches and tags move"
    )


def print_report(report: ErasureReport) -> None:
    """For people."""
    would = "would be " if report.dry_run else ""
    most = max(report.rows.values(), default=0)
    if report.rows or report.dry_run:
        click.echo(
            f"{most:,} rows {would}erased from {len(report.rows):,} versions; {len(report.refs):,} branches and tags move"
        )
    elif not report.replaced:
        click.echo("no version has such rows")
    for one in report.shared:
        click.echo(f"the same content stays in {one}")
    if report.remotes:
        click.echo(f"stores that may have them, too (erase them there as well): {', '.join(report.remotes)}")
    searched = report.searched
    if searched is None:
        return
    gone = report.purged
    click.echo(
        f"{gone.packs_removed:,} packs removed ({human_bytes(gone.bytes_freed)}), {gone.repacked:,} written anew, "
        f"{gone.set_aside:,} files of damaged/ and {gone.temporaries:,} temporaries removed, "
        f"{human_bytes(gone.wiped_bytes)} of free space zeroed"
    )
    for line in report.caches:
        click.echo(line)
    tiers = ", ".join(f"{name} {count:,} packs" for name, count in searched.tiers.items())
    click.echo(
        f"proof: every record of every pack was decoded ({tiers}; {searched.records:,} records, {searched.dictionaries:,} of them "
        f"dictionaries, {human_bytes(searched.bytes)}, and {searched.log_entries:,} entries of the log) and searched for "
        f"{searched.patterns:,} patterns of the erased values"
    )
    if report.short:
        click.echo(
            f"{report.short:,} values are too short, or too many, to search for: of these the proof is that no record is left that "
            "no version needs"
        )
    for line in [*report.found, *searched.unreadable, *gone.left]:
        click.echo(f"NOT GONE: {line}")
    click.echo(
        "nothing else was found"
        if report.absent and report.shared
        else "nothing was found"
        if report.absent
        else "the proof fails"
    )
    click.echo(
        "not seen from here: other stores and clones, other hosts' caches and indexes, exports and backups, memory of running "
        "programs, and what a device keeps of deleted files"
    )
