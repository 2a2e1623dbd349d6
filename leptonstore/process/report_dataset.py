"""The report of a dataset version: everything that there is to show of it, gathered from the store.

samples, first rows     gallery.py          statistics          analyse.py
findings, groups        the newest version of NAME.findings that is about this version or one before it, or a search now
sizes                   stats, and what is shared with the version that it is compared with
lineage                 dataset/lineage.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leptonstore.dataset import Dataset, list_refs
from leptonstore.dataset.graph import ancestry, parents_of, read_commit
from leptonstore.errors import RefMissing
from leptonstore.format.commit import Commit
from leptonstore.process import columns
from leptonstore.process.analyse import analyse
from leptonstore.process.checks.defaults import fitting_checks
from leptonstore.process.clean import CleanReport
from leptonstore.process.clusters import pick_clusters
from leptonstore.process.findings import SCHEMA
from leptonstore.process.gallery import finding_samples, first_rows, pick_samples, pick_texts
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.report import Report, SizesSection
from leptonstore.store.usage import among

FINDINGS_VERSIONS_MAX = 200  # of NAME.findings that are looked through: newest first


@dataclass(frozen=True)
class Found:
    """What was found, and the version that was searched."""

    ds: Dataset
    report: CleanReport


def dataset_report(
    ds: Dataset,
    against: Dataset | None = None,
    check: bool = False,
    thorough: bool = False,
    told: Callable[[str], None] = lambda step: None,
) -> Report:
    """What a page shows of `ds`, a whole version. Reads all of it, as `analyse` does.

    against: the version that it is compared with; None: its first parent, where there is one. told: is called with what is being done.
    check: search it now, with the quick checks that fit its columns, or with all (thorough); else what was found is looked for in
    NAME.findings. Raises as `analyse` and the checks do.
    """
    against = against if against is not None else parent_of(ds)
    told("reading every column")
    analysis = analyse(ds, against=against)
    told("searching" if check or thorough else "looking for findings")
    found = search(ds, thorough) if check or thorough else findings_about(ds)
    told("picking samples")
    samples = pick_samples(ds) or pick_texts(ds)
    clusters, total = pick_clusters(found.ds, found.report) if found else ([], 0)
    pictures = finding_samples(found.ds, found.report) if found else []
    return Report(
        title=ds.label,
        subtitle=ds.commit_object.message,
        dataset=ds,
        analysis=analysis,
        clean=found.report if found else None,
        findings=pictures,
        clusters=clusters,
        clusters_total=total,
        samples=samples,
        rows=None if columns.image_columns(ds.schema) or samples or not len(ds) else first_rows(ds),
        sizes=sizes_of(ds, against),
        notes=_notes(ds, found),
    )


def parent_of(ds: Dataset) -> Dataset | None:
    """The version before, of the same dataset; None of a first version, and where that is not in the store any more."""
    for parent in parents_of(ds.store, ds.commit)[:1]:
        try:
            read_commit(ds.store, parent)
        except RefMissing:
            return None
        return ds.at(parent[:12], parent)
    return None


def search(ds: Dataset, thorough: bool = False) -> Found:
    """What the quick checks that fit find in it now, or all of them; nothing is written."""
    checks = fitting_checks(ds, thorough).checks if len(ds) else ()
    tags = tuple(one.tag for one in checks)
    if not checks:
        return Found(ds, CleanReport(ds.name, ds.commit, ds.fingerprint, len(ds), checks=tags))
    result = Pipeline(f"{ds.name}@{ds.commit}", checks).look(ds.store)
    return Found(ds, CleanReport(ds.name, ds.commit, ds.fingerprint, len(ds), result.findings, tags))


def findings_about(ds: Dataset) -> Found | None:
    """The newest findings about `ds`, of the run that made it, or about the nearest version before it that was searched; in this order.

    None where there are none. Damage in NAME.findings is raised, what is not there is not.
    """
    name = f"{ds.name}.findings"
    refs = list_refs(ds.store, "dataset", name)
    if not refs:
        return None
    order = {commit: at for at, commit in enumerate(ancestry(ds.store, ds.commit))}
    best: tuple[int, str, str] | None = None
    seen: set[str] = set()
    for ref in sorted(refs, key=lambda one: -one.sequence):
        for commit in ancestry(ds.store, ref.commit)[:FINDINGS_VERSIONS_MAX]:
            if commit in seen:
                continue
            seen.add(commit)
            about = _about(read_commit(ds.store, commit), order)
            if about is not None and (best is None or about[0] < best[0]):
                best = (*about, commit)
    return None if best is None else _loaded(ds, best[1], Dataset(ds.store, name, best[2][:12], best[2]))


def _about(findings: Commit, order: Mapping[str, int]) -> tuple[int, str] | None:
    """(how far away it is, the version that was searched). order: versions by their distance; a run that made one is half a step nearer."""
    searched, made = _searched(findings.lineage)[1], findings.lineage.get("result")
    if searched not in order:
        return None
    distance = 2 * order[searched]
    return min(distance, 2 * order[made] + 1) if isinstance(made, str) and made in order else distance, searched


def _searched(lineage: Mapping[str, Any]) -> tuple[str, str]:
    """(name, commit) of what a run searched, as the lineage of its findings has it; "" for what is not told."""
    told = lineage.get("searched")
    if not isinstance(told, Mapping):
        return "", ""
    return str(told.get("name", "")).removeprefix("dataset/"), str(told.get("commit", ""))


def _loaded(ds: Dataset, about: str, table: Dataset) -> Found | None:
    """The findings of a version of NAME.findings. None when its columns are not those of findings: then it is somebody else's."""
    names = SCHEMA.names
    if any(one not in table.schema.names or table.schema.field(one).type != SCHEMA.field(one).type for one in names):
        return None
    lineage = table.commit_object.lineage
    name, checks = _searched(lineage)[0] or ds.name, lineage.get("checks")
    searched = ds if about == ds.commit else Dataset(ds.store, name, about[:12], about)
    rows = table.to_arrow(names).cast(SCHEMA)
    looked_for = tuple(map(str, checks)) if isinstance(checks, list) else ()
    return Found(searched, CleanReport(name, about, about, len(searched), rows, looked_for))


def sizes_of(ds: Dataset, other: Dataset | None) -> SizesSection:
    """What columns take, and of the whole what `other` does not need. Walks the trees of both."""
    stats = ds.stats()
    if other is None:
        return SizesSection(stats.columns, stats.stored_bytes)
    stored, own = among(ds.store, [ds.commit, other.commit])[ds.commit]
    return SizesSection(stats.columns, stored, other.label, own)


def _notes(ds: Dataset, found: Found | None) -> list[str]:
    if found is None:
        return [
            f"It was not searched for what spoils training: lepton report {ds.label} --check, or lepton clean {ds.label}."
        ]
    if found.ds.commit != ds.commit:
        return [
            f"Findings are about {found.ds.commit[:12]}, the version before it that was searched; row numbers there are those of that one."
        ]
    return []
