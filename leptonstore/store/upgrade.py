"""`lepton upgrade`: bring a store that an older version made up to what this version can do.

A store's format is what its documents and packs say of themselves; nothing is rewritten that can be read as it is. What
an older version did not make is a `Step` here. Features that a reader must know are turned on by a log entry that
names them in `requires` (leptonstore/format/framed.py): from there on, versions that do not know them refuse the store by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.errors import StoreFull
from leptonstore.format import framed
from leptonstore.store.store import Store


@dataclass(frozen=True)
class Step:
    """One thing that a store may lack."""

    name: str
    what: str
    lacks: Callable[[Store], bool]
    apply: Callable[[Store], None]


def _make_reserve(store: Store) -> None:
    if not store.home.restore_reserve():
        raise StoreFull(
            f"the reserve of {limits.RESERVE_BYTES >> 20} MiB could not be made in {store.url}: free some space, or let a user "
            "do this who may write there"
        )


STEPS = (
    Step(
        "reserve",
        f"make the reserve file ({limits.RESERVE_BYTES >> 20} MiB), so that `lepton gc` can run on a full disk",
        lambda store: not store.home.has_reserve(),
        _make_reserve,
    ),
)


@dataclass
class UpgradeReport:
    """What the store is, and what was done (with dry_run: would be)."""

    format: str
    made_by: str
    features: list[str] = field(default_factory=list)  # that the store requires by name
    steps: list[str] = field(default_factory=list)
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return vars(self)


def upgrade_store(store: Store, dry_run: bool = False) -> UpgradeReport:
    """Do every step that the store lacks; safe to interrupt and to repeat. Raises StoreFull or NotPermitted."""
    report = UpgradeReport(
        f"{framed.MAJOR}.{framed.MINOR}", store.config.made_by, list(store.state.requires), dry_run=dry_run
    )
    for step in STEPS:
        if step.lacks(store):
            report.steps.append(f"{step.name}: {step.what}")
            if not dry_run:
                step.apply(store)
    return report
