"""lepton lineage"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from leptonstore.cli.log import told_time
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.dataset.lineage import LINKS_MAX, Link, lineage
from leptonstore.format.commit import KINDS

FILES_SHOWN = 20
_WIDTH = 12  # of the column of names in the text
_TEXT_MAX = 240  # characters of a value that has no line of its own


@click.command("lineage")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(KINDS), help="What NAME is (default: a model, else a checkpoint, else a dataset)."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=LINKS_MAX, show_default=True, help="Follow so many versions."
)
@store_option
@json_option
def command(name: str, kind: str | None, limit: int, store: str | None, as_json: bool) -> None:
    """Show where NAME comes from, back to the imported files.

    A model names its checkpoint; that names its configuration, code, environment, the order of its data and the version of it; and that
    its parents, what was done to them, and the files that were imported, with their digests. NAME is a model, a dataset (NAME@REF), or a
    run: its newest checkpoint, or RUN@STEP. What is named and is not in the store any more is told, and is no error.

    \b
    Example:
      lepton lineage mnist-cnn
      lepton lineage mnist-1a2b3c4d@3600
      lepton lineage mnist@prepared --kind dataset --json
    """
    with open_store(store) as opened:
        opened.refresh()
        links, more = lineage(opened, name, kind, limit)
    body = {"name": name, "links": [link.to_json() for link in links], "not_followed": more}
    emit(body, as_json, lambda: _print(links, more))


def _print(links: list[Link], more: int) -> None:
    for number, link in enumerate(links):
        title = f"{link.kind or 'commit'} {link.name or '(no name)'}"
        colour = "red" if link.missing else "green"
        click.echo(f"{'' if number == 0 else '  from  '}{click.style(title, fg=colour, bold=True)}  {link.digest[:12]}")
        for label, text in _facts(link):
            click.echo(f"        {label:<{_WIDTH}} {text}")
    if more:
        click.echo(f"  and {more:,} more that these name: --limit")


def _facts(link: Link) -> Iterator[tuple[str, str]]:
    if link.missing:
        yield "missing", link.missing
        return
    told = link.published
    yield "made by", link.operation + (f", {told_time(told)} by {told.author} on {told.host}" if told else "")
    if link.note:
        yield "note", link.note
    if link.kind == "dataset":
        yield from _dataset_facts(link)
    else:
        yield from _training_facts(link)
    numbers = {name: value for name, value in link.metrics.items() if isinstance(value, int | float)}
    if numbers:
        yield "metrics", ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
    for file in link.files[:FILES_SHOWN]:
        size = human_bytes(file["bytes"]) if isinstance(file.get("bytes"), int) else ""
        yield (
            "file",
            f"{file['name']}  {size}  {file.get('digest') or 'bound by the rows, without a digest of its own'}",
        )
    if len(link.files) > FILES_SHOWN:
        yield "", f"and {len(link.files) - FILES_SHOWN:,} more files: --json"


def _dataset_facts(link: Link) -> Iterator[tuple[str, str]]:
    commit = link.commit
    assert commit is not None
    root = commit.root.hex()[:12] if commit.root else "none"
    yield "rows", f"{commit.rows:,}, {human_bytes(commit.plain_bytes)}, root {root}"
    if commit.message:
        yield "message", commit.message
    left = {key: value for key, value in link.lineage.items() if key not in ("operation", "format", "files", "parent")}
    yield from ((key.replace("_", " "), _short(value)) for key, value in left.items() if value not in ({}, [], None))
    if link.lineage.get("format") in ("files", "image-folder"):
        yield "files", "each is a row of this version, bound by the root"


def _training_facts(link: Link) -> Iterator[tuple[str, str]]:
    """Of a checkpoint or a model."""
    told = link.lineage
    if "step" in told:
        yield "step", f"{told['step']:,}" if isinstance(told["step"], int) else str(told["step"])
    if isinstance(told.get("config"), Mapping):
        yield "config", _short(told["config"])
    found = told.get("provenance")
    provenance: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    stretches = [one for one in provenance.get("stretches") or () if isinstance(one, Mapping)]
    yield "code", _told_code((stretches[-1].get("code") if stretches else None) or told.get("code") or {})
    if isinstance(told.get("environment"), Mapping):
        yield "environment", ", ".join(f"{key} {value}" for key, value in sorted(told["environment"].items()))
    if len(stretches) > 1:
        yield "changed", "code or environment, at steps " + ", ".join(str(one.get("step")) for one in stretches[1:])
    for role, data in (told.get("data") or {}).items():
        if isinstance(data, Mapping):
            yield (
                role,
                f"{data.get('rows', 0):,} rows of {data.get('name')}, fingerprint {str(data.get('fingerprint'))[:24]}",
            )
    if isinstance(told.get("loader"), Mapping):
        order = told["loader"]
        yield "order", f"seed {order.get('seed')}, epoch {order.get('epoch')}, {_short(order.get('order'))}"
    if isinstance(told.get("receipt"), Mapping):
        yield "receipt", f"{told['receipt'].get('steps'):,} steps, head {told['receipt'].get('head')}"
    if told.get("weights"):
        yield "weights", str(told["weights"])
    if provenance.get("not_reproducible"):
        yield "careful", f"not reproducible: {', '.join(map(str, provenance['not_reproducible']))}"


def _told_code(code: Mapping[str, Any]) -> str:
    """ "leptonstore 0.7.0 (git 1a2b3c4d5e6f, changed: diff 0f1e2d3c), mine.models 77aa…"."""

    def git(told: Any) -> str:
        if not isinstance(told, Mapping):
            return ""
        return f" (git {str(told.get('revision'))[:12]}{', changed: diff ' + told['diff'][:12] if told.get('diff') else ''})"

    parts = [f"leptonstore {code.get('leptonstore')}{git(code.get('checkout'))}"]
    for name, module in sorted((code.get("modules") or {}).items()):
        parts.append(f"{name} {str(module.get('digest') or 'without a file')[:12]}{git(module.get('git'))}")
    if code.get("directory"):
        parts.append(f"working directory{git(code['directory'])}")
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _TEXT_MAX else f"{text[: _TEXT_MAX - 1]}…"
