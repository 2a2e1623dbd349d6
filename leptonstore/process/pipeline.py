"""A pipeline: a declared list of operations over one dataset version, which writes a new commit with lineage.

    Pipeline (of Python, or of a TOML file: pipeline_file.py) -> plan: everything that can be known before anything runs (plan.py) -> run

Each table operation ends a pass over the rows: its features come to this process, it decides, and later passes look its verdicts up. The
last pass writes. Passes begin at the source, and what earlier passes worked out is in the memo. Nothing is visible before the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset import Dataset, Source
from leptonstore.dataset.refs import MAIN, list_refs, split_spec, writable_ref
from leptonstore.dataset.tree import Tree
from leptonstore.dataset.write import Draft, draft_dataset, publish_commits, write_table
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, LeptonError, OperationFailed, listed
from leptonstore.format.commit import Commit, encode_commit
from leptonstore.process.derive import draft_tree, head_of
from leptonstore.process.engine import Runner, rows_of, write_rows
from leptonstore.process.findings import SCHEMA, joined, renumbered
from leptonstore.process.memo import Memo
from leptonstore.process.operation import Operation
from leptonstore.process.plan import GroupEnd, Plan, TablePass, digest_of_json, plan_of
from leptonstore.process.segment import FAILED, Segment, Stage, Verdict, untold
from leptonstore.store import Store

ON_ERROR = ("raise", "quarantine")
FINDINGS = ".findings"  # NAME.findings: what is written beside the dataset NAME
_NO_BRANCH = 'is no branch that the result could go to: say where, with into = "NAME@BRANCH"'
LOOKED = "looked"  # the branch of NAME.findings that searches without a result are saved to
Progress = Callable[[str, int, int], None]  # what is done, how many rows so far, of how many


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Result:
    """What a run made.

    dataset:  the version: a new one, or the one that was there already (`written` False: nothing was new, nothing was written).
    findings: of all checks, and of rows that were quarantined; `row` counts in the version that was read.
    counts:   one for each operation, in order: {"operation", "in", "out", "failed"}: rows.
    reused, computed: rows that chains of operations found in the memo, and rows that they worked on (a row counts once for each chain).
    """

    dataset: Dataset
    findings: pa.Table
    counts: tuple[dict[str, Any], ...] = ()
    reused: int = 0
    computed: int = 0
    rows_in: int = 0
    written: bool = True

    def _repr_html_(self) -> str:
        """For notebooks."""
        from leptonstore.process.notebook import result_html

        return result_html(self)

    @property
    def rows_out(self) -> int:
        """Of the result."""
        return len(self.dataset)

    def dropped(self) -> dict[str, int]:
        """Rows that were left out, by the operation that did it; those that failed, of all operations, as "failed"."""
        out: dict[str, int] = {}
        for one in self.counts:
            gone = one["in"] - one["out"] - one["failed"]
            if gone > 0 and not one.get("groups"):
                out[one["operation"]] = out.get(one["operation"], 0) + gone
        failed = sum(one["failed"] for one in self.counts)
        return out | ({FAILED: failed} if failed else {})


@dataclass(frozen=True)
class Pipeline:
    """dataset: NAME[@REF], the version that is read. operations: in order.

    into: NAME[@BRANCH] of the result; None: the branch that is read. It is needed where what is read is no branch: a tag, a commit, a place
    in history.

    on_error: what becomes of a row that an operation fails on: "raise" ends the run with OperationFailed, "quarantine" leaves the row out,
    with a finding that says why. message: of the commit. Raises BadInput.
    """

    dataset: str
    operations: Sequence[Operation] = ()
    into: str | None = None
    on_error: str = "raise"
    message: str = ""
    where: str = field(default="the pipeline", compare=False)  # for messages: its file
    lines: Sequence[int] = field(default=(), compare=False)  # of its operations there

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        if self.on_error not in ON_ERROR:
            raise BadInput(f"{self.where}: on_error is one of {', '.join(ON_ERROR)}, not {self.on_error!r}")
        if self.into is not None:
            self.target()

    def _repr_html_(self) -> str:
        """For notebooks."""
        from leptonstore.process.notebook import pipeline_html

        return pipeline_html(self)

    @classmethod
    def from_toml(cls, path: str | Path) -> Pipeline:
        """Of a file. Raises BadInput, SourceError; names file, line, operation and the nearest known name."""
        from leptonstore.process.pipeline_file import read_pipeline

        return read_pipeline(Path(path))

    def to_toml(self) -> str:
        """What `from_toml` reads."""
        from leptonstore.process.pipeline_file import pipeline_text

        return pipeline_text(self)

    def with_changes(self, **changes: Any) -> Pipeline:
        """The same with other fields."""
        return replace(self, **changes)

    def place(self, number: int) -> str:
        """What messages call operation `number` (from 1)."""
        line = f" line {self.lines[number - 1]}" if number <= len(self.lines) else ""
        return f"{self.where}{line}, operation {number}"

    def target(self) -> tuple[str, str]:
        """(name, branch) of the result. Raises BadInput where `into` is needed."""
        spec = self.into
        if spec is None:
            if any(mark in self.dataset for mark in "~^") or self.dataset.count("@") > 1:
                raise BadInput(f"{self.where}: {self.dataset} {_NO_BRANCH}")
            spec = self.dataset
        name, ref = split_spec(spec)
        if any(mark in spec for mark in "~^") or spec.count("@") > 1:
            raise BadInput(f"{self.where}: into is NAME or NAME@BRANCH, not {spec!r}")
        return name, ref or MAIN

    # -- before anything runs --------------------------------------------------------------------------------------

    def plan(self, store: Store) -> Plan:
        """What would run. Raises all that can be known before: NotFound, BadInput, SchemaError, MissingExtra; names the operation."""
        plan = plan_of(store, self)
        name, branch = self.target()
        _, there = writable_ref(store, "dataset", name, branch)
        if self.into is None and there is None:
            raise BadInput(f"{self.where}: {self.dataset} {_NO_BRANCH}")
        self._check_findings_name(store, name)
        return plan

    def _check_findings_name(self, store: Store, name: str) -> None:
        """Raise BadInput when NAME.findings is a dataset of something else."""
        for info in list_refs(store, "dataset", name + FINDINGS):
            there = Dataset(store, info.name, info.branch, info.commit).schema.names
            if not set(SCHEMA.names) <= set(there):
                raise BadInput(
                    f"{self.where}: findings go into {name}{FINDINGS}, and that is a dataset of something else "
                    f"({listed(there)}): give the result another name (into), or move that one"
                )

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        store: Store,
        runner: Runner | None = None,
        progress: Progress = _silent,
        memo: bool = True,
        author: str = "",
    ) -> Result:
        """Run it, and publish the result.

        memo: whether results that are kept on this host are used, and a result that is there already is returned. Interrupted anywhere,
        nothing is visible but what was before; run again, it finds what was worked out. Raises as `plan`, OperationFailed, RuleBroken,
        Conflict (somebody else wrote the branch meanwhile), ClusterLost (a cluster went away), StoreFull.
        """
        store.refresh()
        name, branch = self.target()
        if memo:
            there = self._made_already(store, name, branch)
            if there is not None:
                return there
        plan = self.plan(store)
        ds = plan.dataset
        if memo:
            there = _same_result(store, plan, name, branch)
            if there is not None:
                return there
        met = head_of(store, name, branch)
        run = _Run(store, plan, runner or Runner(), progress, memo, name, branch)
        tree, findings, counts, totals = run.all_passes()
        lineage = plan.lineage(counts, len(ds), tree.rows)
        if tree.rows == 0 and len(ds):
            raise BadInput(f"{self.where}: no row of {ds.label} would be left{_why_none(findings, counts)}")
        message = self.message or "process: " + ", ".join(operation.name for operation in self.operations)
        draft = draft_tree(
            store, ds, tree, run.schema, plan.identity, plan.keyed, lineage, message, (name, branch), met
        )
        told = self._findings_draft(store, ds, name, draft.commit, findings, branch)
        # Together: a result without its findings would be taken for a whole one, and they would never come.
        (digest, *_) = publish_commits(store, [draft] if told is None else [draft, told], author)
        made = Dataset(store, name, branch, digest)
        kept = Memo.of(store) if memo else None
        if kept is not None:
            kept.flush()
        return Result(made, findings, counts, totals["reused"], totals["computed"], len(ds))

    def look(
        self,
        store: Store,
        runner: Runner | None = None,
        progress: Progress = _silent,
        memo: bool = True,
        save: bool = False,
        author: str = "",
    ) -> Result:
        """What its checks find, of all rows that would come to them; no row is written. `dataset` of the result is what was read.

        save: write the findings as NAME.findings@looked, which says nothing of a result. Raises as `run`, without what comes of writing
        rows.
        """
        store.refresh()
        plan = plan_of(store, self)
        if save:
            self._check_findings_name(store, plan.dataset.name)
        run = _Run(store, plan, runner or Runner(), progress, memo, plan.dataset.name, LOOKED)
        findings, counts, totals = run.look()
        if save:
            told = self._findings_draft(store, plan.dataset, plan.dataset.name, None, findings, LOOKED)
            publish_commits(store, [] if told is None else [told], author)
        kept = Memo.of(store) if memo else None
        if kept is not None:
            kept.flush()
        return Result(
            plan.dataset, findings, counts, totals["reused"], totals["computed"], len(plan.dataset), written=False
        )

    def _made_already(self, store: Store, name: str, branch: str) -> Result | None:
        """The result, when the version that is to be read is the result itself, on its own branch."""
        here = Dataset.open(store, self.dataset)
        lineage = here.commit_object.lineage
        if (here.name, here.ref) != (name, branch) or lineage.get("pipeline") != declared(self):
            return None
        try:  # what operations found outside of the version (a tokenizer, a joined dataset) must be the same, too
            before = plan_of(store, self.with_changes(dataset=f"{name}@{lineage['read']['commit']}"))
        except LeptonError:
            return None
        return _there(store, here, branch) if before.made(lineage) else None

    def _findings_draft(
        self, store: Store, ds: Dataset, name: str, result: Commit | None, findings: pa.Table, branch: str
    ) -> Draft | None:
        """A version of `name`.findings, without rows when checks found none: then somebody has looked. result: None when nothing was made.

        None where nothing was looked for, nothing failed, and nothing was said before; and where it is there already.
        """
        name += FINDINGS
        before = {info.branch: info.commit for info in list_refs(store, "dataset", name)}
        checks = sorted({one.name.removeprefix("check.") for one in self.operations if one.name.startswith("check.")})
        if not len(findings) and not checks and branch not in before:
            return None
        # The rows are those of the version that was searched: that is the one commit which a reader of lineage is to find here.
        lineage = {
            "operation": "findings",
            "searched": {"commit": ds.commit, "name": f"dataset/{ds.name}"},
            "checks": checks,
        } | ({} if result is None else {"result": digest_of(encode_commit(result)).hex()})
        source = Source(SCHEMA, ("row",), lambda: iter(findings.to_batches()), rows=len(findings), lineage=lineage)
        return draft_dataset(store, name, source, f"findings of {ds.label}", branch)


def _why_none(findings: pa.Table, counts: Sequence[dict[str, Any]]) -> str:
    """What took all rows: those that failed, with the first one's reason, and the operations that dropped rows."""
    out = [f"{one['operation']} drops {gone:,}" for one in counts if (gone := one["in"] - one["out"] - one["failed"])]
    failed = findings.filter(pc.equal(findings["check"], FAILED))
    if len(failed):
        first = failed.sort_by("row").slice(0, 1).to_pylist()[0]
        out.append(f"{len(failed):,} fail, row {first['row']} with {first['detail']}")
    return f": {'; '.join(out)}" if out else ""


def declared(pipeline: Pipeline) -> str:
    """Names what a pipeline was asked to do, whatever version it reads."""
    return digest_of_json([pipeline.on_error, [operation.recipe() for operation in pipeline.operations]])


def _same_result(store: Store, plan: Plan, name: str, branch: str) -> Result | None:
    """The head of the branch, when it was made from the same version by the same operations."""
    head = head_of(store, name, branch)
    if head is None:
        return None
    there = Dataset(store, name, branch, head)
    old = there.commit_object
    if not plan.made(old.lineage) or old.parents[:1] != (bytes.fromhex(plan.dataset.commit),):
        return None
    return _there(store, there, branch)


def _there(store: Store, made: Dataset, branch: str) -> Result:
    """A result that is there already, with its findings as they were written."""
    lineage = made.commit_object.lineage
    findings = SCHEMA.empty_table()
    name = made.name + FINDINGS
    for info in list_refs(store, "dataset", name):
        if info.branch == branch:
            found = Dataset(store, name, branch, info.commit)
            if found.commit_object.lineage.get("result") == made.commit:
                findings = pa.Table.from_batches((batch for _, batch in found.iter_batches()), SCHEMA)
    counts = tuple(lineage.get("counts", ()))
    return Result(made, findings, counts, rows_in=int(lineage.get("rows_before", 0)), written=False)


class _Run:
    """One run of a plan."""

    def __init__(
        self, store: Store, plan: Plan, runner: Runner, progress: Progress, memo: bool, name: str, branch: str
    ) -> None:
        self._store, self._plan, self._runner, self._progress = store, plan, runner, progress
        self._memo = memo
        self.schema = plan.schema_into(store, name, branch)
        self._findings: list[pa.Table] = []
        self._counts: dict[int, Counter[str]] = {}

    def all_passes(self) -> tuple[Tree, pa.Table, tuple[dict[str, Any], ...], Counter[str]]:
        """(the tree, which nothing refers to yet; findings; counts of each operation; rows reused and computed)."""
        ds, end = self._plan.dataset, self._plan.end
        stages, told = self._decisions(ds)
        stages += self._plan.last_chains
        if isinstance(end, GroupEnd):
            tree = self._grouped(ds, end, stages, told)
        else:
            segment = self._segment(ds, stages, self.schema, True, told)
            written = write_rows(ds, segment, self._plan.identity, self._runner, self._tell(), keyed=self._plan.keyed)
            self._take(written.findings)
            tree = written.tree
        return tree, *self._told()

    def look(self) -> tuple[pa.Table, tuple[dict[str, Any], ...], Counter[str]]:
        """All but the tree."""
        ds = self._plan.dataset
        stages, told = self._decisions(ds)
        if self._plan.last_chains:
            segment = self._segment(ds, [*stages, *self._plan.last_chains], pa.schema([]), False, told)
            self._take(rows_of(ds, segment, self._runner, self._tell())[1])
        return self._told()

    def _decisions(self, ds: Dataset) -> tuple[list[Stage], int]:
        """All passes but the last: (what their stages are then, how many of these have told what they found)."""
        stages, told = list[Stage](), 0
        for one in self._plan.passes:
            stages += one.chains
            stages.append(self._decided(ds, one, stages, told))
            told = len(stages)
        return stages, told

    def _told(self) -> tuple[pa.Table, tuple[dict[str, Any], ...], Counter[str]]:
        """(findings, counts of each operation, rows reused and computed)."""
        end = self._plan.end
        counts = []
        rows = len(self._plan.dataset)
        for number, operation in enumerate(self._plan.operations, 1):
            known = self._counts.get(number, Counter())  # of one that no row came to there are none
            come = known["in"] if known else 0
            rows = known["kept"] if known else 0
            said = {"operation": operation.name, "in": come, "out": rows, "failed": known["failed"]}
            counts.append(said | ({"groups": True} if isinstance(end, GroupEnd) and end.operation is operation else {}))
        totals = sum(self._counts.values(), Counter())
        return joined(self._findings), tuple(counts), totals

    def _segment(self, ds: Dataset, stages: Sequence[Stage], schema: pa.Schema, stored: bool, told: int) -> Segment:
        return Segment(ds.schema, tuple(stages), schema, stored, ds.label, told, self._memo)

    def _tell(self) -> Callable[[int], None]:
        total, what = len(self._plan.dataset), f"pass {self._pass_number()} of {len(self._plan.passes) + 1}"
        self._progress(what, 0, total)
        return lambda done: self._progress(what, done, total)

    def _pass_number(self) -> int:
        self._passes_done = getattr(self, "_passes_done", 0) + 1
        return self._passes_done

    def _take(self, findings: pa.Table) -> None:
        said, counts = untold(findings)
        self._findings.append(said)
        for number, one in counts.items():
            self._counts.setdefault(number, Counter()).update(one)

    def _decided(self, ds: Dataset, one: TablePass, stages: Sequence[Stage], told: int) -> Verdict:
        """Measure all rows, and let the operation decide."""
        features_schema = one.measuring.schemas[-1]
        segment = self._segment(ds, [*stages, one.measuring], features_schema, False, told)
        table, findings = rows_of(ds, segment, self._runner, self._tell())
        self._take(findings)
        rows = table["row"].combine_chunks().to_numpy()
        features = table.drop_columns(["row"]).cast(features_schema) if features_schema.names else table
        try:
            made = one.operation.decide(features)
        except (LeptonError, MemoryError):
            raise
        except Exception as error:
            raise OperationFailed(
                f"operation {one.number} ({one.operation.name}) failed to decide about the rows of {ds.label}: "
                f"{type(error).__name__}: {error}",
                one.operation.name,
                None,
                str(error),
            ) from error
        kept = len(rows) if made.keep is None else int(made.keep.sum())
        self._counts.setdefault(one.number, Counter()).update({"in": 0, "kept": kept - len(rows)})
        if made.findings is not None:
            self._findings.append(renumbered(made.findings, rows))
        return Verdict(one.number, rows, made.keep, dict(made.columns))

    def _grouped(self, ds: Dataset, end: GroupEnd, stages: Sequence[Stage], told: int) -> Tree:
        """Sum all rows up by group, and store the groups."""
        operation = end.operation
        segment = Segment(
            ds.schema, tuple(stages), end.partials, False, ds.label, told, self._memo, operation, end.before, end.number
        )
        table, findings = rows_of(ds, segment, self._runner, self._tell())
        self._take(findings)
        made = operation.result(operation.merged(table.drop_columns(["row"]).cast(end.partials)))
        batches = made.combine_chunks().to_batches()
        source = Source(self.schema, self._plan.identity, lambda: iter(batches), rows=len(made))
        root, rows, plain_bytes = write_table(self._store, source)
        return Tree(root, rows, plain_bytes)
