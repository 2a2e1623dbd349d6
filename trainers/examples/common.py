"""What the examples share: their options, a store, a configuration beside the program, lines of progress on stderr, and the check at the
end that the result is better than a baseline which is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from leptonstore.store import Store

T = TypeVar("T")


def options(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--workdir, --store and --quick, which every example of a field has: the function gets `workdir`, `place` and `quick`."""

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--quick", is_flag=True, help="On less data, in some seconds."),
            click.option(
                "--store",
                "place",
                type=Path,
                metavar="DIR",
                help="The store; several examples may share one.  [default: WORKDIR/store]",
            ),
            click.option(
                "--workdir",
                type=Path,
                metavar="DIR",
                default=Path(f"lepton-{name}"),
                show_default=True,
                help="Files and pages go here.",
            ),
        ):
            function = option(function)
        return function

    return decorated


@contextmanager
def store_in(workdir: Path, place: Path | None = None) -> Iterator[Store]:
    """The store at `place` (default: `workdir/store`), made where there is none."""
    from leptonstore.store import Store
    from leptonstore.store.config import DOCUMENT

    place = place or workdir / "store"
    with Store.open(place) if (place / DOCUMENT).exists() else Store.create(place) as store:
        yield store


def step(name: str, work: Callable[[], T], tell: Callable[[T], str]) -> T:
    """Do one thing, time it, and say on stderr in one line what came out."""
    click.echo(f"{name:<10}", nl=False, err=True)
    begin = time.perf_counter()
    result = work()
    click.echo(f"{time.perf_counter() - begin:>7.1f} s  {tell(result)}", err=True)
    return result


def configuration(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of NAME.toml beside this file, then dotted ones that are not None: what `lepton train --config --set` makes of them."""
    from trainers.config_tree import read_toml

    given = {key: value for key, value in values.items() if value is not None}
    return {**read_toml(Path(__file__).with_name(f"{name}.toml")), **given}


def train(store: Store, dataset: str, run: str, values: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """`lepton train DATASET --run-name RUN`, with its progress bar where stderr is a terminal. options: of trainers.run.run_train.

    An example may be run again: the run is its own, and begins anew.
    """
    from trainers.commands_progress import training_progress
    from trainers.run import run_train

    with training_progress(f"train {dataset}") as (on_step, on_epoch):
        return run_train(store, dataset, values, run=run, replace=True, on_step=on_step, on_epoch=on_epoch, **options)


def told(result: Mapping[str, Any]) -> str:
    """What a run came to, in one line."""
    last = result["history"][-1]
    figures = [f"{name.removeprefix('val_')} {last[name]:.4f}" for name in last if name.startswith("val_")]
    return f"{result['steps']:,} steps; held out: {', '.join(figures)}"


def better(what: str, found: float, baseline: float, of: str, lower: bool = False) -> str:
    """One line that says how good the result is, and what without learning is as good. Raises ClickException when that is better."""
    line = f"{what} {found:.4g} (baseline {baseline:.4g}: {of})"
    if not (found < baseline if lower else found > baseline):
        raise click.ClickException(f"nothing was learnt: {line}")
    return line
