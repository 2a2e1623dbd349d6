"""The plan of a pipeline: all that can be known before anything runs. Operations are bound to the version, each is held against the
rows that come to it, and they are put into chains and passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import Dataset, list_refs
from leptonstore.dataset.rules import keep_rules
from leptonstore.dataset.schema import check_semantics
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, LeptonError, SchemaError, listed
from leptonstore.format.schema import schema_to_json
from leptonstore.process.chain import Chain, linked
from leptonstore.process.memo import Memo
from leptonstore.process.operation import GroupOperation, Operation, RowOperation, TableOperation
from leptonstore.process.segment import Measuring
from leptonstore.store import Store

if TYPE_CHECKING:
    from leptonstore.process.pipeline import Pipeline


@dataclass(frozen=True)
class TablePass:
    """A pass that ends in a decision: chains that are new in it, then the features of `operation`."""

    operation: TableOperation
    number: int
    chains: tuple[Chain, ...]
    measuring: Chain


@dataclass(frozen=True)
class GroupEnd:
    """The last pass of a pipeline that ends in groups. before: schema of the rows that come to it; partials: of what it sums them up in."""

    operation: GroupOperation
    number: int
    before: pa.Schema
    partials: pa.Schema


@dataclass(frozen=True)
class Plan:
    """dataset: the version that is read. operations: bound to it. schemas: of its rows, and after each operation.

    passes: each ends in a table operation; then comes the last one, which writes: `last_chains`, and groups if `end` says so.
    identity, keyed: of the result.
    """

    dataset: Dataset
    operations: tuple[Operation, ...]
    schemas: tuple[pa.Schema, ...]
    passes: tuple[TablePass, ...]
    last_chains: tuple[Chain, ...]
    end: GroupEnd | None
    identity: tuple[str, ...]
    keyed: bool
    on_error: str
    pipeline: str  # names what was declared

    def _repr_html_(self) -> str:
        """For notebooks."""
        from leptonstore.process.notebook import plan_html

        return plan_html(self)

    @property
    def schema(self) -> pa.Schema:
        """Of the result, without the rules of the version that it comes after."""
        return self.schemas[-1]

    def schema_into(self, store: Store, name: str, branch: str) -> pa.Schema:
        """Of the result: the rules of the version before it go on."""
        for info in list_refs(store, "dataset", name):
            if info.branch == branch:
                return keep_rules(self.schema, Dataset(store, name, branch, info.commit).schema)
        return self.schema

    def recipes(self) -> list[dict[str, Any]]:
        """Of the operations, as JSON gives them back."""
        found: list[dict[str, Any]] = json.loads(json.dumps([operation.recipe() for operation in self.operations]))
        return found

    def lineage(self, counts: Sequence[Mapping[str, Any]], before: int, after: int) -> dict[str, Any]:
        """Of the result; a function of version, operations and rows alone."""
        return {
            "operation": "process",
            "read": {"commit": self.dataset.commit, "name": f"dataset/{self.dataset.name}"},
            "pipeline": self.pipeline,
            "operations": self.recipes(),
            "on_error": self.on_error,
            "counts": [dict(one) for one in counts],
            "rows_before": before,
            "rows_after": after,
        }

    def made(self, lineage: Mapping[str, Any]) -> bool:
        """Whether a version with this lineage is what this plan would make."""
        same = ("operation", "read", "operations", "on_error")
        mine = self.lineage((), 0, 0)
        # As JSON: 1, 1.0 and true are equal to Python, and not to an operation.
        return all(digest_of_json(lineage.get(key)) == digest_of_json(mine[key]) for key in same)

    def memoised(self, memo: Memo | None) -> list[dict[str, Any]]:
        """For each chain: {"operations", "pass", "rows": of the version, "known": how many of them the memo has}.

        "known" is None where that depends on what runs before it: a chain that looks at values that an earlier one makes. It is counted as
        if no row were left out before. Reads pages, no large values.
        """
        out = []
        made: set[str] = set()
        for number, chain in self._chains():
            free = chain.memoised and memo is not None and not made & set(chain.reads)
            out.append(
                {
                    "operations": [operation.name for operation in chain.operations],
                    "pass": number,
                    "rows": len(self.dataset),
                    "known": _known(self.dataset, chain, memo) if free and memo is not None else None,
                }
            )
            if not isinstance(chain.operations[0], Measuring):
                made |= set(chain.writes)
        return out

    def _chains(self) -> Iterator[tuple[int, Chain]]:
        for number, one in enumerate(self.passes, 1):
            for chain in (*one.chains, one.measuring):
                yield number, chain
        for chain in self.last_chains:
            yield len(self.passes) + 1, chain


def plan_of(store: Store, pipeline: Pipeline) -> Plan:
    """Raises NotFound, BadInput, SchemaError, MissingExtra; a message begins with the operation that it is about."""
    ds = Dataset.open(store, pipeline.dataset)
    if not len(ds):
        raise BadInput(f"{pipeline.where}: {ds.label} has no rows")
    operations: list[Operation] = []
    schemas = [ds.schema]
    for number, operation in enumerate(pipeline.operations, 1):
        with _about(pipeline.place(number)):
            bound = operation.bound(ds, schemas[-1])
            if not isinstance(bound, (RowOperation, TableOperation, GroupOperation)):
                raise BadInput(f"{bound.name} is no operation that a pipeline can run")
            if isinstance(bound, GroupOperation) and number < len(pipeline.operations):
                raise BadInput(
                    f"{bound.name} makes other rows and has to be the last operation; let another pipeline go on with its result"
                )
            if not bound.reads(schemas[-1]):
                raise SchemaError(f"{bound.name} looks at no column; name at least one")
            after = bound.output(schemas[-1])
            schema_to_json(after)
            check_semantics(after)
            json.dumps(bound.recipe())
            schemas.append(after)
            operations.append(bound)
    return _passes(pipeline, ds, operations, schemas)


@contextmanager
def _about(where: str) -> Iterator[None]:
    """Inside, an error is told with the operation that it is about."""
    try:
        yield
    except LeptonError as error:
        error.args = (f"{where}: {error}", *error.args[1:])
        raise
    except TypeError as error:
        raise BadInput(f"{where}: a parameter has no value that a pipeline can hold ({error})") from None


def _passes(pipeline: Pipeline, ds: Dataset, operations: Sequence[Operation], schemas: Sequence[pa.Schema]) -> Plan:
    passes: list[TablePass] = []
    end: GroupEnd | None = None
    waiting: list[tuple[int, RowOperation]] = []  # numbers from 0

    def chain(numbers: Sequence[int], some: Sequence[RowOperation], after: pa.Schema | None = None) -> Chain:
        held = [schemas[number] for number in numbers]
        last = schemas[numbers[-1] + 1] if after is None else after
        memoised = any(one.memoised for one in some)
        one_failure = pipeline.on_error == "raise"
        return Chain(tuple(some), (*held, last), numbers[0] + 1, ds.label, memoised, one_failure)

    def chains() -> tuple[Chain, ...]:
        found = linked([(operation, schemas[number]) for number, operation in waiting])
        made = tuple(chain([waiting[at][0] for at in some], [waiting[at][1] for at in some]) for some in found)
        waiting.clear()
        return made

    for number, operation in enumerate(operations):
        if isinstance(operation, RowOperation):
            waiting.append((number, operation))
        elif isinstance(operation, TableOperation):
            measuring = Measuring(operation)
            one = chain([number], [measuring], measuring.output(schemas[number]))
            passes.append(TablePass(operation, number + 1, chains(), one))
        elif isinstance(operation, GroupOperation):
            with _about(pipeline.place(number + 1)):
                end = GroupEnd(operation, number + 1, schemas[number], operation.partials(schemas[number]))
    from leptonstore.process.pipeline import declared

    identity, keyed = _identity(pipeline, ds, operations, schemas, end)
    return Plan(
        ds,
        tuple(operations),
        tuple(schemas),
        tuple(passes),
        chains(),
        end,
        identity,
        keyed,
        pipeline.on_error,
        declared(pipeline),
    )


def _identity(
    pipeline: Pipeline, ds: Dataset, operations: Sequence[Operation], schemas: Sequence[pa.Schema], end: GroupEnd | None
) -> tuple[tuple[str, ...], bool]:
    """(the columns that identify rows of the result, whether they are a key)."""
    if end is not None:
        return end.operation.identity(end.before), False
    gone = [name for name in ds.identity if name not in schemas[-1].names]
    if gone:
        raise SchemaError(
            f"{pipeline.where}: the result would lack column {gone[0]!r}, which identifies rows of {ds.label}; it has "
            f"{listed(schemas[-1].names)}"
        )
    written = {
        name for operation, schema in zip(operations, schemas, strict=False) for name in operation.writes(schema)
    }
    return ds.identity, ds.keyed and not written & set(ds.identity)


def _known(ds: Dataset, chain: Chain, memo: Memo) -> int:
    known = 0
    fields = ds.fields(chain.reads)
    for start in range(0, len(ds), limits.SELECTION_ROWS_BATCH):
        rows = np.arange(start, min(start + limits.SELECTION_ROWS_BATCH, len(ds)), dtype=np.int64)
        columns = ds.pages.gather(rows, fields, keep=False)
        keys = chain.keys(dict(zip(chain.reads, columns, strict=True)))
        known += int(memo.places(keys).found.sum())
    return known


def digest_of_json(value: Any) -> str:
    """Hex BLAKE3 of a value's canonical JSON."""
    return digest_of(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hex()
