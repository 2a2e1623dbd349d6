"""Which of several byte ranges of one object are read together: a request costs as much as the bytes of a small gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leptonstore import limits


@dataclass
class Job:
    """One request, and which of the ranges it is for."""

    pack: str
    offset: int
    length: int
    members: list[int] = field(default_factory=list)

    @property
    def range(self) -> tuple[str, int, int]:
        """(pack, offset, length)."""
        return self.pack, self.offset, self.length

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length

    def takes(self, offset: int, end: int) -> bool:
        """Whether [offset, end), which begins no earlier, is better read with it."""
        if end <= self.end:
            return True
        return offset <= self.end + limits.RANGE_GAP_BYTES and end - self.offset <= limits.RANGE_BYTES_MAX


def coalesced(wanted: Sequence[tuple[str, int, int]]) -> list[Job]:
    """The requests for (pack, offset, length) triples: gaps up to RANGE_GAP_BYTES are read with what is around them, as long as a
    request stays within RANGE_BYTES_MAX (a single larger range is one request). Empty ranges need none."""
    jobs: list[Job] = []
    for number in sorted(range(len(wanted)), key=lambda number: wanted[number]):
        pack, offset, length = wanted[number]
        if not length:
            continue
        if not jobs or jobs[-1].pack != pack or not jobs[-1].takes(offset, offset + length):
            jobs.append(Job(pack, offset, length))
        jobs[-1].length = max(jobs[-1].end, offset + length) - jobs[-1].offset
        jobs[-1].members.append(number)
    return jobs
