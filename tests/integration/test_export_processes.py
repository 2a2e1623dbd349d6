"""An export whose work is divided among processes: the same files, the same errors, and nobody left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leptonstore.cli.runtime import EXIT_CODES
from leptonstore.errors import ChunkCorrupt, ChunkMissing, Damaged, MissingExtra, PackDamaged, SourceError, StoreFull

FILES, LARGE = 1_200, 1 << 20
EXIT_DAMAGED = dict(EXIT_CODES)[Damaged]

# `before` is called in the child that writes it before each file; "forked" on stderr proves that there were children.
SCRIPT = """
import os, signal, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as `lepton` does before it loads numpy: no fork beside other threads
import leptonstore.dataset.export_tree as export_tree
real, write = export_tree.run_forked, export_tree._Worker._write
parent, written = os.getpid(), 0
def run_forked(*arguments, **options):
    print("forked", file=sys.stderr, flush=True)
    return real(*arguments, **options)
def before():
    {before}
def _write(self, parent_fd, file):
    global written
    written += 1
    before()
    return write(self, parent_fd, file)
export_tree.run_forked, export_tree._Worker._write = run_forked, _write
from leptonstore.cli import main
main()
"""


def test_errors_pass_between_processes_with_all_of_their_fields() -> None:
    """A constructor that takes more than the message made a child's error a TypeError in its parent."""
    made = [
        ChunkCorrupt("ab" * 32, "cd" * 16, "why", "t@main row 1"),
        ChunkMissing("ab" * 32, "there"),
        PackDamaged("cd" * 16, "why"),
        SourceError("what", "a/path"),
        MissingExtra("that", "cli", "click"),
        StoreFull("no space"),
    ]
    for error in made:
        other = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(3)
    for number in range(FILES):
        path = place / f"tree/{number % 7}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(int(rng.integers(0, 9_000))))
    for number in range(4):
        (place / f"tree/large{number}").write_bytes(rng.bytes(LARGE + number))
    os.symlink("0/0", place / "tree/link")
    for words in (
        ["init", place / "store"],
        ["import", "--store", place / "store", "--format", "files", place / "tree", "t"],
    ):
        command = [sys.executable, "-c", "from leptonstore.cli import main; main()", *map(str, words)]
        subprocess.run(command, check=True, capture_output=True)
    return place / "store"


def export(store: Path, dest: Path, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run to the end of the last process that has our pipes open: an orphan would show as a timeout."""
    command = [sys.executable, "-c", SCRIPT.format(before=before), "export", "--store", str(store), "t", str(dest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.startswith("forked\n") and "Traceback" not in done.stderr, done.stderr
    return done


def partial(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if path.name.endswith(".partial")]


def test_processes_write_what_was_imported(store: Path, tmp_path: Path) -> None:
    assert export(store, tmp_path / "out").returncode == 0
    compared = subprocess.run(["diff", "-r", "--no-dereference", store.parent / "tree", tmp_path / "out"], check=False)
    assert compared.returncode == 0
    for path in (store.parent / "tree").rglob("*"):
        there, here = path.lstat(), (tmp_path / "out" / path.relative_to(store.parent / "tree")).lstat()
        assert (there.st_mode, there.st_mtime_ns) == (here.st_mode, here.st_mtime_ns)


def test_damage_found_by_a_process_is_named(store: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", store, tmp_path / "store"], check=True)
    pack = max((tmp_path / "store/packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    done = export(tmp_path / "store", tmp_path / "out")
    assert done.returncode == EXIT_DAMAGED and "column 'data'" in done.stderr and pack.stem in done.stderr, done.stderr
    assert not partial(tmp_path / "out")


def test_ctrl_c_ends_all_processes_and_leaves_no_half_file(store: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to all of them; the first file of each child sends it to the parent here."""
    stopped = "os.kill(os.getpid(), signal.SIGINT), os.kill(parent, signal.SIGINT) if written == 9 else None"
    done = export(store, tmp_path / "out", stopped)
    assert done.returncode == 130 and "interrupted" in done.stderr, (done.returncode, done.stderr)
    assert not partial(tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*"))) < FILES


def test_a_killed_process_is_told(store: Path, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out", "os.kill(os.getpid(), signal.SIGKILL) if written == 9 else None")
    assert done.returncode == 1 and "ended from outside: run it again" in done.stderr, (done.returncode, done.stderr)


def test_processes_do_not_outlive_a_killed_parent(store: Path, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out", "os.kill(parent, signal.SIGKILL) if written == 9 else None")
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out").rglob("*"))) < FILES
