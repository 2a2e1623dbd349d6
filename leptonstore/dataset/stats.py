"""How large a version is: rows, plain bytes, stored bytes (each chunk once), chunks by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leptonstore.store import Store
from leptonstore.store.usage import placed_once


@dataclass(frozen=True)
class DatasetStats:
    """Bytes. `logical_bytes` counts every page and value of the version; `stored_bytes` what they take, metadata included.

    columns: name -> {"type", "logical_bytes", "stored_bytes", "chunks"}; `unique_bytes` is plain bytes without repeats.
    """

    rows: int
    row_groups: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    metadata_bytes: int
    chunks: int
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def stored_ratio(self) -> float:
        """stored / logical; 0 for an empty version."""
        return self.stored_bytes / self.logical_bytes if self.logical_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "stored_ratio": self.stored_ratio}


def version_stats(store: Store, commit: str, logical_bytes: int, rows: int, groups: int, schema: Any) -> DatasetStats:
    """Walk one version and add up where its chunks lie. Raises ChunkMissing or ChunkCorrupt."""
    columns: dict[str, dict[str, Any]] = {
        item.name: {"type": str(item.type), "logical_bytes": 0, "stored_bytes": 0, "chunks": 0} for item in schema
    }
    unique = stored = metadata = chunks = 0
    for reached, fact, size in placed_once(store, [commit]):
        chunks += 1
        stored += size
        if reached.what in ("commit", "node"):
            metadata += size
            continue
        plain = fact.plain or 0
        unique += plain
        column = columns[reached.column]
        column["stored_bytes"] += size
        column["logical_bytes"] += plain
        column["chunks"] += 1
    return DatasetStats(rows, groups, logical_bytes, unique, stored, metadata, chunks, columns)


def stored_bytes(store: Store, commits: list[str]) -> int:
    """Bytes that some versions take together, each chunk once, metadata included. Raises ChunkMissing or ChunkCorrupt."""
    return sum(size for _, _, size in placed_once(store, commits))
