"""One HTML file that shows a dataset version, what was found and done, and what was trained on it.

The file is complete: no script, no font, no link leaves it (its content security policy forbids all of that), so it can
be mailed and opened in ten years. It stays within REPORT_BYTES_MAX: galleries and tables have bounds and say what they
leave out, and thumbnails shrink until the file fits. Everything that came from the data is escaped, cut to
REPORT_TEXT_CHARS_MAX characters and freed of control characters. The same `Report` gives the same bytes.

Every part of `Report` is optional: a section appears when there is something to say.
"""

from __future__ import annotations

import json
import os
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.graph import parents_of, read_commit
from leptonstore.dataset.lineage import Link, lineage
from leptonstore.dataset.reflog import Published
from leptonstore.errors import BadInput, MissingExtra, RefMissing
from leptonstore.process import charts
from leptonstore.process.clean import CleanReport
from leptonstore.process.clusters import Cluster
from leptonstore.process.gallery import RowTable, Sample
from leptonstore.process.passages import Passage
from leptonstore.process.report_view import sections
from leptonstore.process.statistics.results import Analysis
from leptonstore.tiers.durable import full_disk_named
from leptonstore.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = "page.html.j2"
HISTORY_COMMITS_MAX = 12  # of the lineage section; older ones are reached by `lepton log`


@dataclass(frozen=True)
class Version:
    """A commit as the lineage section shows it: hex digests and the deterministic lineage."""

    name: str
    commit: str
    parents: tuple[str, ...] = ()
    message: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationSection:
    """How a model did. `confusion[t, p]` counts rows of true class t that were predicted as p (K x K, K names).

    counts: instead of a confusion matrix, where there are too many classes for one: rows and right answers of each class, (2, K).
    """

    accuracy: float
    confusion: NDArray[np.int64] | None
    class_names: Sequence[str]
    wrong: Sequence[Sample] = ()
    split: str = ""
    loss: float | None = None
    counts: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class SizesSection:
    """What a version takes. columns: as DatasetStats has them. other: the version that shares stored bytes with it ("" for none);
    own_bytes: of stored_bytes what that one does not need."""

    columns: Mapping[str, Mapping[str, Any]]
    stored_bytes: int
    other: str = ""
    own_bytes: int = 0


@dataclass(frozen=True)
class Report:
    """What a report shows. Pass what there is.

    title:       heading of the page. subtitle: one sentence below it.
    facts:       (name, value) pairs for the strip of key figures, before those that the other parts supply.
    dataset:     the version that the page is about; its identity and history are read from the store.
    versions:    identity and history, newest first, instead of those of `dataset`.
    analysis, clean: results of the modules of these names. `clean` may be about a parent of `dataset`.
    findings:    pictures of rows in `clean` (see gallery.finding_samples).
    clusters:    groups of rows that are alike (see clusters.pick_clusters), of clusters_total.
    samples:     pictures or texts of the dataset (see gallery.pick_samples, pick_texts).
    rows:        the first rows of a table (see gallery.first_rows).
    sizes:       what columns take, and what is shared with another version, beside the sizes in `analysis`.
    links:       the chain that the lineage is drawn from (dataset/lineage.py), and how many more it names.
    notes:       sentences below the key figures: what was not looked for, say.
    training:    one mapping per epoch or step: "epoch" or "step", and numbers; those whose name ends in "loss" or
                 "accuracy" (accuracies are shares, 0 to 1) are drawn, all are listed.
    evaluation:  see EvaluationSection; its wrong samples are shown in the order given: put the worst first.
    passages:    stretches of text on which a language model did worst, the worst first (leptonstore.process.passages).
    predictions: pictures with what was predicted as label and, say, the probability as caption.
    steps:       (name, seconds, what came out) for each step of the run, in order.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    dataset: Dataset | None = None
    versions: Sequence[Version] = ()
    analysis: Analysis | None = None
    clean: CleanReport | None = None
    findings: Sequence[Sample] = ()
    clusters: Sequence[Cluster] = ()
    clusters_total: int = 0
    samples: Sequence[Sample] = ()
    rows: RowTable | None = None
    sizes: SizesSection | None = None
    links: Sequence[Link] = ()
    links_left_out: int = 0
    notes: Sequence[str] = ()
    training: Sequence[Mapping[str, Any]] = ()
    evaluation: EvaluationSection | None = None
    passages: Sequence[Passage] = ()
    predictions: Sequence[Sample] = ()
    steps: Sequence[tuple[str, float, str]] = ()

    def _repr_html_(self) -> str:
        """For notebooks."""
        from leptonstore.process.notebook import report_html

        return report_html(self)


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write the page to `path` (replaced if it exists, all at once) and return it.

    Raises MissingExtra without jinja2, or without Pillow when there are pictures; BadInput when a part does not fit.
    """
    target = Path(path)
    html = render(report).encode("utf-8")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with full_disk_named(target):
        try:
            temporary.write_bytes(html)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


def render(report: Report, bytes_max: int | None = None) -> str:
    """The page as text, at most `bytes_max` (REPORT_BYTES_MAX) bytes of UTF-8: thumbnails shrink. Raises as `write_report` does."""
    most = limits.REPORT_BYTES_MAX if bytes_max is None else bytes_max
    if report.evaluation is not None:
        _check(report.evaluation)
    versions = list(report.versions) or (history(report.dataset) if report.dataset is not None else [])
    if report.dataset is not None and not report.links:
        ds = report.dataset
        links, more = lineage(ds.store, f"{ds.name}@{ds.commit}", "dataset", limits.REPORT_LINKS_MAX)
        report = replace(report, links=links, links_left_out=more)
    made = environment(_template, "writing a report", "process")
    made.filters["when"] = _when
    template = made.get_template(TEMPLATE)
    size = 0
    for edge in limits.REPORT_THUMBNAIL_EDGES:
        page = template.render(report=report, version=__version__, **sections(report, versions, edge))
        size = len(page.encode("utf-8"))
        if size <= most:
            return page
    raise BadInput(f"the report has {size:,} bytes, over {most:,}: pass fewer steps or shorter facts")


def history(ds: Dataset) -> list[Version]:
    """The version that `ds` shows and its first parents, newest first, at most HISTORY_COMMITS_MAX."""
    found: list[Version] = []
    commit = ds.commit
    while len(found) < HISTORY_COMMITS_MAX:
        try:
            read = read_commit(ds.store, commit)
        except RefMissing:  # it was forgotten, or never came here; the picture of the lineage says so
            break
        parents = parents_of(ds.store, commit)
        found.append(Version(ds.name, commit, parents, read.message, read.lineage))
        if not parents:
            break
        commit = parents[0]
    return found


def _check(evaluation: EvaluationSection) -> None:
    classes = len(evaluation.class_names)
    if evaluation.confusion is None:
        shape = None if evaluation.counts is None else evaluation.counts.shape
        if shape != (2, classes):
            raise BadInput(f"the counts of {classes} classes have shape {shape}, not (2, {classes})")
    elif evaluation.confusion.shape != (classes, classes):
        raise BadInput(
            f"the confusion matrix has shape {evaluation.confusion.shape}, but there are {classes} class names; "
            "pass one row and one column per name"
        )


def _when(told: Published) -> str:
    """When a version was published, and by whom."""
    return f"published {datetime.fromtimestamp(told.time_s, UTC):%Y-%m-%d %H:%M} UTC by {told.author}"


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text("utf-8")


def harmless(value: Any) -> Any:
    """What the template prints: text cut short and without characters that act (controls, bidirectional overrides).

    Escaping follows after this. Markup (of the template's own macros) and `Drawn` text of our charts pass unchanged.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or hasattr(value, "__html__") or isinstance(value, charts.Drawn):
        return value
    most = limits.REPORT_PASSAGE_CHARS_MAX if isinstance(value, charts.LongText) else limits.REPORT_TEXT_CHARS_MAX
    return cleaned(value if len(value) <= most else value[: most - 1] + "…")


def cleaned(text: str) -> str:
    """Text without characters that act, whatever its length."""
    return text if text.isprintable() else "".join(mark if _is_harmless(mark) else "\ufffd" for mark in text)


def _is_harmless(mark: str) -> bool:
    return mark in "\n\t" or (unicodedata.category(mark) not in ("Cc", "Cs") and mark not in _BIDI)


def environment(
    template: Callable[[str], str], what: str, extra: str, finalize: Callable[[Any], Any] = harmless
) -> Environment:
    """What renders our templates: everything is escaped, a name that is not given is an error; filters for figures.

    template: the text of a template, by its name. finalize: is given each value before it is printed. Raises MissingExtra, which says that
    `what` needs `extra`.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra(what, extra, "jinja2") from error
    made = Environment(
        loader=FunctionLoader(template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=finalize,
    )  # fmt: skip
    made.filters.update(
        whole=charts.whole,
        short=charts.short,
        percent=charts.as_percent,
        bytes=charts.as_bytes,
        ratio=charts.as_ratio,
        seconds=charts.as_seconds,
        compact=lambda value: json.dumps(value, ensure_ascii=False, default=str),
    )
    return made


_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
