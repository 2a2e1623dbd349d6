"""The report of a dataset version: everything that there is to show of it, gathered from the store.

samples, first rows     gallery.py          statistics          analyse.py
findings, groups        the newest version of NAME.findings that is about this version or one before it, or a search now
sizes                   stats, and what is shared with the version that it is compared with
lineage                 dataset/lineage.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leptonstore.dataset import Dataset, list_refs
from leptonstore.dataset.graph import ancestry, parents_of, read_commit
from leptonstore.dataset.lineage import commits_named
from leptonstore.errors import RefMissing
from leptonstore.process import columns
from leptonstore.process.analyse import analyse
from leptonstore.process.clean import CleanReport, find
from leptonstore.process.clusters import pick_clusters
from leptonstore.process.findings import SCHEMA
from leptonstore.process.gallery import finding_samples, first_rows, pick_samples, pick_texts
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
    told: Callable[[str], None] = lambda step: None,
) -> Report:
    """What a page shows of `ds`, a whole version. Reads all of it, as `analyse` does.

    against: the version that it is compared with; None: its first parent, where there is one. check: search it now, with the checks
    of `clean.find`; else what was found is looked for in NAME.findings. told: is called with what is being done.
    Raises as `analyse` and `clean.find` do.
    """
    against = against if against is not None else parent_of(ds)
    told("reading every column")
    analysis = analyse(ds, against=against)
    told("looking for findings")
    found = Found(ds, find(ds)) if check else findings_about(ds)
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


def findings_about(ds: Dataset) -> Found | None:
    """The newest findings about `ds`, else about the nearest version before it that was searched; None where there are none.

    Damage in NAME.findings is raised, what is not there is not.
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
            for about in commits_named(read_commit(ds.store, commit)):
                if about in order and (best is None or order[about] < best[0]):
                    best = (order[about], about, commit)
    if best is None:
        return None
    _, about, commit = best
    return _loaded(ds, about, Dataset(ds.store, name, commit[:12], commit))


def _loaded(ds: Dataset, about: str, table: Dataset) -> Found | None:
    """The findings of a version of NAME.findings. None when its columns are not those of findings: then it is somebody else's."""
    if any(
        one not in table.schema.names or table.schema.field(one).type != SCHEMA.field(one).type for one in SCHEMA.names
    ):
        return None
    searched = ds if about == ds.commit else ds.at(about[:12], about)
    rows = table.to_arrow(SCHEMA.names).cast(SCHEMA)
    told = table.commit_object.lineage.get("checks")
    checks = tuple(str(one) for one in told) if isinstance(told, list) else ()
    return Found(searched, CleanReport(ds.name, about, about, len(searched), rows, checks))


def sizes_of(ds: Dataset, other: Dataset | None) -> SizesSection:
    """What columns take, and of the whole what `other` does not need. Walks the trees of both."""
    stats = ds.stats()
    if other is None:
        return SizesSection(stats.columns, stats.stored_bytes)
    stored, own = among(ds.store, [ds.commit, other.commit])[ds.commit]
    return SizesSection(stats.columns, stored, other.label, own)


def _notes(ds: Dataset, found: Found | None) -> list[str]:
    if found is None:
        return [f"It was not searched for what spoils training: lepton report {ds.label} --check, or lepton clean."]
    if found.ds.commit != ds.commit:
        return [
            f"Findings are about {found.ds.commit[:12]}, the version before it that was searched; row numbers there are those of that one."
        ]
    return []
