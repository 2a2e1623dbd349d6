"""`check` as a job: findings are lines, the first ones of many."""

from __future__ import annotations

from typing import Any

from leptonstore.daemon.maintenance import bounds
from leptonstore.daemon.maintenance.work import Work
from leptonstore.store import CheckReport, Store, check_store


def check(store: Store, work: Work) -> dict[str, Any]:
    """See store/check.py."""
    options = work.options

    def tell(done: int, total: int) -> None:
        work.tell(done, total, "bytes")

    seed = None if options["seed"] < 0 else options["seed"]
    return told(check_store(store, options["read_data"], tell, seed))


def told(report: CheckReport) -> dict[str, Any]:
    """A report as the result of a job: bounded."""
    body = report.to_json()
    more = report.problems_more + max(0, len(report.problems) - bounds.FINDINGS_MAX)
    problems = [problem.line()[: bounds.NOTE_CHARS_MAX] for problem in report.problems[: bounds.FINDINGS_MAX]]
    return {**body, "problems": problems, "problems_more": more}
