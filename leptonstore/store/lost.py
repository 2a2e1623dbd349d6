"""What no copy has any more, by version, column and rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from leptonstore.errors import TierUnavailable
from leptonstore.store.check import Recent
from leptonstore.store.mend import Mending
from leptonstore.store.store import Store
from leptonstore.store.versions import Version, all_versions
from leptonstore.store.walk import Reached, walk


@dataclass
class Lost:
    """Chunks of one column of one version. `column` is empty when a commit or a tree node is lost: all columns, then.

    rows: [first, end) each, sorted, not overlapping. A lost commit has no rows: nothing of the version can be read.
    """

    version: str
    commit: str
    column: str
    rows: list[tuple[int, int]] = field(default_factory=list)
    chunks: int = 0

    def line(self) -> str:
        """For people."""
        if not self.rows:
            return f"{self.version}: its commit, and with it all rows"
        rows = ", ".join(str(first) if end - first == 1 else f"{first}-{end - 1}" for first, end in self.rows)
        where = f"column {self.column!r}" if self.column else "all columns"
        return f"{self.version}: {where}, rows {rows}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return vars(self)


def find_lost(mending: Mending) -> list[Lost]:
    """Walk every version through `mending`, which fetches what it can; what stays missing, for each version that needs it.

    Raises TierUnavailable when a tier that may have it is away.
    """
    store = cast(Store, mending)  # it is what walk uses of one
    seen = Recent()
    versions = all_versions(store)
    # What versions share is walked once; only when something is lost, every version is asked what that costs it.
    if not any(_is_lost(reached) for version in versions for reached in walk(store, version.commit, seen)):
        return []
    return [lost for version in versions for lost in _lost_of(store, version)]


def _is_lost(reached: Reached) -> bool:
    """Raises TierUnavailable: what is in a tier that is away is not lost."""
    if isinstance(reached.error, TierUnavailable):
        raise reached.error
    return reached.error is not None


def _lost_of(store: Store, version: Version) -> list[Lost]:
    found: dict[str, Lost] = {}
    for reached in walk(store, version.commit, Recent()):
        if _is_lost(reached):
            lost = found.setdefault(reached.column, Lost(version.label, version.commit, reached.column))
            lost.chunks += 1
            _add_rows(lost.rows, reached)
    return list(found.values())


def _add_rows(rows: list[tuple[int, int]], reached: Reached) -> None:
    """Rows of one column come in order, so that only the last range can be met again."""
    first, end = reached.rows
    if end <= first:
        return
    if rows and first <= rows[-1][1]:
        rows[-1] = (rows[-1][0], max(end, rows[-1][1]))
    else:
        rows.append((first, end))
