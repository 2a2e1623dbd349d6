"""Which of several byte ranges of one object are read together: a request costs as much as the bytes of a small gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leptonstore import limits


@dataclass
class Job:
    """One request, and which of the ranges it is for."""

    offset: int
    length: int
    members: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


def coalesced(ranges: Sequence[tuple[int, int]]) -> list[Job]:
    """The requests for (offset, length) pairs, by offset: gaps up to RANGE_GAP_BYTES are read with what is around them, as long as
    a request stays within RANGE_BYTES_MAX (a single larger range is one request). Empty ranges need none."""
    jobs: list[Job] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        offset, length = ranges[number]
        if not length:
            continue
        last = jobs[-1] if jobs else None
        end = offset + length
        if last is None or (
            end > last.end
            and (offset > last.end + limits.RANGE_GAP_BYTES or end - last.offset > limits.RANGE_BYTES_MAX)
        ):
            jobs.append(Job(offset, length, [number]))
        else:
            last.length = max(last.end, end) - last.offset
            last.members.append(number)
    return jobs
