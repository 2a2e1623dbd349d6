"""Jobs: what is at work, what became of earlier ones, and forms that start them. Only administrators see them, as over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_render import HEADERS
from leptonstore.daemon.maintenance.kinds import KINDS
from leptonstore.daemon.maintenance.work import Kind, Option
from leptonstore.errors import BadInput, LeptonError, NotFound
from leptonstore.process import charts


@dataclass(frozen=True)
class JobRow:
    """A job for people. percent: None while the end is not known. told: what it found, in pairs."""

    id: str
    kind: str
    by: str
    began: float
    ended: float | None
    state: str
    percent: float | None
    progress: str
    note: str
    error: str
    options: str
    told: tuple[tuple[str, str], ...]

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return self.ended is None


def jobs_shown(ask: Ask) -> list[JobRow]:
    """The newest first."""
    if ask.context.jobs is None:
        return []
    every = sorted(ask.context.jobs.list(), key=lambda job: (job.ended is None, job.began), reverse=True)
    return [_row(job) for job in every[: bounds.JOBS_MAX]]


def jobs(ask: Ask) -> Response:
    """The page; as JSON for its script (?live=1)."""
    ask.require_admin("jobs")
    shown = jobs_shown(ask)
    if ask.query.get("live"):
        parts = {"jobs": ask.fragment("live_jobs.html.j2", jobs=shown)}
        at_work = [f"{job.kind}: {job.progress or job.state}" for job in shown if job.running]
        return JSONResponse({"parts": parts, "said": "; ".join(at_work) or "no job is at work"}, headers=HEADERS)
    return ask.page(
        "jobs.html.j2", jobs=shown, kinds=list(KINDS.values()), known=ask.context.jobs is not None,
        began=ask.query.get("began", ""), stopped=ask.query.get("stopped", ""),
    )  # fmt: skip


def start(ask: Ask) -> Response:
    """POST: a job of a kind, with its options."""
    ask.require_admin("jobs")
    kind = KINDS.get(ask.form.get("kind", ""))
    if kind is None or ask.context.jobs is None:
        raise BadInput("there is no job of that kind")
    try:
        options = {name: _option(name, option, ask.form) for name, option in kind.options.items()}
        job = ask.context.jobs.start(kind.name, options, ask.who.name)
    except LeptonError as error:
        ask.did("job", kind.name, error)
        raise
    ask.did("job", f"{kind.name} {job.id}")
    return ask.see_other(ask.link("jobs", began=job.id))


def stop(ask: Ask) -> Response:
    """POST: ask one to end."""
    ask.require_admin("jobs")
    if ask.context.jobs is None:
        raise NotFound("there is no such job")
    ask.context.jobs.stop(str(ask.path["id"]))
    ask.did("job", f"stop {str(ask.path['id'])[:40]}")
    return ask.see_other(ask.link("jobs", stopped=ask.path["id"]))


def _option(name: str, option: Option, form: Mapping[str, str]) -> Any:
    """A field of a form as its option's type. Raises BadInput."""
    text = form.get(name, "").strip()
    if option.type is bool:
        return text == "on"  # a box that is not ticked is not sent
    if not text:
        return option.default
    try:
        return option.type(text)
    except ValueError:
        raise BadInput(f"{name.replace('_', ' ')} is {text[:40]!r}: give a number") from None


def _row(job: Any) -> JobRow:
    done, total, unit = job.progress
    percent = min(100.0, round(done / total * 100, 1)) if total else None
    written = charts.as_bytes if unit == "bytes" else charts.whole
    progress = f"{written(done)} of {written(total)}" if total else written(done) if done else ""
    if progress and unit != "bytes":
        progress = f"{progress} {unit}"
    given = [f"{name.replace('_', ' ')} {_said(value)}" for name, value in job.options.items()]
    told = tuple(
        (name.replace("_", " "), _figure(name, value)) for name, value in job.result.items() if _is_told(value)
    )
    return JobRow(
        job.id, job.kind, job.by, job.began, job.ended, str(job.state), percent, progress, job.note, job.error,
        ", ".join(given), told[:12],
    )  # fmt: skip


def _is_told(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and value not in ("", None)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, (bool, str)):
        return _said(value)
    return charts.as_bytes(value) if name.endswith("bytes") else charts.short(value)


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def fields_of(kind: Kind) -> list[tuple[str, Option]]:
    """The options of a kind as its form has them."""
    return list(kind.options.items())
