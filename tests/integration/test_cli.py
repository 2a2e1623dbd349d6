"""The command line as people use it: real processes, exit codes, one clear line for every mistake."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from leptonstore.cli.group import SUMMARIES, lepton
from leptonstore.errors import StoreFull
from leptonstore.store import Store, check_store

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
        (("ls", "--store", "s3://bucket/x"), 2, "local directories only"),
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


def test_kill_9_at_ten_moments_of_an_import(tmp_path: Path, table: Path) -> None:
    """The store opens, check is clean, and the import run again gives the commit of an undisturbed one."""
    (tmp_path / "calm").mkdir()
    run("init", cwd=tmp_path / "calm")
    begin = time.monotonic()
    calm = json.loads(run("import", table, "t", "--json", cwd=tmp_path / "calm").stdout)["commit"]
    seconds = time.monotonic() - begin
    run("init", cwd=tmp_path)
    rng, killed = np.random.default_rng(5), 0
    for _ in range(10):
        process = subprocess.Popen([*LEPTON, "import", str(table), "t"], cwd=tmp_path, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=float(rng.uniform(0.2, 1.0)) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        with Store.open(tmp_path / ".lepton") as store:
            assert check_store(store, read_data=True).clean
    assert killed, "no import was in flight when it was killed"
    assert json.loads(run("import", table, "t", "--json", cwd=tmp_path).stdout)["commit"] == calm


def test_ctrl_c_leaves_the_store_intact(tmp_path: Path, table: Path) -> None:
    """SIGINT in the middle: one line, exit code 130 (or done, when it was quicker than us), nothing half-visible."""
    run("init", cwd=tmp_path)
    codes = []
    for moment in np.linspace(0.3, 1.5, 6):
        process = subprocess.Popen(
            [*LEPTON, "import", str(table), "t"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        try:
            process.wait(timeout=float(moment))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        codes.append(process.returncode)
        if process.returncode == 130:
            assert "interrupted; what was stored is intact" in said and "Traceback" not in said
        with Store.open(tmp_path / ".lepton") as store:
            assert check_store(store, True).clean and not list((tmp_path / ".lepton" / "tmp").glob("*"))
    assert 130 in codes, codes


def test_every_command_has_help_with_an_example_and_json() -> None:
    runner = CliRunner()
    for name, summary in SUMMARIES.items():
        shown = runner.invoke(lepton, [name, "--help"])
        assert shown.exit_code == 0, (name, shown.output)
        assert "Example:" in shown.output and "--json" in shown.output, name
        assert summary.rstrip(".").split()[0].lower() in shown.output.lower(), name


def test_help_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    """Under 0.5 s: the best of five, so that a busy machine does not decide."""
    best = min(_seconds([*LEPTON, "--help"]) for _ in range(5))
    assert best < 0.5, best
    code = "import sys, leptonstore.cli.group, leptonstore; from leptonstore import Store, Dataset; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


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
    assert issubclass(StoreFull, Exception)
    assert json.loads(run("check", "--read-data", "--json", cwd=tmp_path).stdout)["clean"]
