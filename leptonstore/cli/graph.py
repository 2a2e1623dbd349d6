"""Lines that join versions to those that they came from, for `lepton log`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def graph_lines(versions: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, list[str]]]:
    """(what stands before a version, lines that follow it) for each (version, its parents), which come none before its children.

    A column is a line of versions; the entry in `columns` is the version that is expected next in it.
    """
    columns: list[str] = []
    for version, parents in versions:
        if version not in columns:
            columns.append(version)
        at = columns.index(version)
        before = " ".join("*" if number == at else "|" for number in range(len(columns)))
        after = []
        first, others = parents[:1], parents[1:]
        for parent in reversed(others):
            if parent not in columns:
                columns.insert(at + 1, parent)
                after.append("| " * at + "|\\" + " \\" * (len(columns) - at - 2))
        if not first:
            columns.pop(at)
        elif first[0] not in columns:
            columns[at] = first[0]
        else:  # two lines of versions meet where they parted
            columns.pop(at)
            met = columns.index(first[0])
            left = min(at, met)
            if at != met or len(columns) > at:
                after.append("| " * left + "|/" + " /" * (len(columns) - left - 1))
        # A column that waits for the same version twice is one column.
        for number in range(len(columns) - 1, 0, -1):
            if columns[number] in columns[:number]:
                columns.pop(number)
        yield before, after
