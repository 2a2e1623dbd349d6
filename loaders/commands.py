"""`lepton receipt` and `lepton doctor loader`: arguments in, text or JSON out. The work is in loaders.verify and loaders.doctor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from leptonstore.cli.cache import cache_choice, cache_warnings, read_cache_options
from leptonstore.cli.runtime import emit, json_option, open_store, progress, status, store_option
from leptonstore.cli.table import json_value, table_lines
from leptonstore.dataset import Dataset
from leptonstore.dataset.feed import load_function
from leptonstore.errors import BadInput, MissingExtra, RefMissing
from loaders.receipt import Origin, Receipt
from loaders.source import ColumnSource
from loaders.verify import Replay

if TYPE_CHECKING:
    import pyarrow as pa

    from leptonstore.store import Store
    from loaders.doctor import Diagnosis

_F = TypeVar("_F", bound=Callable[..., Any])
NOTES_SHOWN = 20
HEAD_DIGITS_MIN = 8  # of a head that is compared: fewer are found by trying

_files = click.argument("files", metavar="RECEIPT…", nargs=-1, required=True, type=click.Path(path_type=Path))


def _view_options(command: _F) -> _F:
    """--split and --where: which rows the loader read, when it was given a view."""
    for option in (
        click.option("--where", metavar="CONDITION", help="The loader read the rows that this holds for."),
        click.option("--split", metavar="NAME", help="The loader read this split."),
    ):
        command = option(command)
    return command


@click.group("receipt")
def receipt() -> None:
    """Check what a loader handed out, and have any batch again.

    A receipt is what `loader.receipt().save(FILE)` wrote. Several RECEIPTs are those of one run, each of which goes on where the one
    before ends. All take --json. Exit codes: 0 it holds, 2 no receipt, or of other data, 3 no such version here, 4 damaged, or it does
    not hold, 7 of a newer version.

    \b
    Example:
      lepton receipt show run.receipt.json
      lepton receipt verify run.receipt.json
      lepton receipt replay run.receipt.json --epoch 3 --step 1200 --values
    """


@receipt.command("show")
@_files
@json_option
def _show(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what RECEIPT is of.

    Data, seed and order, epochs, and the rows that were left out or replaced.

    \b
    Example:
      lepton receipt show run.receipt.json
    """
    told = _load(files)

    def text() -> None:
        rows = sum(segment.stop - segment.start for segment in told.segments)
        click.echo(f"{told.steps:,} steps; here {told.steps - told.base_steps:,} with {rows:,} rows")
        click.echo(f"head  {told.head.hex()}")
        if told.base_steps:
            click.echo(f"goes on after step {told.base_steps:,}, head {told.base_head.hex()}")
        for origin in told.origins:
            order = " ".join(f"{key}={value}" for key, value in origin.order.items() if key != "name")
            click.echo(f"{origin}, {origin.rows:,} rows, seed {origin.seed}, order {origin.order.get('name')} {order}")
            for segment in told.segments:
                if segment.origin.key == origin.key:
                    rest = "" if segment.stop == segment.length else f" of {segment.length:,}"
                    click.echo(f"  {segment}{rest}, global batch {segment.global_batch:,}")
        for epoch, start, stop in told.skips:
            click.echo(f"left out on request: epoch {epoch}, positions {start:,}-{stop:,}")
        for note in told.notes[:NOTES_SHOWN]:
            of = f" column {note.column!r}" if note.column else ""
            click.echo(
                f"{note.action}: epoch {note.epoch}, position {note.position:,}, row {note.row:,}{of}: {note.reason}"
            )
        more = len(told.notes) - NOTES_SHOWN + told.notes_left_out
        if more > 0:
            click.echo(f"and {more:,} more rows that were left out or replaced")

    emit(told.to_dict(), as_json, text)


@receipt.command("verify")
@_files
@click.option("--head", metavar="HEX", help="Also: it ends with this head, as a checkpoint or a log kept it.")
@click.option("--data", is_flag=True, help="Also read every row that was handed out, and check its bytes.")
@_view_options
@store_option
@json_option
def _verify(
    files: tuple[Path, ...],
    head: str | None,
    data: bool,
    split: str | None,
    where: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Compute RECEIPT's chain again.

    From the versions in the store, the seed and the order. It says that the receipt holds, or the first steps that differ. The chain
    names commits, and a commit binds every byte of its data: --data reads the rows, and so finds bytes that were damaged since.

    \b
    Example:
      lepton receipt verify run.receipt.json
      lepton receipt verify first.json second.json --data --head 5b1f0a77
    """
    told = _load(files)
    if head is not None and not (len(head) >= HEAD_DIGITS_MIN and told.head.hex().startswith(head.lower())):
        raise BadInput(
            f"the receipt ends with head {told.head.hex()}, not {head}: it is of another run, or of another moment of this one"
        )
    with open_store(store) as opened:
        versions = _Versions(opened, split, where)
        replay = Replay(told, versions.source)
        with progress("verify", told.steps - told.base_steps, "steps") as done:
            checked = replay.verify(done)
        read = None
        if data:
            with progress("read", None) as done:
                read = replay.read_data(versions.read, done)
    begun = f" (after step {told.base_steps:,}, which this receipt does not reach back to)" if told.base_steps else ""
    text = f"OK: {checked.steps:,} steps, {checked.rows:,} rows{begun}, head {told.head.hex()}"
    if read is not None:
        text += f"\n    {read:,} different rows were read, and are what was stored"
    value = {"ok": True, "head": told.head.hex(), "steps": checked.steps, "rows": checked.rows, "read_rows": read}
    emit({**value, "base_steps": told.base_steps}, as_json, text)


@receipt.command("replay")
@_files
@click.option("--epoch", type=click.IntRange(min=0), required=True, help="The epoch, from 0.")
@click.option("--step", type=click.IntRange(min=0), required=True, help="The step in the epoch, from 0.")
@click.option("--values", is_flag=True, help="Print the rows, not only their numbers.")
@click.option("--column", "columns", multiple=True, help="Only this column; may be given several times.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.parquet", help="Write the rows to a file.")
@_view_options
@store_option
@json_option
def _replay(
    files: tuple[Path, ...],
    epoch: int,
    step: int,
    values: bool,
    columns: tuple[str, ...],
    out: Path | None,
    split: str | None,
    where: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Give a batch again.

    The row numbers of one step, of all ranks together; with --values or --out the rows.

    \b
    Example:
      lepton receipt replay run.receipt.json --epoch 3 --step 1200
      lepton receipt replay run.receipt.json --epoch 3 --step 1200 --column text --values
      lepton receipt replay run.receipt.json --epoch 3 --step 1200 --out batch.parquet
    """
    told = _load(files)
    with open_store(store) as opened:
        versions = _Versions(opened, split, where)
        segment, found = Replay(told, versions.source).step(epoch, step)
        stop = found.start + len(found.rows)
        notes = [note for note in told.notes if note.epoch == epoch and found.start <= note.position < stop]
        table = versions.read(segment.origin, found.rows, columns) if values or out else None
    if out is not None and table is not None:
        _write(table, out)
    rows = found.rows.tolist()
    value = {
        "dataset": segment.origin.dataset,
        "commit": segment.origin.commit,
        "epoch": epoch,
        "step": step,
        "start": found.start,
        "rows": rows,
        "notes": [asdict(note) for note in notes],
    }
    if values and table is not None:
        value["values"] = json_value(table.to_pylist())

    def text() -> None:
        if values and table is not None:
            for line in table_lines(table.schema, [list(row.values()) for row in table.to_pylist()]):
                click.echo(line)
        else:
            click.echo("\n".join(map(str, rows)))
        for note in notes:
            click.echo(f"{note.action}: position {note.position:,}, row {note.row:,}: {note.reason}", err=True)

    emit(value, as_json, text)


class _Workers(click.IntRange):
    """A number of threads, or "auto"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


class _Versions:
    """The versions that a receipt names, in a store, narrowed as the loader's view was."""

    def __init__(self, store: Store, split: str | None, where: str | None) -> None:
        self._store, self._split, self._where = store, split, where
        self._views: dict[tuple[object, ...], Dataset] = {}

    def view(self, origin: Origin) -> Dataset:
        if origin.key not in self._views:
            try:
                view = Dataset.open(self._store, f"{origin.dataset}@{origin.commit}")
                _ = view.commit_object
            except RefMissing as error:
                raise RefMissing(
                    f"the version of the receipt ({origin}) is not in this store: {error}; "
                    "give the store that the loader read (--store), or pull the version"
                ) from None
            if self._split is not None:
                view = view.split(self._split)
            if self._where is not None:
                view = view.filter(self._where)
            self._views[origin.key] = view
        return self._views[origin.key]

    def source(self, origin: Origin) -> ColumnSource:
        return ColumnSource(self.view(origin), None, 0)

    def read(self, origin: Origin, rows: Any, columns: tuple[str, ...] = ()) -> pa.Table:
        return self.view(origin).take(rows, columns or None)


def _load(files: tuple[Path, ...]) -> Receipt:
    return reduce(Receipt.then, [Receipt.load(path) for path in files])


def _write(table: pa.Table, out: Path) -> None:
    import pyarrow.parquet as pq

    if out.suffix != ".parquet":
        raise click.UsageError(f"--out writes Parquet: name the file {out.with_suffix('.parquet')}")
    pq.write_table(table, out)


@click.command("loader")
@click.argument("name")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Rows of a batch.")
@click.option("--shuffle", is_flag=True, help="In shuffled order.")
@click.option("--columns", metavar="A,B", help="Read these columns (default: all).")
@click.option(
    "--workers",
    type=_Workers(0),
    metavar="N|auto",
    default=0,
    show_default=True,
    help='num_workers: threads, or "auto".',
)
@click.option("--transform", metavar="MODULE:NAME", help="Called with each batch.")
@click.option("--transforms", metavar="MODULE:NAME", help="{column: [transform, …]}, or a function that gives it.")
@click.option(
    "--step-ms", type=click.FloatRange(min=0), default=0.0, help="How long a training step takes (default: no time)."
)
@click.option("--seconds", type=click.FloatRange(min=0.05), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--split", metavar="NAME", help="Only this split.")
@store_option
@read_cache_options
@json_option
def doctor(
    name: str,
    batch_size: int,
    shuffle: bool,
    columns: str | None,
    workers: Any,
    transform: str | None,
    transforms: str | None,
    step_ms: float,
    seconds: float,
    split: str | None,
    store: str | None,
    folder: Path | None,
    cache_size: int | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Find what slows a loader over NAME[@REF] down, and the change that helps most.

    It makes the loader, measures it stage by stage, tries what fits (threads, a larger arena, the hot cache, a block-wise order), and names
    the one change that was the fastest, with the figures before and after. That takes about ten measurements.

    \b
    Example:
      lepton doctor loader mnist --batch-size 256 --shuffle
      lepton doctor loader photos --transforms mine.data:transforms --workers 2 --step-ms 120
    """
    if find_spec("torch") is None:
        raise MissingExtra("loading batches", "train", "torch")
    from loaders.doctor import examine

    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "num_workers": workers}
    if columns is not None:
        options["columns"] = [one.strip() for one in columns.split(",")]
    if transform is not None:
        options["transform"] = load_function(transform)
    if transforms is not None:
        options["transforms"] = _mapping(transforms)
    choice = cache_choice(folder, cache_size, no_cache)
    with open_store(store) as opened, cache_warnings(), status(f"doctor {name}") as told:
        dataset = Dataset.open(opened, name)
        if split is not None:
            dataset = dataset.split(split)
        if choice is not None:
            dataset = dataset.cached(*choice)
        try:
            found = examine(dataset, options, step_ms / 1e3, seconds, lambda what: told(lambda: what))
        except ValueError as error:
            raise BadInput(str(error)) from None
    emit(found.to_dict(), as_json, lambda: _tell(found))


def _tell(found: Diagnosis) -> None:
    for label, pace in (
        ("the same batch again", found.floor),
        ("first batches", found.first),
        ("as it is", found.steady),
        ("in one thread", found.alone),
    ):
        click.echo(f"{label:<22}{pace.samples_s:>14,.0f} samples/s{pace.batch_s * 1e3:>12.3f} ms a batch")
    total = sum(found.alone.stages.values())
    for stage, took in sorted(found.alone.stages.items(), key=lambda one: -one[1]):
        click.echo(f"  {stage:<20}{took / total:>14.0%}{took * 1e3:>22.3f} ms")
    for column, took in found.columns.items():
        click.echo(f"  reading {column:<12}{took * 1e3:>36.3f} ms")
    for trial in found.trials:
        told = trial.error or f"{trial.samples_s:,.0f} samples/s, {trial.gain:.2f} x"
        click.echo(f"tried {trial.name}: {told}")
    if found.change is not None:
        before, after = found.steady.samples_s, found.change.samples_s
        click.echo(f"before {before:,.0f} samples/s, after {after:,.0f} samples/s: {found.change.gain:.1f} x")
    click.echo(found.verdict)


def _mapping(reference: str) -> dict[str, Any]:
    """What DataLoader(transforms=…) takes: "module:name" of it, or of a function without arguments that gives it."""
    module, _, name = reference.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"cannot load {reference!r} ({error}); write package.module:name") from None
    made = found() if callable(found) else found
    if not isinstance(made, dict):
        raise BadInput(f"{reference!r} is no {{column: [transform, …]}}, but a {type(made).__name__}")
    return made
