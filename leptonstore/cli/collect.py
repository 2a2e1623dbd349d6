"""lepton collect"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset.refs import split_spec
from leptonstore.process.collect.collect import KINDS, Collected, collect
from leptonstore.process.collect.fetch import Fetcher, Rate, rate_of
from leptonstore.process.collect.items import Item, extra_fields, items_of_list, items_of_place
from leptonstore.process.collect.rows import collect_sql
from leptonstore.process.collect.watch import SETTLE_S, watch

_F = TypeVar("_F", bound=Callable[..., Any])
_FAILED_SHOWN = 10


@click.group("collect")
def command() -> None:
    """Bring raw data into a dataset, again and again: only what is new or changed is fetched.

    Each row says where it came from, when, its BLAKE3 digest and its licence. Interrupted, what was fetched is kept: run it again. All take
    --json.

    \b
    Example:
      lepton collect files s3://bucket/scans scans --include '*.jpg' --kind image --licence CC-BY-4.0
      lepton collect list urls.csv photos --kind image --rate 5/s
      lepton collect watch incoming/ scans --kind image
      lepton collect sql "select * from trips" trips --database app.duckdb --key id
    """


def _common(what: _F) -> _F:
    what = json_option(store_option(what))
    what = click.option("--author", default="", help="Who made the versions (default: the user).")(what)
    what = click.option("--licence", metavar="NAME", help="Of what says none itself: CC-BY-4.0, proprietary …")(what)
    return click.option("--delete", is_flag=True, help="Delete rows whose source is gone.")(what)


def _files(what: _F) -> _F:
    what = click.option("--paranoid", is_flag=True, help="Fetch also what says that it did not change.")(what)
    what = click.option(
        "--workers", type=click.IntRange(1, 64), default=8, show_default=True, help="Fetched at a time."
    )(what)
    text = "How content is kept: bytes, an image, UTF-8 text."
    return click.option("--kind", type=click.Choice(KINDS), default="file", show_default=True, help=text)(what)


_include = click.option(
    "--include", multiple=True, metavar="PATTERN", help="Only these: '*.jpg', 'raw/*'. May be repeated."
)
_exclude = click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these. May be repeated.")


@command.command("files")
@click.argument("url")
@click.argument("name")
@_files
@_include
@_exclude
@_common
def files(
    url: str,
    name: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    store: str | None,
    **options: Any,
) -> None:
    """Collect the files below URL, a path or s3://, gs://, az://, and what else fsspec knows, into NAME[@BRANCH].

    Exit codes: 0 done, 1 some files failed (they are named), 2 bad input or nothing could be read.

    \b
    Example:
      lepton collect files scans/ scans --include '*.png' --kind image
    """
    _collect(store, name, lambda: items_of_place(url, include, exclude), as_json, options)


@command.command("list")
@click.argument("list_", metavar="LIST")
@click.argument("name")
@click.option(
    "--rate", metavar="N/s", help="At most so many requests: 5/s, 100/m, 1000/h (default: as fast as it goes)."
)
@_files
@_common
def list_command(list_: str, name: str, rate: str | None, as_json: bool, store: str | None, **options: Any) -> None:
    """Collect what LIST names into NAME[@BRANCH].

    LIST is a text file with a URL a line, or a manifest (CSV, JSONL, Parquet) with a column `url` or `path`, and perhaps path, bytes,
    sha256, sha1, md5, blake3, licence; each file is checked against what is said of it. Other columns go into the dataset. Paths in a
    manifest lie beside it. HTTP answers 429 and 5xx are tried again, after what the server says.

    Exit codes: 0 done, 1 some files failed (they are named), 2 bad input or nothing could be read.

    \b
    Example:
      lepton collect list photos.csv photos --kind image --rate 5/s
    """
    options["more"] = extra_fields(list_)
    fetcher = Fetcher(Rate(rate_of(rate)) if rate else None, options["workers"])
    _collect(store, name, lambda: items_of_list(list_), as_json, options, fetcher)


@command.command("watch")
@click.argument("folder")
@click.argument("name")
@click.option(
    "--settle", default=SETTLE_S, show_default=True, metavar="SECONDS", help="How long a file must have been quiet."
)
@click.option("--rounds", type=int, metavar="N", help="End after N looks (default: Ctrl-C ends it).")
@_files
@_include
@_exclude
@_common
def watch_command(
    folder: str,
    name: str,
    settle: float,
    rounds: int | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    store: str | None,
    **options: Any,
) -> None:
    """Collect the files of FOLDER into NAME[@BRANCH] now, and again whenever they change, until Ctrl-C.

    \b
    Example:
      lepton collect watch incoming/ scans --kind image
    """
    dataset, branch = split_spec(name)

    def listing() -> Iterator[Item]:
        return items_of_place(folder, include, exclude)

    with open_store(store) as opened:

        def look(items: Iterator[Item]) -> Collected:
            return collect(opened, dataset, items, branch=branch, **options)

        for done in islice(watch(folder, look, listing, settle), rounds):
            if done.added or done.changed or done.removed or done.failed:
                _tell(done, dataset, as_json)


@command.command("sql")
@click.argument("statement")
@click.argument("name")
@click.option("--key", multiple=True, required=True, metavar="COLUMN", help="What tells rows apart. May be repeated.")
@click.option("--database", metavar="FILE", help="A database of DuckDB's, opened for reading.")
@_common
def sql(
    statement: str,
    name: str,
    key: tuple[str, ...],
    database: str | None,
    as_json: bool,
    store: str | None,
    **options: Any,
) -> None:
    """Bring NAME[@BRANCH] up to date with the rows of a query of DuckDB's, by key: rows that did not change stay as they are.

    The query may read Parquet, CSV and JSON files and URLs, and the databases that DuckDB can attach.

    \b
    Example:
      lepton collect sql "select * from 'trips/*.parquet' where fare > 0" trips --key id
    """
    dataset, branch = split_spec(name)
    with open_store(store) as opened, progress(f"collect {dataset}", None) as report:
        done = collect_sql(opened, dataset, statement, key, database, branch, progress=report, **options)
    _tell(done, dataset, as_json)


def _collect(
    store: str | None,
    name: str,
    items: Callable[[], Iterator[Item]],
    as_json: bool,
    options: dict[str, Any],
    fetcher: Fetcher | None = None,
) -> None:
    dataset, branch = split_spec(name)
    with open_store(store) as opened, progress(f"collect {dataset}", None, "files") as report:
        done = collect(opened, dataset, items(), branch=branch, fetcher=fetcher, progress=report, **options)
    _tell(done, dataset, as_json)
    if done.failed:
        raise click.exceptions.Exit(1)


def _tell(done: Collected, name: str, as_json: bool) -> None:
    for path, why in done.failed[:_FAILED_SHOWN]:
        click.echo(f"lepton: warning: {path}: {why}", err=True)
    if len(done.failed) > _FAILED_SHOWN:
        click.echo(f"lepton: warning: {len(done.failed) - _FAILED_SHOWN:,} more failed; --json names all", err=True)
    if done.dataset is None:
        emit(done.to_json(), as_json, f"nothing to collect into {name}")
        return
    parts = [
        f"{count:,} {what}"
        for what, count in (
            ("new", done.added),
            ("changed", done.changed),
            ("unchanged", done.unchanged),
            ("removed", done.removed),
            ("gone at the source (kept)", done.gone - done.removed),
            ("failed", len(done.failed)),
        )
        if count
    ]
    ds = done.dataset
    fetched = f"; {human_bytes(done.fetched_bytes)} fetched" if done.fetched_bytes else ""
    emit(done.to_json(), as_json, f"{ds.label} is {ds.commit[:12]}: {', '.join(parts) or 'no rows'}{fetched}")
