"""Lists of datasets, models and checkpoints, and the history of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_graph import Lanes, lanes
from leptonstore.dataset.reflog import Published
from leptonstore.dataset.refs import RefInfo
from leptonstore.errors import LeptonError, NotFound
from leptonstore.format.commit import KINDS, Commit

PLURALS = {"dataset": "Datasets", "checkpoint": "Checkpoints", "model": "Models"}


@dataclass(frozen=True)
class Entry:
    """One version of a history. commit: None when it cannot be read; then `problem` says why."""

    digest: str
    commit: Commit | None
    published: Published | None
    refs: tuple[RefInfo, ...]
    parents: tuple[str, ...]
    forgotten: bool
    lanes: Lanes
    problem: str = ""


def names(ask: Ask) -> Response:
    """Everything of one kind."""
    kind = str(ask.path["kind"])
    if kind not in KINDS:
        raise NotFound("there is no such page")
    found = ask.seen.names(ask.who, kind)
    wanted = ask.query.get("q", "").strip()
    matching = [name for name in found if wanted.lower() in name.name.lower()]
    order = ask.query.get("sort", "name")
    if order == "changed":
        matching.sort(key=lambda name: -name.changed.sequence)
    start = ask.number("from")
    usage = ask.desk.measures.usage() if ask.reads_all else None
    stored = (
        {one.name.partition("/")[2]: one for one in usage.usage.names if one.name.startswith(f"{kind}/")}
        if usage
        else {}
    )
    shown = matching[start : start + bounds.NAMES_PAGE]
    rows = [{"name": name, "size": ask.seen.rows_of(name.head), "usage": stored.get(name.name)} for name in shown]
    return ask.page(
        "names.html.j2", kind=kind, title=PLURALS[kind], rows=rows, total=len(found), matching=len(matching), wanted=wanted,
        order=order, start=start, page=bounds.NAMES_PAGE, measured=usage,
    )  # fmt: skip


def history(ask: Ask) -> Response:
    """The versions of one name, newest first, with the lines between them."""
    kind, name = str(ask.path["kind"]), str(ask.path["name"])
    if kind not in KINDS:
        raise NotFound("there is no such page")
    found = ask.seen.name(ask.who, kind, name)
    every = ask.seen.history(found)
    start = ask.number("from")
    # Lines are drawn from the first version on, so that those of a later page begin in the right lane.
    drawn = lanes((digest, ask.seen.parents(digest)) for digest in every[: start + bounds.VERSIONS_PAGE])
    published = ask.seen.published()
    refs: dict[str, list[RefInfo]] = {}
    for ref in found.refs:
        refs.setdefault(ref.commit, []).append(ref)
    entries = [
        _entry(ask, digest, published.get(digest), tuple(refs.get(digest, ())), lane)
        for digest, lane in zip(every[start:], drawn[start:], strict=False)
    ]
    branches = sorted((ref for ref in found.refs if not ref.tag), key=lambda ref: (ref.branch != "main", -ref.sequence))
    tags = sorted((ref for ref in found.refs if ref.tag), key=lambda ref: -ref.sequence)
    return ask.page(
        "history.html.j2", kind=kind, plural=PLURALS[kind], name=found, entries=entries, start=start, total=len(every),
        page=bounds.VERSIONS_PAGE, branches=branches[: bounds.REFS_MAX], tags=tags[: bounds.REFS_MAX],
        left_out=max(0, len(branches) - bounds.REFS_MAX) + max(0, len(tags) - bounds.REFS_MAX),
        metrics=_metrics(found.refs),
    )  # fmt: skip


def _entry(ask: Ask, digest: str, published: Published | None, refs: tuple[RefInfo, ...], lane: Lanes) -> Entry:
    forgotten = digest in ask.seen.store.state.forgotten
    try:
        commit = ask.seen.commit(digest)
    except LeptonError:
        return Entry(digest, None, published, refs, (), forgotten, lane, "this version cannot be read now")
    return Entry(digest, commit, published, refs, ask.seen.parents(digest), forgotten, lane)


def _metrics(refs: tuple[RefInfo, ...]) -> dict[str, dict[str, Any]]:
    """Numbers that stand beside a checkpoint or model in the log, by commit: a few, as people look for them."""
    found: dict[str, dict[str, Any]] = {}
    for ref in refs:
        numbers = {
            name: value
            for name, value in ref.metrics.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if numbers:
            found[ref.commit] = dict(list(numbers.items())[:4])
    return found
