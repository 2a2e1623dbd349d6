"""`lepton process` as people use it: real processes, exit codes, one clear line for every mistake; runs that are interrupted or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.store import Store, check_store

LEPTON = [sys.executable, "-c", "from leptonstore.cli import main; main()"]
ROWS = 20_000
CODE = """
import os, signal
from pathlib import Path

def slow(batch, stop, folder):
    texts = batch.column("text").to_pylist()
    if stop in texts and Path(folder, "armed").exists():
        Path(folder, "armed").unlink()
        os.kill(os.getpid(), getattr(signal, Path(folder, "signal").read_text()))
    return {"size": [len(text) for text in texts]}

def picky(batch):
    if "text 17" in batch.column("text").to_pylist():
        raise ValueError("17 is not allowed")
    return {}
"""
PIPELINE = """
dataset = "texts"
into = "made"

[[operation]]
use = "user_code:slow"
columns = ["text"]
returns = {{size = "int32"}}
arguments = {{stop = "text {stop}", folder = "{folder}"}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a store in .lepton, a pipeline, and the code that it calls."""
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    table = pa.table([pa.array(range(ROWS)), pa.array([f"text {row}" for row in range(ROWS)])], schema=schema)
    with Store.create(tmp_path / ".lepton") as store:
        write_dataset(
            store, "texts", Source(schema, ("id",), lambda: iter(table.to_batches(max_chunksize=1_000)), ROWS)
        )
    (tmp_path / "user_code.py").write_text(CODE)
    (tmp_path / "p.toml").write_text(PIPELINE.format(stop=ROWS - 5_000, folder=tmp_path))
    return tmp_path


def run(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(cwd), *sys.path])}
    done = subprocess.run([*LEPTON, *arguments], cwd=cwd, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_plan_run_show_and_memo(place: Path) -> None:
    plan = run("process", "plan", "p.toml", cwd=place).stdout
    assert "writes made@main; a row that an operation fails on ends the run" in plan
    assert "20,000 rows, in 1 pass" in plan and "size int32" in plan and "0 of 20,000 rows are in the memo" in plan
    made = json.loads(run("process", "run", "p.toml", "--json", cwd=place).stdout)
    assert made["rows_in"] == made["rows_out"] == made["computed"] == ROWS and made["reused"] == 0
    assert made["dataset"] == "made" and made["written"] and made["seconds"] > 0 and made["dropped"] == {}
    assert "nothing new: made@main" in run("process", "run", "p.toml", cwd=place).stdout
    other = json.loads(run("process", "run", "p.toml", "--into", "made@other", "--json", cwd=place).stdout)
    assert (other["reused"], other["computed"], other["commit"]) == (ROWS, 0, made["commit"])
    shown = run("process", "show", "made", cwd=place).stdout
    assert "user_code:slow  20,000 rows in, 20,000 out" in shown
    assert "image.resize" in run("process", "show", cwd=place).stdout
    assert "shorter_max" in run("process", "show", "image.resize", cwd=place).stdout
    assert json.loads(run("process", "memo", "--json", cwd=place).stdout)["rows"] == ROWS
    assert json.loads(run("process", "memo", "--clear", "--limit", "1GiB", "--json", cwd=place).stdout)["rows"] == 0


def test_mistakes_are_one_clear_line_before_anything_runs(place: Path) -> None:
    bad = place / "bad.toml"
    bad.write_text('dataset = "texts"\ninto = "made"\n[[operation]]\nuse = "rows.splitt"\n')
    told = run("process", "run", "bad.toml", cwd=place, code=2).stderr
    assert told.startswith(
        "lepton: bad.toml line 3, operation 1: there is no operation 'rows.splitt'; did you mean 'rows.split'?"
    )
    bad.write_text(
        'dataset = "texts"\ninto = "made"\n[[operation]]\nuse = "image.resize"\ncolumn = "text"\nsize = [8, 8]\n'
    )
    told = run("process", "plan", "bad.toml", cwd=place, code=2).stderr
    assert "bad.toml line 3, operation 1: image.resize: column 'text'" in told
    bad.write_text('dataset = "nothing"\ninto = "made"\n')
    assert "nothing" in run("process", "run", "bad.toml", cwd=place, code=3).stderr
    assert "nowhere.toml" in run("process", "run", "nowhere.toml", cwd=place, code=2).stderr
    run("process", "run", "p.toml", "--address", "ray://nobody:1", cwd=place, code=2)
    with Store.open(place / ".lepton") as store:
        assert not list_refs(store, "dataset", "made")


def test_a_row_that_fails_ends_the_run_or_is_left_out(place: Path) -> None:
    file = place / "picky.toml"
    file.write_text('dataset = "texts"\ninto = "made"\n[[operation]]\nuse = "user_code:picky"\ncolumns = ["text"]\n')
    told = run("process", "run", "picky.toml", cwd=place, code=2).stderr
    assert "operation 1 (user_code:picky) failed on row 17 of texts@main: ValueError: 17 is not allowed" in told
    assert len(told.splitlines()) == 1, "and Daft says nothing of its own"
    made = run("process", "run", "picky.toml", "--on-error", "quarantine", cwd=place).stdout
    assert "20,000 in, 19,999 out" in made and "failed" in made and "made.findings" in made


def test_threads_of_dafts_that_come_out_of_python_find_an_interpreter(place: Path) -> None:
    """After a failed run some did not, and the process ended with signal 6 instead of its exit code: now it ends before the interpreter."""
    code = """
import atexit, sys
class Interpreter:
    def __del__(self, write=sys.stdout.write):
        write("ended")
kept = Interpreter()
atexit.register(print, "at exit")
from leptonstore.cli import main
main()
"""
    file = place / "picky.toml"
    file.write_text('dataset = "texts"\ninto = "made"\n[[operation]]\nuse = "user_code:picky"\ncolumns = ["text"]\n')
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    for arguments, status, said in ((["run", "picky.toml"], 2, "at exit\n"), (["plan", "picky.toml"], 0, "ended")):
        done = subprocess.run(
            [sys.executable, "-c", code, "process", *arguments],
            cwd=place, capture_output=True, text=True, check=False, env=env,
        )  # fmt: skip
        assert done.returncode == status and done.stdout.endswith(said), (done.stdout, done.stderr)


def test_show_names_the_operation_that_is_nearest_to_a_typo(place: Path) -> None:
    assert (
        "did you mean the operation 'check.outliers'?"
        in run("process", "show", "check.outlierz", cwd=place, code=3).stderr
    )
    assert "default 'keep': keep, drop, tag, fix" in run("process", "show", "check.nulls", cwd=place).stdout
    shown = run("process", "show", "rows.sample", cwd=place).stdout
    assert "a list (text each)" in shown and "Sequence" not in shown, "types are said in words"


def test_a_plan_of_many_columns_stays_readable(tmp_path: Path) -> None:
    table = pa.table({f"column_{number}": pa.array([number]) for number in range(400)})
    with Store.create(tmp_path / ".lepton") as store:
        source = Source(table.schema, ("column_0",), lambda: iter(table.to_batches()), 1)
        write_dataset(store, "wide", source)
    (tmp_path / "p.toml").write_text(
        'dataset = "wide"\ninto = "made"\n[[operation]]\nuse = "rows.select"\nwhere = "column_1 = 1"\n'
    )
    plan = run("process", "plan", "p.toml", cwd=tmp_path).stdout
    assert "and 390 more" in plan and max(map(len, plan.splitlines())) < 500


@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_a_run_that_is_stopped_leaves_nothing_to_be_seen_and_the_next_one_goes_on(place: Path, sent: str) -> None:
    (place / "armed").touch()
    (place / "signal").write_text(sent)
    done = run("process", "run", "p.toml", cwd=place, code=130 if sent == "SIGINT" else -signal.SIGKILL)
    if sent == "SIGINT":
        assert "interrupted; what was stored is intact" in done.stderr
    with Store.open(place / ".lepton") as store:
        assert not list_refs(store, "dataset", "made")
        assert check_store(store, True).clean
    made = json.loads(run("process", "run", "p.toml", "--json", cwd=place).stdout)
    assert made["reused"] > 0 and made["reused"] + made["computed"] == ROWS
    with Store.open(place / ".lepton") as store:
        whole = Dataset.open(store, "made").to_arrow()
        assert whole["size"].to_pylist() == [len(text) for text in whole["text"].to_pylist()]


def test_help_imports_no_engine(place: Path) -> None:
    code = (
        "import sys; from leptonstore.cli import main; sys.argv = ['lepton', 'process', 'run', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', [one for one in ('daft', 'ray', 'torch') if one in sys.modules])"
    )
    assert "LOADED []" in subprocess.check_output([sys.executable, "-c", code], text=True, cwd=place)
