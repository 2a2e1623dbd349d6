"""lepton process"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.cli.runtime import Size, emit, human_bytes, json_option, open_store, store_option
from leptonstore.cli.runtime import progress as bar
from leptonstore.errors import NotFound, listed

if TYPE_CHECKING:
    import pyarrow as pa

    from leptonstore.dataset import Dataset
    from leptonstore.process.pipeline import Pipeline, Progress, Result
    from leptonstore.process.plan import Plan

_RUNNERS = ("native", "ray")
_ON_ERROR = ("raise", "quarantine")


@click.group("process")
def command() -> None:
    """Run pipelines: operations on the rows of a dataset that make a new version.

    A pipeline is a TOML file: what it reads, the operations in order, where the result goes. docs/processing.md explains them. All take
    --json.

    \b
    Example:
      lepton process show
      lepton process plan clean.toml
      lepton process run clean.toml
    """


def _changes(command: Any) -> Any:
    """What `run` and `plan` may say other than the file does."""
    for option in (
        click.option(
            "--on-error", type=click.Choice(_ON_ERROR), help="What becomes of a row that an operation fails on."
        ),
        click.option("--into", metavar="NAME[@BRANCH]", help="Where the result goes, instead of what the file says."),
        click.option("--dataset", metavar="NAME[@REF]", help="What is read, instead of what the file says."),
        click.argument("file", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


def _pipeline(file: Path, dataset: str | None, into: str | None, on_error: str | None) -> Pipeline:
    from leptonstore.process.pipeline import Pipeline

    given = {"dataset": dataset, "into": into, "on_error": on_error}
    return Pipeline.from_toml(file).with_changes(**{key: value for key, value in given.items() if value is not None})


@command.command("run")
@_changes
@click.option("--runner", type=click.Choice(_RUNNERS), default="native", show_default=True, help="Where it runs.")
@click.option("--address", help="Of a Ray cluster, such as ray://head:10001 (default: Ray on this machine).")
@click.option("--workers", type=click.IntRange(1), help="How many pieces of work are done at once.")
@click.option("--no-memo", is_flag=True, help="Compute everything again, and keep nothing.")
@click.option("--author", default="", help="Who the log says it was (default: the user).")
@store_option
@json_option
def run(
    file: Path,
    dataset: str | None,
    into: str | None,
    on_error: str | None,
    runner: str,
    address: str | None,
    workers: int | None,
    no_memo: bool,
    author: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Run the pipeline in FILE and commit its result.

    What was worked out for a row is kept on this machine: run it again after a change, and only rows that changed are worked on. With
    nothing new nothing is written. Interrupted at any moment, nothing is visible but what was before; run it again to go on.

    Exit codes: 0 done, 2 the file, an operation or a row is wrong, 3 no such dataset, 5 somebody else wrote the branch meanwhile, 6 disk
    full, 8 an optional part is not installed, 11 a tier does not answer, 13 no cluster answers, or it went away.

    \b
    Example:
      lepton process run clean.toml
      lepton process run clean.toml --on-error quarantine --into photos.clean
      lepton process run clean.toml --runner ray --address ray://head:10001
    """
    from leptonstore.process.engine import Runner

    pipeline = _pipeline(file, dataset, into, on_error)
    with open_store(store) as opened, passes() as tell:
        start = time.perf_counter()
        result = pipeline.run(opened, Runner(runner, address, workers), tell, memo=not no_memo, author=author)
        body = _told(result) | {"seconds": round(time.perf_counter() - start, 3)}
    emit(body, as_json, lambda: _print_result(result, body["seconds"]))


@contextlib.contextmanager
def passes() -> Iterator[Progress]:
    """A bar for each pass."""
    with contextlib.ExitStack() as stack:
        current, draw = "", None

        def tell(what: str, done: int, total: int) -> None:
            nonlocal current, draw
            if what != current or draw is None:
                stack.close()
                current, draw = what, stack.enter_context(bar(what, total))
            draw(done)

        yield tell


def _told(result: Result) -> dict[str, Any]:
    return {
        "dataset": result.dataset.name,
        "branch": result.dataset.ref,
        "commit": result.dataset.commit,
        "written": result.written,
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "dropped": result.dropped(),
        "operations": list(result.counts),
        "findings": len(result.findings),
        "reused": result.reused,
        "computed": result.computed,
    }


def _print_result(result: Result, seconds: float) -> None:
    from leptonstore.dataset.refs import MAIN
    from leptonstore.process import findings

    made = result.dataset
    if not result.written:
        click.echo(f"nothing new: {made.name}@{made.ref} {made.commit[:12]} is the result already")
    else:
        click.echo(f"{made.name}@{made.ref} {made.commit[:12]}")
    click.echo(f"rows      {result.rows_in:,} in, {result.rows_out:,} out")
    for reason, rows in result.dropped().items():
        click.echo(f"  left out {rows:>10,}  {reason}")
    if len(result.findings):
        click.echo(
            f"findings  {len(result.findings):,} in {made.name}.findings{'' if made.ref == MAIN else f'@{made.ref}'}"
        )
        for check, rows in findings.counts(result.findings).items():
            click.echo(f"  {rows:>19,}  {check}")
    elif any(one["operation"].startswith("check.") for one in result.counts):
        click.echo("findings  none")
    if result.written:
        # A row counts once for each chain of operations, so these are more than there are rows.
        click.echo(
            f"work      {result.computed:,} results computed, {result.reused:,} found in the memo, {seconds:.1f} s"
        )
        click.echo(f"look      lepton report {made.name if made.ref == MAIN else made.label}")


@command.command("plan")
@_changes
@store_option
@json_option
def plan(
    file: Path, dataset: str | None, into: str | None, on_error: str | None, store: str | None, as_json: bool
) -> None:
    """Show what `lepton process run` would do with the pipeline in FILE.

    The passes over the rows, the columns after each operation, and how many rows are in the memo already. What is wrong with the file or
    with the rows that an operation gets is found here. Nothing is written.

    \b
    Example:
      lepton process plan clean.toml
    """
    from leptonstore.process.memo import Memo

    pipeline = _pipeline(file, dataset, into, on_error)
    with open_store(store) as opened:
        made = pipeline.plan(opened)
        chains = made.memoised(Memo.of(opened))
        body = {"into": "@".join(pipeline.target())} | _plan_json(made, chains)
        emit(body, as_json, lambda: _print_plan(made, chains, body["into"]))


def _plan_json(made: Plan, chains: list[dict[str, Any]]) -> dict[str, Any]:
    from leptonstore.format.schema import schema_to_json

    return {
        "dataset": made.dataset.name,
        "commit": made.dataset.commit,
        "rows": len(made.dataset),
        "passes": len(made.passes) + 1,
        "chains": chains,
        "operations": made.recipes(),
        "schemas": [schema_to_json(schema) for schema in made.schemas],
        "identity": list(made.identity),
        "keyed": made.keyed,
    }


def _kind(field: pa.Field) -> str:
    from leptonstore.dataset.schema import semantic_of, shown_type

    means = semantic_of(field)
    return shown_type(field.type) + (f" ({means})" if means else "")


def _print_plan(made: Plan, chains: list[dict[str, Any]], into: str) -> None:
    count = len(made.passes) + 1
    click.echo(
        f"reads {made.dataset.label} {made.dataset.commit[:12]}: {len(made.dataset):,} rows, in {count} pass{'es' if count > 1 else ''}"
    )
    shown: dict[str, str] = {}
    for number, schema in enumerate(made.schemas):
        title = "" if not number else f"{number}  {made.operations[number - 1].name}"
        now = {field.name: _kind(field) for field in schema}
        changed = [f"{name} {kind}" for name, kind in now.items() if shown.get(name) != kind]
        changed += [f"{name} is gone" for name in shown if name not in now]
        click.echo(f"{title:<32} {listed(changed, '(the same columns)')}")
        shown = now
    for one in chains:
        named = ", ".join(one["operations"])
        known = one["known"]
        said = "known when it runs" if known is None else f"{known:,} of {one['rows']:,} rows are in the memo"
        click.echo(f"pass {one['pass']}  {named}: {said}")
    failed = "ends the run" if made.on_error == "raise" else "is left out, with a finding that says why"
    click.echo(f"writes {into}; a row that an operation fails on {failed}")


@command.command("show")
@click.argument("what", required=False, metavar="[OPERATION | NAME[@REF]]")
@store_option
@json_option
def show(what: str | None, store: str | None, as_json: bool) -> None:
    """List the operations that there are, explain one, or show those that made the version NAME[@REF].

    \b
    Example:
      lepton process show
      lepton process show image.resize
      lepton process show photos.train
    """
    from leptonstore.process.registry import OPERATIONS

    if what is None or what in OPERATIONS or what == _FUNCTION:
        told = [_operation(name) for name in ([what] if what else [*sorted(OPERATIONS), _FUNCTION])]
        emit({"operations": told}, as_json, lambda: _print_operations(told, whole=what is not None))
        return
    from leptonstore.dataset import Dataset

    with open_store(store) as opened:
        try:
            found = Dataset.open(opened, what)
        except NotFound as error:
            near = get_close_matches(what, OPERATIONS, 1)
            raise NotFound(f"{error}; did you mean the operation {near[0]!r}?") from None if near else error
        made = _made_by(found)
        lineage = made.commit_object.lineage
        body = {"dataset": made.name, "commit": made.commit, "lineage": lineage}
        emit(body, as_json, lambda: _print_lineage(made))


_FUNCTION = "package.module:function"


def _operation(name: str) -> dict[str, Any]:
    from leptonstore.process.checks.check import Check
    from leptonstore.process.operations.function import Function
    from leptonstore.process.parameter_types import in_words
    from leptonstore.process.registry import kind_named

    kind = Function if name == _FUNCTION else kind_named(name)
    words = in_words(kind)
    parameters = []
    for one in dataclasses.fields(kind):
        if not one.init or (kind is Function and one.name == "call"):
            continue
        needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        parameters.append(
            {"name": one.name, "type": words.get(one.name, str(one.type)), "needed": needed}
            | ({} if needed else {"default": list(default) if isinstance(default, tuple) else default})
            | ({"choices": list(kind.actions())} if one.name == "action" and issubclass(kind, Check) else {})
        )
    help_text = [
        inspect.cleandoc(one.__doc__) for one in kind.__mro__ if one.__doc__ and one.__module__.startswith("lepton")
    ]
    paragraph = " ".join(help_text[0].partition("\n\n")[0].split())
    summary = paragraph.partition(": ")[0].partition(". ")[0].rstrip(".") + "."
    return {"name": name, "summary": summary, "help": help_text[0], "parameters": parameters}


def _print_operations(told: list[dict[str, Any]], whole: bool) -> None:
    for one in told:
        name = click.style(f"{one['name']:<28}", bold=True)
        if not whole:
            click.echo(f"{name}  {one['summary']}")
            continue
        click.echo(name)
        for line in one["help"].splitlines():
            click.echo(f"  {line}" if line else "")
        click.echo()
        for parameter in one["parameters"]:
            said = "needed" if parameter["needed"] else f"default {_default(parameter['default'])}"
            said += f": {', '.join(parameter['choices'])}" if "choices" in parameter else ""
            click.echo(f"  {parameter['name']:<16} {parameter['type']:<32} {said}")
    if not whole:
        click.echo("lepton process show NAME explains one, with its parameters")


def _default(value: Any) -> str:
    return "none" if value in (None, "", [], {}) else repr(value)


def _made_by(ds: Dataset) -> Dataset:
    """The version itself, or the nearest one before it that a pipeline made."""
    from leptonstore.dataset.graph import ancestry

    for commit in ancestry(ds.store, ds.commit):
        one = ds.at(commit[:12], commit)
        if one.commit_object.lineage.get("operation") == "process":
            return one
    raise NotFound(f"no pipeline made {ds.label} or a version before it, and no operation is called {ds.name!r}")


def _print_lineage(made: Dataset) -> None:
    lineage = made.commit_object.lineage
    read = lineage["read"]
    click.echo(f"{made.name} {made.commit[:12]}, made of {read['name'].partition('/')[2]} {read['commit'][:12]}")
    for number, (recipe, counts) in enumerate(zip(lineage["operations"], lineage["counts"], strict=True), 1):
        given = ", ".join(f"{key} = {value!r}" for key, value in recipe.items() if key not in ("operation", "version"))
        failed = f", {counts['failed']:,} failed" if counts["failed"] else ""
        groups = f", in {lineage['rows_after']:,} groups" if counts.get("groups") else ""
        click.echo(f"{number}  {recipe['operation']}  {counts['in']:,} rows in, {counts['out']:,} out{failed}{groups}")
        click.echo(f"   {given}")


@command.command("memo")
@click.option("--clear", is_flag=True, help="Empty it.")
@click.option("--limit", type=Size(), metavar="SIZE", help="Keep at most so much from now on (20GiB); 0 keeps nothing.")
@store_option
@json_option
def memo(clear: bool, limit: int | None, store: str | None, as_json: bool) -> None:
    """Show or change the memo: results that are kept on this machine, so that what did not change is not computed again.

    It lies in the user's cache directory and can be deleted at any time.

    \b
    Example:
      lepton process memo
      lepton process memo --limit 20GiB
      lepton process memo --clear
    """
    from leptonstore.process.memo import Memo

    with open_store(store) as opened:
        held = Memo.of(opened)
        if held is None:
            raise NotFound(
                f"{opened.url} has no memo here: it is encrypted, or its cache directory cannot be written to"
            )
        freed = held.clear() if clear else 0
        if limit is not None:
            held.set_budget(limit)
        usage = held.usage()
        body = {"path": str(held.path), **usage._asdict(), "freed_bytes": freed}

        def text() -> None:
            if clear:
                click.echo(f"emptied: {human_bytes(freed)}")
            click.echo(f"{human_bytes(usage.bytes)} of at most {human_bytes(usage.budget_bytes)} in {held.path}")
            click.echo(f"{usage.rows:,} rows in {usage.blocks:,} files, {usage.values:,} small values")

        emit(body, as_json, text)
