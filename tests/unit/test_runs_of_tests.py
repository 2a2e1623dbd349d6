"""How tests are run (tests/parallel.py, reruns.py, skips.py): many files in several processes; in CI no skips, and chance is told."""

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


SERVER = """
import pathlib, pytest

@pytest.fixture(scope="module")
def server():
    starts = pathlib.Path(__file__).with_suffix(".starts")
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    assert len(starts.read_text()) > {starts}, "the server did not start"

def test_one(server): pass
def test_two(server): pass
"""
CHANCE = """
import pytest

@pytest.mark.parametrize("number", range({failing}))
def test_some(number, runs=[]):
    runs.append(number)
    assert runs.count(number) > 1, "not the first time"
"""


@pytest.mark.parametrize(
    ("ci", "folder", "code", "found", "again"),
    [
        ("1", "integration", CHANCE.format(failing=3), {"passed": 3}, 3),
        ("1", "integration", SERVER.format(starts=0), {"passed": 2}, 0),
        ("1", "crash", SERVER.format(starts=1), {"passed": 2}, 1),  # a module's fixture is made anew
        ("1", "browser", SERVER.format(starts=9), {"errors": 2}, 2),
        ("1", "unit", CHANCE.format(failing=2), {"failed": 2}, 0),
        ("", "integration", CHANCE.format(failing=2), {"failed": 2}, 0),
    ],
)
def test_in_ci_tests_of_several_processes_are_run_once_more_and_told(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    folder: str,
    code: str,
    found: dict[str, int],
    again: int,
) -> None:
    result = _run_with_reruns(pytester, monkeypatch, ci, folder, code)
    result.assert_outcomes(**found)
    assert result.ret == (pytest.ExitCode.OK if "passed" in found else pytest.ExitCode.TESTS_FAILED)
    told = [line for line in result.outlines if "run once more: " in line]
    assert len(told) == bool(again) and all(f"run once more: {again} (at most 3)" in line for line in told)


def test_many_that_pass_the_second_time_only_are_no_accident(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _run_with_reruns(pytester, monkeypatch, "1", "integration", CHANCE.format(failing=4))
    result.assert_outcomes(passed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def _run_with_reruns(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, folder: str, code: str
) -> pytest.RunResult:
    monkeypatch.setattr("tests.reruns.TESTS", pytester.path)
    monkeypatch.setenv("LEPTON_CI", ci)
    place = pytester.mkdir(folder)
    (place / "test_module.py").write_text(code)
    return pytester.runpytest_inprocess("-p", "tests.reruns", "-p", "no:cacheprovider", "-p", "no:xdist", str(place))


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
