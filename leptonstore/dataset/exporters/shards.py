"""An export of many files into one folder: whole files only, and interrupted it goes on where it was.

Invariants:
- A shard takes its name when it is whole. What was written is noted in JOURNAL, a file beside the shards, after each of them.
- Where one shard ends is a function of the rows alone: a run that goes on writes the same shards as one that was never
  interrupted. It goes on only for the same commit, rows, format and options, and only after shards whose length is as noted.
- The files that make it a data set for other readers (an index) come last; then the journal is removed. So an unfinished
  export is never taken for a whole one where the format has an index. WebDataset has none: there the journal alone tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from leptonstore import limits
from leptonstore.dataset.confined import writing
from leptonstore.dataset.exporters.common import ExportReport, Rows, new_file, require_free_folder
from leptonstore.dataset.places import Place
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput

JOURNAL = ".lepton-export.json"


@dataclass(frozen=True)
class Shard:
    """A shard that is whole. end: the row after its last. more: what the index needs to know of it."""

    name: str
    end: int
    bytes: int
    more: dict[str, Any] = field(default_factory=dict)


def export_key(ds: Rows, format: str, options: dict[str, Any]) -> str:
    """What an export writes, in a word; "" for rows that have no name that lasts."""
    fingerprint = getattr(ds, "fingerprint", None)
    sizes = [limits.EXPORT_SHARD_BYTES, limits.EXPORT_ARROW_SHARD_BYTES]
    settings = [fingerprint, len(ds), format, options, sizes, str(ds.schema)]
    return digest_of(json.dumps(settings).encode()).hex() if fingerprint else ""


def read_journal(dest: Place, key: str) -> list[Any] | None:
    """What the journal of that export lists, None where there is none."""
    try:
        with (dest / JOURNAL).open("rb") as file:
            journal = json.loads(file.read(limits.EXPORT_JOURNAL_BYTES_MAX))
        return list(journal["shards"]) if key and journal["export"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_journal(dest: Place, key: str, shards: list[Shard]) -> None:
    """Replace the journal."""
    with new_file(dest / JOURNAL) as file:
        file.write(json.dumps({"export": key, "shards": [asdict(shard) for shard in shards]}).encode())


class Shards:
    """The shards of one export, in order."""

    def __init__(
        self, ds: Rows, dest: Place, format: str, options: dict[str, Any], names: str, overwrite: bool
    ) -> None:
        """names: a regular expression of the names that such an export gives. Raises BadInput: the folder is not free."""
        self.dest, self.done = dest, list[Shard]()
        self._names = re.compile(names)
        self._key = export_key(ds, format, options)
        if not self._resume():
            require_free_folder(dest, overwrite)
            self._remove_old()

    @property
    def end(self) -> int:
        """The first row that is not written yet."""
        return self.done[-1].end if self.done else 0

    def _resume(self) -> bool:
        try:
            entries = read_journal(self.dest, self._key)
            if entries is None:
                return False
            found = [Shard(**entry) for entry in entries]
        except TypeError:
            return False
        for shard in found:
            if not isinstance(shard.name, str) or not self._names.fullmatch(shard.name):
                return False
            place = self.dest / shard.name
            if not place.is_file() or place.stat().st_size != shard.bytes or shard.end < self.end:
                break  # this one and all after it are written again
            self.done.append(shard)
        return True

    def _remove_old(self) -> None:
        """With overwrite: what an older export left, an index first, or it would speak of shards that are not there."""
        if not self.dest.is_dir():
            return
        names = [entry.name for entry in self.dest.iterdir()]
        for name in sorted(names, key=lambda name: not name.endswith(".json")):
            if name == JOURNAL or self._names.fullmatch(name):
                with writing(self.dest / name):
                    (self.dest / name).unlink(missing_ok=True)

    def add(self, name: str, end: int, write: Callable[[IO[bytes]], None], more: dict[str, Any] | None = None) -> None:
        """Write the next shard, up to row `end`."""
        assert self._names.fullmatch(name), name
        with new_file(self.dest / name) as file:
            write(file)
        self.done.append(Shard(name, end, (self.dest / name).stat().st_size, more or {}))
        if self._key:
            write_journal(self.dest, self._key, self.done)

    def finish(self, rows: int, last: dict[str, bytes]) -> ExportReport:
        """Write the files that come last, and forget the journal."""
        if self.end != rows:
            raise BadInput(f"{self.dest} has {self.end} of {rows} rows; remove it and export again")
        for name, data in last.items():
            with new_file(self.dest / name) as file:
                file.write(data)
        with writing(self.dest / JOURNAL):
            (self.dest / JOURNAL).unlink(missing_ok=True)
        size = sum(shard.bytes for shard in self.done) + sum(map(len, last.values()))
        return ExportReport(self.dest, rows, len(self.done) + len(last), size)
