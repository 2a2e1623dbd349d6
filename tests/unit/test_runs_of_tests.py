"""How tests are run (tests/parallel.py, tests/skips.py): one file in one process, many in several; in CI nothing is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel import FILES_MIN, known_seconds, measured_seconds

pytest_plugins = ("pytester",)
TESTS = Path(__file__).resolve().parents[1]
WHERE = "import os\n\ndef test_where() -> None:\n    assert os.environ.get('PYTEST_XDIST_WORKER', '') {}\n"


@pytest.mark.parametrize(
    ("files", "options", "told"),
    [
        (FILES_MIN, [], "!= ''"),
        (FILES_MIN, ["-n", "0"], "== ''"),
        (FILES_MIN, ["-s"], "== ''"),
        (FILES_MIN - 1, [], "== ''"),
    ],
)
def test_many_files_go_to_several_processes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, files: int, options: list[str], told: str
) -> None:
    pytester.makepyfile(**{f"test_{at}": WHERE.format(told) for at in range(files)})
    pytester.makeconftest("pytest_plugins = ('tests.parallel',)")
    pytester.makeini(f"[pytest]\npythonpath = {TESTS.parent}")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of this very test
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options).assert_outcomes(
        passed=files
    )


SKIPS = """
import pytest

@pytest.fixture
def tool():
    pytest.skip("no tool")

def test_with_a_tool(tool): pass

def test_that_skips(): pytest.skip("no tool")

@pytest.mark.requires_cuda
@pytest.mark.skipif(True, reason="no device")
def test_on_a_device(): pass

@pytest.mark.xfail
def test_that_is_known_to_fail(): raise ValueError
"""


def test_in_ci_a_test_that_is_skipped_has_failed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(test_some=SKIPS, test_module="import pytest\npytest.importorskip('no_such_module')")
    some = ("-p", "tests.skips", "-p", "no:cacheprovider", "-p", "no:xdist", "test_some.py")
    monkeypatch.delenv("LEPTON_CI", raising=False)
    pytester.runpytest_inprocess(*some, "test_module.py").assert_outcomes(skipped=4, xfailed=1)
    monkeypatch.setenv("LEPTON_CI", "1")
    found = pytester.runpytest_inprocess(*some)
    found.assert_outcomes(errors=1, failed=1, skipped=1, xfailed=1)
    found.stdout.fnmatch_lines(["*test_that_skips*: nothing may be skipped in CI. *no tool*"])
    pytester.runpytest_inprocess(*some[:-1], "test_module.py").assert_outcomes(errors=1)


def test_the_long_files_that_are_listed_exist(tmp_path: Path) -> None:
    names = {path.stem for path in TESTS.rglob("test_*.py")}
    assert known_seconds() and known_seconds().keys() <= names
    report = tmp_path / "report.xml"
    cases = "".join(
        f'<testcase classname="{name}" time="{time}"/>'
        for name, time in (("tests.unit.test_a", 2), ("tests.unit.test_a.TestB", 3), ("tests.unit.test_c", 1))
    )
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert measured_seconds(report) == {"test_a": 5}
