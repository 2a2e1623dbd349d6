"""The command line as people use it: real processes, exit codes, one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from leptonstore.cli.group import SUMMARIES, lepton
from leptonstore.cli.interrupt import INTERRUPTED
from leptonstore.cli.runtime import EXIT_CODES
from leptonstore.store import Store, check_store

ROOT = Path(__file__).parents[2]
LEPTON = [sys.executable, "-c", "from leptonstore.cli import main; main()"]


def run(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*LEPTON, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = 200_000
    columns = {"id": np.arange(rows), "x": rng.normal(size=rows), "y": rng.integers(0, 9, rows)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=20_000)
    return tmp_path / "t.parquet"


def test_import_log_stats_get_export_check(tmp_path: Path, table: Path) -> None:
    run("init", cwd=tmp_path)
    first = json.loads(run("import", table, "t", "--key", "id", "--json", cwd=tmp_path).stdout)
    assert first["rows"] == 200_000 and first["changed"]
    again = json.loads(run("import", table, "t", "--key", "id", "--json", cwd=tmp_path).stdout)
    assert again["commit"] == first["commit"] and again["new_bytes"] == 0 and not again["changed"]
    assert "200,000 rows" in run("log", "t", cwd=tmp_path).stdout
    assert json.loads(run("stats", "t", "--json", cwd=tmp_path).stdout)["rows"] == 200_000
    assert run("get", "t", "7", "--column", "id", cwd=tmp_path).stdout == "id: 7\n"
    run("export", "t", "back.parquet", cwd=tmp_path)
    assert pq.read_table(tmp_path / "back.parquet").equals(pq.read_table(table))
    assert json.loads(run("check", "--read-data", "--json", cwd=tmp_path).stdout)["clean"]
    assert "t@main" in run("ls", cwd=tmp_path).stdout


def test_mistakes_are_one_clear_line_with_an_exit_code(tmp_path: Path, table: Path) -> None:
    for arguments, code, text in [
        (("ls",), 3, "does not exist; create a store with `lepton init"),
        (("import", "nowhere", "t"), 2, "no such file or directory"),
        (("import", table, "../t"), 2, "dataset name"),
        (("--store",), 2, "No such option"),
        (("nonsense",), 2, "No such command"),
    ]:
        done = run(*arguments, cwd=tmp_path, code=code)
        assert text in done.stderr, done.stderr
    run("init", cwd=tmp_path)
    for arguments, code, text in [
        (("init",), 2, "is a store already"),
        (("log", "t"), 3, "there is: none yet"),
        (("ls", "--store", "nowhere://bucket/x"), 2, "no tier for nowhere://; give a path, s3://"),
    ]:
        done = run(*arguments, cwd=tmp_path, code=code)
        assert text in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_damage_is_exit_code_4_and_names_the_rows(tmp_path: Path, table: Path) -> None:
    run("init", cwd=tmp_path)
    run("import", table, "t", cwd=tmp_path)
    pack = max((tmp_path / ".lepton" / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert re.search(r"t/main rows \d+-\d+ column", run("check", "--read-data", cwd=tmp_path, code=4).stdout)
    assert re.search(r"in t@main rows \d+-\d+ column", run("export", "t", "x.parquet", cwd=tmp_path, code=4).stderr)


# An import that sends itself a signal at its n-th write, sync or link: a moment that does not depend on the machine's speed.
# Packs are written in small steps, so that there are moments in the middle of one.
SIGNALLED = """
import os, sys
from leptonstore import limits
limits.APPEND_BUFFER_BYTES = 64 << 10
number, at, calls = int(sys.argv[1]), int(sys.argv[2]), 0
def counted(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)
    return call
for name in ("pwritev", "fsync", "link"):
    setattr(os, name, counted(getattr(os, name)))
sys.argv = ["lepton", *sys.argv[3:]]
from leptonstore.cli import main
try:
    main()
finally:
    print(calls, file=sys.stderr)
"""


def _import_signalled(number: int, at: int, table: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), str(at), "import", str(table), "t", "--json"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def _calm_import(tmp_path: Path, table: Path) -> tuple[str, int]:
    """(commit, number of writes, syncs and links) of an undisturbed import."""
    (tmp_path / "calm").mkdir()
    run("init", cwd=tmp_path / "calm")
    done = _import_signalled(0, 0, table, tmp_path / "calm")
    return json.loads(done.stdout)["commit"], int(done.stderr.strip().split("\n")[-1])


def test_kill_9_at_ten_moments_of_an_import(tmp_path: Path, table: Path) -> None:
    """The store opens, check is clean, and the import run again gives the commit of an undisturbed one."""
    calm, calls = _calm_import(tmp_path, table)
    run("init", cwd=tmp_path)
    moments = np.random.default_rng(5).choice(np.arange(1, calls), 10, replace=False).tolist()
    for moment in sorted(moments):
        done = _import_signalled(signal.SIGKILL, moment, table, tmp_path)
        assert done.returncode == -signal.SIGKILL, "nothing was in flight"
        with Store.open(tmp_path / ".lepton") as store:
            assert check_store(store, read_data=True).clean
    assert json.loads(run("import", table, "t", "--json", cwd=tmp_path).stdout)["commit"] == calm


def test_ctrl_c_leaves_the_store_intact(tmp_path: Path, table: Path) -> None:
    """SIGINT in the middle: one line, exit code 130, nothing half-visible, and the next run completes."""
    calm, calls = _calm_import(tmp_path, table)
    run("init", cwd=tmp_path)
    for moment in (1, calls // 3, calls // 2):
        done = _import_signalled(signal.SIGINT, moment, table, tmp_path)
        assert done.returncode == 130, done.stderr
        assert "interrupted; what was stored is intact" in done.stderr and "Traceback" not in done.stderr
        with Store.open(tmp_path / ".lepton") as store:
            assert check_store(store, True).clean and not list((tmp_path / ".lepton" / "tmp").glob("*"))
    assert json.loads(run("import", table, "t", "--json", cwd=tmp_path).stdout)["commit"] == calm


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell ignores it
moment = sys.argv[1]
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
from leptonstore.cli import main
sys.argv = ["lepton", "ls"]
main()
"""
INTERRUPT_THAT_BECAME_AN_ERROR = """
import os, signal, sys
import click
from leptonstore.cli.runtime import run
signal.signal(signal.SIGINT, signal.default_int_handler)
@click.command()
def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise RuntimeError("Error calling __set_name__") from error
sys.exit(run(command, []))
"""


@pytest.mark.parametrize("module", ["click", "numpy", "pyarrow.lib", "leptonstore.cli.runtime", "leptonstore.cli.ls"])
def test_ctrl_c_while_the_command_is_loaded_is_one_line(tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_WHILE_LOADING, module]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, INTERRUPTED)


def test_ctrl_c_that_python_makes_an_error_of_is_one_line(tmp_path: Path) -> None:
    """As where it comes while a class is being made."""
    command = [sys.executable, "-c", INTERRUPT_THAT_BECAME_AN_ERROR]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, INTERRUPTED)


def test_the_package_of_the_command_line_is_light() -> None:
    """The console script imports it before anybody looks after Ctrl-C."""
    code = "import sys, leptonstore.cli; print([m for m in ('click', 'numpy', 'pyarrow', 'rich') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_the_help_and_the_readme_list_every_exit_code() -> None:
    listed = {
        "--help": lepton.epilog or "",
        **{name: (ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md")},
    }
    for name, text in listed.items():
        codes = re.split("Exit codes:|退出码：", text)[1].split("\n\n")[0]
        assert {0, 1, *(code for _, code in EXIT_CODES)} <= {int(one) for one in re.findall(r"\b\d+\b", codes, re.A)}, (
            name
        )


def test_every_command_has_help_with_an_example_and_json() -> None:
    runner = CliRunner()
    for name, summary in SUMMARIES.items():
        shown = runner.invoke(lepton, [name, "--help"])
        assert shown.exit_code == 0, (name, shown.output)
        assert "Example:" in shown.output and ("--json" in shown.output or name in ("completion", "browse")), name
        assert summary.rstrip(".").split()[0].rstrip(",").lower() in shown.output.lower(), name


def test_help_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    """Less than 0.5 s of work, once in twenty at least, so that a busy machine does not decide."""
    assert any(_cpu_seconds([*LEPTON, "--help"]) < 0.5 for _ in range(20))
    code = "import sys, leptonstore.cli.group, leptonstore; from leptonstore import Store, Dataset; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_commands_do_not_load_pandas_because_it_is_installed(tmp_path: Path, table: Path) -> None:
    """pyarrow imports it at the first numpy array that it meets: 0.2 s a command."""
    pytest.importorskip("pandas")
    run("init", cwd=tmp_path)
    code = (
        "import sys; from leptonstore.cli import main; sys.argv = ['lepton', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print('pandas' in sys.modules)"
    )
    for arguments in (("import", table, "t"), ("import", table, "t"), ("stats", "t"), ("log", "t")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False", arguments


def _cpu_seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['torch'] = None; from leptonstore.cli import main; sys.argv = ['lepton', 'train', 'x']; main()"
    done = subprocess.run([sys.executable, "-c", hide], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 8 and 'pip install "leptonstore[train]"' in done.stderr, done.stderr


def test_a_full_disk_is_exit_code_6(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", cwd=tmp_path)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        "from leptonstore.cli import main; sys.argv = ['lepton', 'import', sys.argv[1], 't']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, table], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 6 and "no space left" in done.stderr, (done.returncode, done.stderr)
    assert json.loads(run("check", "--read-data", "--json", cwd=tmp_path).stdout)["clean"]
