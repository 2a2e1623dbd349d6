"""What all commands share: the store option, JSON or text output, progress, errors -> exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from leptonstore import errors
from leptonstore.cli.interrupt import EXIT_INTERRUPTED, INTERRUPTED
from leptonstore.cli.secret import given_secret, secret_options
from leptonstore.quantities import human_bytes as human_bytes  # commands have it from here
from leptonstore.quantities import size_of
from leptonstore.store import Store

EXIT_OK, EXIT_ERROR = 0, 1
# The first class that fits counts.
EXIT_CODES: tuple[tuple[type[errors.LeptonError], int], ...] = (
    (errors.WrongKey, 10),
    (errors.BadInput, 2),
    (errors.NotFound, 3),
    (errors.Damaged, 4),
    (errors.Conflict, 5),
    (errors.StoreFull, 6),
    (errors.NotPermitted, 9),
    (errors.FormatTooNew, 7),
    (errors.MissingExtra, 8),
    (errors.TierUnavailable, 11),
    (errors.TooBusy, 11),
    (errors.RankLost, 12),
    (errors.ClusterLost, 13),
    (errors.Stopped, EXIT_INTERRUPTED),
)
DEFAULT_STORE = ".lepton"
_F = TypeVar("_F", bound=Callable[..., Any])


def store_url(given: str | None) -> str:
    """--store, else $LEPTON_STORE, else ./.lepton."""
    return given or os.environ.get("LEPTON_STORE") or DEFAULT_STORE


def open_store(given: str | None) -> Store:
    """The store that a command works on. Says on stderr when a pack is damaged, and goes on."""
    store = Store.open(store_url(given), unlock=given_secret())
    for pack, why in store.damaged_packs.items():
        click.echo(f"lepton: warning: pack {pack} is damaged ({why}); run `lepton check --read-data`", err=True)
    return store


def store_option(command: _F) -> _F:
    """--store, and what opens it when it is encrypted."""
    text = "The store (default: $LEPTON_STORE, else ./.lepton)."
    return click.option("--store", metavar="PATH|URL", help=text)(secret_options(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")


def emit(value: dict[str, Any], as_json: bool, text: str | Callable[[], None]) -> None:
    """Print a result: one line of JSON (its values as `json_value` has them), or text for people."""
    if as_json:
        from leptonstore.cli.table import json_value  # here: most runs print no JSON

        click.echo(json.dumps(json_value(value), ensure_ascii=False, allow_nan=False, default=str))
    elif callable(text):
        text()
    elif text:
        click.echo(text)


class Size(click.ParamType):
    """A number of bytes, as people write it (quantities.size_of)."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        try:
            return size_of(str(value))
        except errors.BadInput as error:
            self.fail(str(error), param, ctx)


@contextlib.contextmanager
def progress(
    label: str, total: int | None, unit: str = "rows", advance: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar on stderr when that is a terminal, silence otherwise.

    Yields a function of how much is done in all, or with `advance` how much was done since its last call.
    """
    if not sys.stderr.isatty():
        yield lambda done: _raise_interrupt()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    # Drawn by whoever reports, at most ten times a second: a thread that draws would stand in the way of a fork.
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, auto_refresh=False
    ) as bar:
        task, drawn = bar.add_task(label, total=total), 0.0
        bar.refresh()

        def tell(done: int) -> None:
            nonlocal drawn
            _raise_interrupt()
            if advance:
                bar.advance(task, done)
            else:
                bar.update(task, completed=done)
            if time.monotonic() - drawn > 0.1:
                drawn = time.monotonic()
                bar.refresh()

        yield tell


@contextlib.contextmanager
def status(label: str) -> Iterator[Callable[[Callable[[], str]], None]]:
    """A line on stderr, when that is a terminal, for work of which nobody knows how much there is.

    Yields a function that is given, as often as one likes, what makes the text.
    """
    if not sys.stderr.isatty():
        yield lambda text: _raise_interrupt()
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as line:
        task, drawn = line.add_task(label, total=None), 0.0
        line.refresh()

        def tell(text: Callable[[], str]) -> None:
            nonlocal drawn
            _raise_interrupt()
            if time.monotonic() - drawn > 0.1:
                drawn = time.monotonic()
                line.update(task, description=f"{label}: {text()}")
                line.refresh()

        yield tell


class ReaderGone(Exception):
    """The reader of our output has gone (`lepton log | head`): nothing is left to say. No OSError, for which click would exit with 1."""


_interrupt = threading.Event()


def _interrupted(number: int, frame: object) -> None:
    """Where Python cannot pass an exception on (a weak reference's callback, a destructor) it drops it, and the interrupt
    with it: so it is remembered, and raised again by the next report of progress."""
    _interrupt.set()
    raise KeyboardInterrupt


def _raise_interrupt() -> None:
    if _interrupt.is_set():
        raise KeyboardInterrupt


def run(group: click.Group, arguments: list[str]) -> int:
    """Run the command line; returns the exit code. One line on stderr for every error that has a name."""
    debug = "--debug" in arguments[:1]
    show = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, errors.LeptonWarning):
            click.echo(f"lepton: warning: {message}", err=True)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = tell
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, and jobs in the background of a shell
            signal.signal(number, _interrupted)
    try:
        result = group.main(args=arguments, prog_name="lepton", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_OK
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(INTERRUPTED, err=True)
        return EXIT_INTERRUPTED
    except (BrokenPipeError, ReaderGone):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except errors.LeptonError as error:
        if debug:
            raise
        click.echo(f"lepton: {error}", err=True)
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_ERROR)
    except MemoryError as error:
        if debug:
            raise
        click.echo(f"lepton: out of memory{f' ({error})' if str(error) else ''}; what was stored is intact", err=True)
        return EXIT_ERROR
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"lepton: {place}{error.strerror or error}; check the path and its permissions", err=True)
        return EXIT_ERROR
    except BaseException:
        if debug or not _interrupt.is_set():
            raise
        # What Python and libraries make of an interrupt: a RuntimeError where a class is being made, a panic of Daft's.
        click.echo(INTERRUPTED, err=True)
        return EXIT_INTERRUPTED
