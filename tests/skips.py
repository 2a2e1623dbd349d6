"""In CI a test that is skipped has failed: what it lacks would have to be installed. LEPTON_CI=1 says so; .ci/run sets it.

Excused are tests whose marks name what no package brings: a device (requires_cuda, requires_tpu), or data (requires_mnist).
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

EXCUSED = ("requires_cuda", "requires_tpu", "requires_mnist")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test, and of its fixtures."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if _in_ci() and skipped and not any(item.get_closest_marker(name) for name in EXCUSED):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a file that needs a module."""
    report = yield
    if _in_ci() and report.skipped:
        _fail(report)
    return report


def _in_ci() -> bool:
    return bool(os.environ.get("LEPTON_CI"))


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: nothing may be skipped in CI. {reason}"
