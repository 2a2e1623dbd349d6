"""In CI (LEPTON_CI) a test that drives other processes is run once more when it fails, and the run says so; four such fail the run.

A machine that others use may stand still for longer than a heartbeat lasts. Elsewhere nothing is run again: who sees such a test fail finds
out why. Tests of this process alone (tests/unit, tests/property, tests/stateful, tests/format) are never run again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDERS = ("integration", "browser", "crash", "conformance")  # of tests that start servers, daemons, browsers, ranks
RERUNS_MAX = 3  # of all tests of a run: more is no accident
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them for pytest-rerunfailures."""
    if os.environ.get("LEPTON_CI"):
        places = [TESTS / name for name in FOLDERS]
        for item in items:
            if any(item.path.is_relative_to(place) for place in places):
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Too many fail the run."""
    if len(_reports(session.config)) > RERUNS_MAX and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Which, and why they had failed."""
    reports = _reports(config)
    if reports:
        terminalreporter.section(f"run once more: {len(reports)} (at most {RERUNS_MAX})")
    for report in reports:
        terminalreporter.line(f"{report.nodeid} ({report.when})")
        terminalreporter.line(report.longreprtext)


def _reports(config: pytest.Config) -> list[pytest.TestReport]:
    """Failures after which a test was run once more; in a process of pytest-xdist none, as the first process has them all."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else reporter.stats.get("rerun", [])
