"""The state of a loader: a position in the order of one dataset version. A few hundred bytes, whatever the data's size.

Positions are global: they count the samples that all ranks together have consumed in the epoch. So a state says nothing
of ranks, world size or workers, and continues on any number of them. With another global batch size the rest of the
epoch is cut into batches of the new size: no row repeats and none is missing, only the boundaries move.

What decides the order itself (dataset version and view, seed, order, drop_last) must be equal, and a state that
differs is refused by name: a silent restart would train on some rows twice and never say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loaders.order import ORDER_ROWS_MAX, SEED_MAX
from loaders.skips import SKIPS_MAX
from loaders.source import BadInput

FORMAT = "lepton.loader-state"
VERSION = 2


class LoaderStateError(BadInput, ValueError):
    """A state that this loader cannot continue from, or a loader that has no state.

    It is `leptonstore.errors.BadInput` for the command line, and ValueError for code that knows torch only.
    """


@dataclass(frozen=True)
class LoaderState:
    """The rest of an epoch: global positions [consumed, length) of the order of (data, seed, epoch).

    dataset, commit: name and commit of the version, for people; `fingerprint` (commit and selection) is what counts.
    length:          positions of the epoch.
    global_batch:    rows of a global batch when the state was taken; information, not a condition.
    order:           the spec of the order strategy (loaders.order.OrderStrategy).
    receipt:         {"head": 64 hex digits, "steps": n} of the chain so far (loaders.chain); empty without receipts.
    skips:           [[epoch, start, stop], …] of the positions left out from this epoch on (loaders.skips): 60 bytes each, beside the KiB.
    """

    dataset: str
    commit: str
    fingerprint: str
    length: int
    seed: int
    epoch: int
    consumed: int
    global_batch: int
    order: dict[str, Any]
    drop_last: bool
    receipt: dict[str, Any]
    skips: list[Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; at most 1 KiB of JSON, and what `skips` takes."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LoaderState:
        """The mirror image of `to_dict`. Raises LoaderStateError on anything else."""
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            named = state.get("format") if isinstance(state, Mapping) else type(state).__name__
            raise LoaderStateError(f"this is no state of a LeptonStore loader: its format is {named!r}, not {FORMAT!r}")
        if state.get("version") != VERSION:
            raise LoaderStateError(
                f"the loader state has version {state.get('version')!r} and this code reads version {VERSION}: "
                "restore it with the LeptonStore that wrote it"
            )
        fields = {name: state[name] for name in cls.__dataclass_fields__ if name in state}
        for name, kind in cls.__annotations__.items():
            # Annotations are text here. A bool is an int to Python, and 1 is no answer to "shuffle?".
            kind = kind.partition("[")[0]
            if name not in fields or type(fields[name]).__name__ != kind:
                raise LoaderStateError(f"the loader state is damaged: its field {name!r} is missing or no {kind}")
        _require_in_range(fields)
        return cls(**fields)

    def require_same_order(self, loader: LoaderState) -> None:
        """Raise LoaderStateError unless a loader whose state at this position would be `loader` sees the same order."""
        if self.fingerprint != loader.fingerprint:
            raise LoaderStateError(
                f"the loader state is of {self.named()} and this loader reads {loader.named()}: "
                f"open {self.dataset}@{self.commit[:12]} (and take the same rows of it) to continue"
            )
        for name in ("seed", "order", "drop_last"):
            saved, here = getattr(self, name), getattr(loader, name)
            if saved != here:
                raise LoaderStateError(
                    f"the loader state was taken with {name}={saved!r} and this loader has {name}={here!r}: "
                    f"make the loader with {name}={saved!r} to continue"
                )
        # Where nothing of the epoch is consumed, its length does not matter: limits may change between epochs.
        if self.length != loader.length and self.consumed:
            raise LoaderStateError(
                f"the loader state is of an epoch of {self.length} positions and this loader's epoch {self.epoch} has "
                f"{loader.length}: finish it with the same limit_batches or overfit_batches, and global batches of "
                f"{self.global_batch} rows"
            )

    def named(self) -> str:
        """The data that it is of."""
        return f"dataset {self.dataset!r}, commit {self.commit[:12]}, fingerprint {self.fingerprint[:24]}"


def _require_in_range(fields: Mapping[str, Any]) -> None:
    bounds = {
        "length": (0, ORDER_ROWS_MAX),
        "seed": (0, SEED_MAX),
        "epoch": (0, SEED_MAX),
        "consumed": (0, fields["length"]),
        "global_batch": (1, ORDER_ROWS_MAX),
    }
    for name, (low, high) in bounds.items():
        if not low <= fields[name] <= high:
            raise LoaderStateError(
                f"the loader state is damaged: its field {name!r} is {fields[name]}, not in [{low}, {high}]"
            )
    receipt, skips = fields["receipt"], fields["skips"]
    if receipt and not (
        re.fullmatch("[0-9a-f]{64}", str(receipt.get("head"))) and _is_number(receipt.get("steps"), SEED_MAX)
    ):
        raise LoaderStateError(
            "the loader state is damaged: its field 'receipt' has no head of 64 hex digits and number of steps"
        )
    if len(skips) > SKIPS_MAX or not all(_is_skip(skip) for skip in skips):
        raise LoaderStateError("the loader state is damaged: its field 'skips' is no list of [epoch, start, stop]")


def _is_skip(told: Any) -> bool:
    if not (isinstance(told, list) and len(told) == 3 and _is_number(told[0], SEED_MAX)):
        return False
    return _is_number(told[1], ORDER_ROWS_MAX) and _is_number(told[2], ORDER_ROWS_MAX) and told[1] < told[2]


def _is_number(told: Any, high: int) -> bool:
    return type(told) is int and 0 <= told <= high
