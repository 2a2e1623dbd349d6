"""A run of many files uses all cores (pytest-xdist): each file in one process, the longest files first.

    python -m pytest -q             all files: as many processes as cores, two at least
    python -m pytest -q FILE        one process, at once: other processes take seconds to start
    python -m pytest -q -n 8        eight; -n 0: one. One, too, with --pdb, -s, --stepwise, and without pytest-xdist

A file stays whole, so that what its fixtures make is made once. Which file comes first is all that seconds.txt decides; after large
changes it is written anew (one process, so that nothing waits for others):

    python -m pytest -q -n 0 --junitxml=seconds.xml; python -m tests.parallel seconds.xml > tests/seconds.txt
"""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

SECONDS = Path(__file__).with_name("seconds.txt")
FILES_MIN, SECONDS_MIN = 4, 3  # fewer files do not pay for other processes; quicker files are not listed


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Ask pytest-xdist for processes where the user did not say how many."""
    option = config.option
    if hasattr(config, "workerinput"):  # in one of them
        return
    if not config.pluginmanager.hasplugin("xdist") or option.numprocesses is not None or option.dist != "no":
        return
    alone = ("usepdb", "trace", "stepwise", "collectonly", "setupshow", "setuponly", "setupplan")
    if option.capture == "no" or any(getattr(option, name, False) for name in alone):
        return
    if _files(config.args, config.invocation_params.dir) < FILES_MIN:
        return
    option.numprocesses, option.dist, option.loadscopereorder = processes(), "loadfile", False
    # Each has a share of the cores, as has what it starts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def processes() -> int:
    """How many to start."""
    return max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)


def _files(arguments: Iterable[str], here: Path) -> int:
    """How many files of tests the arguments of pytest name."""
    places = [here / argument.split("::")[0] for argument in arguments]
    return sum(1 if place.is_file() else sum(1 for _ in place.rglob("test_*.py")) for place in places)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In each process the same order: pytest-xdist hands files out as they stand."""
    if hasattr(config, "workerinput"):
        seconds = known_seconds()
        items.sort(key=lambda item: -seconds.get(item.path.stem, 0.0))


def known_seconds() -> dict[str, float]:
    """Seconds by the names of long files, without folders: a file that moves keeps its place."""
    lines = [line.split() for line in SECONDS.read_text().splitlines() if line and not line.startswith("#")]
    return {name: float(seconds) for seconds, name in lines}


def measured_seconds(report: Path) -> dict[str, float]:
    """The same of a report in JUnit's form."""
    found: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase"):
        parts = case.attrib.get("classname", "").split(".")
        name = next((part for part in parts if part.startswith("test_")), "")
        found[name] += float(case.attrib.get("time", 0))
    return {name: seconds for name, seconds in found.items() if name and seconds >= SECONDS_MIN}


if __name__ == "__main__":
    print("# Seconds of the long files in one process, for tests/parallel.py, which says how to write this anew.")
    for long_name, its in sorted(measured_seconds(Path(sys.argv[1])).items(), key=lambda pair: -pair[1]):
        print(f"{its:.0f} {long_name}")
