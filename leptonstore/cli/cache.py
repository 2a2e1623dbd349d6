"""lepton cache stats | clear | warm; and --cache of the commands that read through it."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import click

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.cache.directory import usual_place
from leptonstore.cli.runtime import Size, emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.errors import LeptonError, NotFound

_F = TypeVar("_F", bound=Callable[..., Any])
NO_CACHE = "none"  # as $LEPTON_CACHE: commands read through no cache unless told to


def cache_option(command: _F) -> _F:
    """--cache."""
    text = "The cache's directory (default: $LEPTON_CACHE, else /dev/shm/lepton-<user id>)."
    return click.option("--cache", "folder", metavar="DIR", type=click.Path(path_type=Path), help=text)(command)


def cache_path(given: Path | None) -> Path:
    """--cache, else $LEPTON_CACHE, else this user's place in RAM."""
    named = os.environ.get("LEPTON_CACHE")
    return given or (Path(named) if named and named != NO_CACHE else usual_place())


class CacheChoice(NamedTuple):
    """A hot cache that a command reads through: its directory, and its budget where one was given."""

    path: Path
    budget_bytes: int | None


def read_cache_options(command: _F) -> _F:
    """--cache, --cache-size and --no-cache of a command that reads a dataset; `cache_choice` takes them."""
    where = (
        "Read through the hot cache in DIR, which is made where there is none (default: $LEPTON_CACHE, "
        "else /dev/shm/lepton-<user id> if there is one, as `lepton cache warm` makes it; LEPTON_CACHE=none: none)."
    )
    size = "The cache's budget (default: as it is; a new one: 1/4 of the free space)."
    for option in (
        click.option("--no-cache", is_flag=True, help="Read around any cache."),
        click.option("--cache-size", type=Size(), metavar="SIZE", help=size),
        click.option("--cache", "folder", metavar="DIR", type=click.Path(path_type=Path), help=where),
    ):
        command = option(command)
    return command


def cache_choice(folder: Path | None, cache_size: int | None, no_cache: bool) -> CacheChoice | None:
    """The cache to read through: one that was named, or one that is there. Raises click.UsageError."""
    if no_cache and (folder is not None or cache_size is not None):
        raise click.UsageError("give --cache (or --cache-size) or --no-cache, not both")
    path, environment = cache_path(folder), os.environ.get("LEPTON_CACHE")
    given = folder is not None or cache_size is not None
    if no_cache or (environment == NO_CACHE and not given):
        return None
    return CacheChoice(path, cache_size) if given or environment or (path / "table").exists() else None


@contextlib.contextmanager
def cache_warnings() -> Iterator[None]:
    """Inside, what a cache warns of is one line on stderr, as all that commands say."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if str(message).startswith("hot cache "):
                click.echo(f"lepton: warning: {message}", err=True)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = tell
        yield


def _open(path: Path, budget_bytes: int | None = None, ram_only: bool = False) -> HotCache:
    """Raises NotFound when there is none and no budget for one, LeptonError when it cannot be used."""
    if budget_bytes is None and not (path / "table").exists():
        raise NotFound(
            f"there is no hot cache at {path}: make one with `lepton cache warm`, or name its place with --cache"
        )
    problems: list[str] = []
    cache = HotCache(path, budget_bytes, ram_only, problems.append)
    if not cache.usable:
        raise LeptonError(problems[0])
    return cache


@click.group("cache")
def command() -> None:
    """Show, empty or fill this host's hot cache.

    It keeps decoded pages and values in RAM (or on NVMe), once for all processes of a user. All take --cache and --json.
    Exit code 3: there is no cache there.

    \b
    Example:
      lepton cache warm photos --size 20GiB
      lepton cache stats
      lepton cache clear
    """


@command.command("stats")
@cache_option
@json_option
def stats(folder: Path | None, as_json: bool) -> None:
    """Show what the cache holds, and how often it was of use.

    \b
    Example:
      lepton cache stats --json
    """
    path = cache_path(folder)
    with _open(path) as cache:
        found = cache.stats()

    def text() -> None:
        asked = found["hits"] + found["misses"]
        share = f" ({found['hits'] / asked:.1%})" if asked else ""
        held = found["linked_bytes"] + found["pinned_bytes"] + found["index_bytes"]
        pinned = (
            f", of which {human_bytes(found['pinned_bytes'])} are evicted and still in use"
            if found["pinned_bytes"]
            else ""
        )
        click.echo(f"place         {path}")
        click.echo(f"held          {human_bytes(held)} of {human_bytes(found['budget_bytes'])}{pinned}")
        click.echo(f"values        {found['values']:,} in {found['segments']:,} segments")
        click.echo(f"hits          {found['hits']:,} of {asked:,}{share}")
        click.echo(
            f"kept          {found['puts']:,} values, {human_bytes(found['put_bytes'])}; {found['refused']:,} not wanted"
        )
        click.echo(f"evicted       {human_bytes(found['evicted_bytes'])}, {human_bytes(found['moved_bytes'])} moved")
        click.echo(f"plans         {found['plans']:,} live")

    emit({"cache": str(path), **found}, as_json, text)


@command.command("clear")
@cache_option
@json_option
def clear(folder: Path | None, as_json: bool) -> None:
    """Drop every value. Processes that use the cache go on; what they still look at is freed when they let go.

    \b
    Example:
      lepton cache clear
    """
    path = cache_path(folder)
    with _open(path) as cache:
        freed = cache.clear()
        pinned = cache.stats()["pinned_bytes"]
    rest = f"; {human_bytes(pinned)} follow when their readers let go" if pinned else ""
    told = {"cache": str(path), "freed_bytes": freed, "pinned_bytes": pinned}
    emit(told, as_json, f"{human_bytes(freed)} freed{rest}")


@command.command("warm")
@click.argument("name")
@store_option
@cache_option
@click.option(
    "--size",
    type=Size(),
    metavar="SIZE",
    help="The cache's budget (default: as it is; a new one: 1/4 of the free space).",
)
@click.option(
    "--column", "columns", multiple=True, metavar="NAME", help="Only this column (may be given more than once)."
)
@json_option
def warm(
    name: str, store: str | None, folder: Path | None, size: int | None, columns: tuple[str, ...], as_json: bool
) -> None:
    """Read dataset NAME[@REF] into the cache, up to its size. An encrypted store takes a directory in RAM only.

    \b
    Example:
      lepton cache warm mnist --size 2GiB
    """
    from leptonstore.cache.chunks import CachedChunks
    from leptonstore.dataset import Dataset
    from leptonstore.dataset.cached import usual_budget_bytes
    from leptonstore.store.walk import walk

    path = cache_path(folder)
    if size is None and not (path / "table").exists():
        size = usual_budget_bytes(path)
    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        dataset.fields(columns)  # an unknown column is named before anything is read
        with (
            _open(path, size, ram_only=opened.encrypted) as cache,
            progress(dataset.name, None, "values") as tell,
        ):
            before = cache.stats()
            room = before["budget_bytes"] * limits.CACHE_WANTED_SHARE
            put = whole = there = 0
            chunks = CachedChunks(opened, cache, opened.hot_names)
            for chunk in walk(opened, dataset.commit):
                if chunk.error is not None:
                    raise chunk.error
                if chunk.what not in ("node", "page", "value") or (columns and chunk.column not in ("", *columns)):
                    continue
                if cache.get(chunks.key(chunk.digest)) is not None:
                    there += 1
                    continue
                data = opened.get(chunk.digest)
                whole += len(data)
                if whole > room or not cache.put(chunks.key(chunk.digest), data):
                    break
                put += 1
                tell(put)
            else:
                room = 0
            full = bool(room)
            held = cache.stats()
    put_bytes = held["put_bytes"] - before["put_bytes"]
    told = {
        "dataset": dataset.name,
        "commit": dataset.commit,
        "cache": str(path),
        "put": put,
        "there": there,
        "put_bytes": put_bytes,
        "complete": not full,
    }
    rest = "; the rest did not fit: give a larger --size" if full else ""
    emit(told, as_json, f"{put:,} values put ({human_bytes(put_bytes)}), {there:,} were there{rest}")
