"""How fast a tree of files goes into a store and comes out again, beside restic and borg in the same run.

python -m bench.ingest [--tree DIR] --vs restic,borg [--runs 3] [--history]     DIR: >= 1 GB; default: what bench.trees makes
python -m bench.ingest --quick                                              two small trees, no peers

Every program does the same steps, in turns, each in processes of its own, on one copy of the tree: a new repository, first
import, import of the unchanged tree, export; then the tree is edited, and imported once more. Times are wall times, process
start and fsync included; the tree is read once before each import, so that it is in the page cache for all. Between two
steps, outside the time, everything is synced. `--vs` knows restic and borg as they come (restic encrypts and compresses with
zstd; borg: repokey, lz4) and borg-zstd (zstd,3); a program that is not installed is an error, not a gap.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import harness, trees
from bench.harness import Figure

_PASSPHRASE = "correct horse battery staple"
EDITED_SHARE = 0.01
SMALL_FILES, SMALL_FILES_QUICK = 100_000, 2_000
LEPTON = (sys.executable, "-c", "from leptonstore.cli import main; main()")


@dataclass
class Step:
    """One command: wall seconds and the largest resident memory of its processes, in bytes."""

    seconds: float
    memory: int


def run(command: Sequence[str], environment: dict[str, str], folder: Path) -> Step:
    """Run to the end, synced before. Raises SystemExit with what the command said when it fails.

    This process must stay small: until a child executes its program, it is charged with its parent's memory.
    """
    os.sync()
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read()[-2_000:].decode(errors="replace")
            raise SystemExit(f"{' '.join(command[:4])} … failed with {process.returncode}:\n{text}")
    return Step(seconds, usage.ru_maxrss * 1024)


@dataclass
class Program:
    """Something that keeps trees. In the commands {repo}, {tree} and {dest} are filled in; they run in {tree}'s parent."""

    name: str
    new: tuple[str, ...]
    keep: tuple[str, ...]
    export: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)

    def command(self, words: tuple[str, ...], **places: Path) -> list[str]:
        """With the places filled in."""
        return [word.format(**places) if "{" in word else word for word in words]


_BORG_EXTRACT = 'mkdir "$2" && cd "$2" && exec borg extract "$1::$(borg list --last 1 --short "$1")"'
PROGRAMS = {
    "lepton": Program(
        "lepton",
        (*LEPTON, "init", "{repo}"),
        (*LEPTON, "import", "--store", "{repo}", "--format", "files", "{tree}", "tree", "--json"),
        (*LEPTON, "export", "--store", "{repo}", "tree", "{dest}", "--json"),
    ),
    "lepton-encrypted": Program(
        "lepton-encrypted",
        (*LEPTON, "init", "--encrypt", "{repo}"),
        (*LEPTON, "import", "--store", "{repo}", "--format", "files", "{tree}", "tree", "--json"),
        (*LEPTON, "export", "--store", "{repo}", "tree", "{dest}", "--json"),
        {"LEPTON_PASSPHRASE": _PASSPHRASE},
    ),
    "restic": Program(
        "restic",
        ("restic", "init", "--repo", "{repo}"),
        ("restic", "backup", "--repo", "{repo}", "{tree}"),
        ("restic", "restore", "latest", "--repo", "{repo}", "--target", "{dest}"),
        {"RESTIC_PASSWORD": _PASSPHRASE},
    ),
    "borg": Program(
        "borg",
        ("borg", "init", "--encryption=repokey", "{repo}"),
        ("borg", "create", "{repo}::{{now:%H%M%S.%f}}", "{tree.name}"),
        ("sh", "-c", _BORG_EXTRACT, "-", "{repo}", "{dest}"),
        {"BORG_PASSPHRASE": _PASSPHRASE},
    ),
}
PROGRAMS["borg-zstd"] = Program(
    "borg-zstd",
    PROGRAMS["borg"].new,
    ("borg", "create", "--compression", "zstd,3", *PROGRAMS["borg"].keep[2:]),
    PROGRAMS["borg"].export,
    PROGRAMS["borg"].settings,
)


@dataclass
class Measured:
    """What one program took, a value for each run. Bytes are those of the repository's files."""

    first: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    export: list[float] = field(default_factory=list)
    edited: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)
    again_bytes: list[float] = field(default_factory=list)
    edited_bytes: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def stored_bytes(repository: Path) -> int:
    """Bytes of all its files; a store's preallocated reserve is room, not data."""
    names = (Path(folder) / name for folder, _, names in os.walk(repository) for name in names)
    return sum(path.lstat().st_size for path in names if path != repository / "reserve")


def differences(left: Path, right: Path) -> list[str]:
    """What a user would call different: content, names, kinds, modes, times of files. Empty when nothing is."""
    compared = subprocess.run(["diff", "-r", "--no-dereference", left, right], capture_output=True, check=False)
    found = compared.stdout.decode(errors="replace").split("\n")[:-1]
    for folder, folders, names in os.walk(left):
        for name in [*folders, *names]:
            path = Path(folder) / name
            other = right / path.relative_to(left)
            if other.is_symlink() or not other.exists():
                continue
            a, b = path.lstat(), other.lstat()
            if a.st_mode != b.st_mode:
                found.append(f"mode {a.st_mode:o} {b.st_mode:o} {path}")
            if a.st_mtime_ns != b.st_mtime_ns and path.is_file():
                found.append(f"mtime {a.st_mtime_ns} {b.st_mtime_ns} {path}")
    return found


class Bench:
    """A temporary place with one copy of a tree, and a repository of each program."""

    def __init__(self, place: Path, programs: Sequence[str], say: Callable[[str], None]) -> None:
        self.place = place
        self.programs = [PROGRAMS[name] for name in programs]
        self.measured = {name: Measured() for name in programs}
        self.unequal: list[str] = []
        self.turn = place  # the folder of the run at hand
        self._say = say

    def _keep(self, program: Program, what: str, tree: Path) -> Step:
        """One import, with all files in the page cache: borg drops what it has read from there, and whoever came next paid."""
        read = ["find", str(tree), "-type", "f", "-exec", "cat", "{}", "+"]
        subprocess.run(read, check=True, stdout=subprocess.DEVNULL)
        return self._run(program, what, program.keep, tree=tree)

    def _run(self, program: Program, what: str, words: tuple[str, ...], **places: Path) -> Step:
        home = self.turn / "home" / program.name
        home.mkdir(parents=True, exist_ok=True)
        mine = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "XDG_CONFIG_HOME": str(home / ".config")}
        environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), **mine, **program.settings}
        repository = self.turn / "repositories" / program.name
        step = run(program.command(words, repo=repository, **places), environment, self.turn)
        self._say(f"{program.name:<17} {what:<9} {step.seconds:8.2f} s {step.memory / 1e6:6.0f} MB")
        return step

    def once(self, source: Path, turn: int, full: bool) -> None:
        """All programs, one run on a fresh copy of `source`; `full` exports, edits and imports that too.

        Nothing is removed before the end: for a minute ext4 does not give out the inodes of removed files again, and whoever
        makes files meanwhile (an export) pays for the search of others.
        """
        self.turn = self.place / f"{source.name}-{turn}"
        (self.turn / "repositories").mkdir(parents=True)
        tree = self.turn / "tree"
        subprocess.run(["cp", "-a", source, tree], check=True)
        for program in self._turns(turn):
            self._import(program, tree)
            if full:
                self._export(program, tree)
        if full:
            # not in this process: the edited file may be large, see run()
            edit = [sys.executable, "-m", "bench.trees", str(tree), "--edit", str(EDITED_SHARE), "--seed", str(turn)]
            subprocess.run(edit, cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL)
            for program in self._turns(turn):
                measured, before = self.measured[program.name], self._stored(program)
                measured.edited.append(self._keep(program, "edited", tree).seconds)
                measured.edited_bytes.append(self._stored(program) - before)

    def _turns(self, turn: int) -> list[Program]:
        """Another program begins each time."""
        first = turn % len(self.programs)
        return [*self.programs[first:], *self.programs[:first]]

    def _stored(self, program: Program) -> int:
        return stored_bytes(self.turn / "repositories" / program.name)

    def _import(self, program: Program, tree: Path) -> None:
        measured = self.measured[program.name]
        self._run(program, "new", program.new)
        first = self._keep(program, "first", tree)
        stored = self._stored(program)
        again = self._keep(program, "unchanged", tree)
        measured.first.append(first.seconds)
        measured.again.append(again.seconds)
        measured.stored.append(stored)
        measured.again_bytes.append(self._stored(program) - stored)
        measured.memory += [first.memory, again.memory]

    def _export(self, program: Program, tree: Path) -> None:
        dest = self.turn / f"dest-{program.name}"
        step = self._run(program, "export", program.export, dest=dest)
        self.measured[program.name].export.append(step.seconds)
        self.measured[program.name].memory.append(step.memory)
        if program.name.startswith("lepton"):
            self.unequal += differences(tree, dest)[:10]


def _quick_tree(place: Path) -> Path:
    """Python's own library without what was compiled: a few MB of real files that every machine has."""
    source, tree = Path(os.__file__).parent, place / "quick"
    for name in ("json", "email", "asyncio", "encodings", "unittest", "xml"):
        shutil.copytree(source / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "large.bin").write_bytes(b"".join(path.read_bytes() for path in sorted(trees.files_of(tree))) * 4)
    return tree


def _real_tree(place: Path) -> Path:
    """The tree of bench.trees, made in a process of its own: see run()."""
    command = [sys.executable, "-m", "bench.trees", str(place / "real")]
    subprocess.run(command, cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL)
    return place / "real"


def _floor(tree: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.floor", tree], cwd=harness.ROOT, check=True, capture_output=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _tree_figures(
    measured: dict[str, Measured], peers: list[str], size: int, unequal: list[str], quick: bool
) -> list[Figure]:
    """Of the large tree: everything that is promised of it, each beside its peer (a small one promises nothing)."""
    middle = harness.median
    mine = measured["lepton"]
    restic = measured.get("restic")
    faster = min(peers, key=lambda name: middle(measured[name].again), default="")

    def beside(name: str, value: float, unit: str, bound: str, peer: float | None, who: str = "restic") -> Figure:
        return Figure(name, value, unit, "" if peer is None or quick else bound, who if peer is not None else "", peer)

    def rate(times: list[float]) -> float:
        return size / 1e6 / middle(times)

    def beside_restic(name: str) -> float | None:
        """restic encrypts, so our encrypted import stands beside it, too."""
        return rate(restic.first) if restic and name == "lepton-encrypted" else None

    figures = [
        beside("import", rate(mine.first), "MB/s", ">= 2.2", rate(restic.first) if restic else None),
        beside("stored", middle(mine.stored), "bytes", "<= 1", middle(restic.stored) if restic else None),
        beside(
            "unchanged", middle(mine.again), "s", "<= 0.5", middle(measured[faster].again) if faster else None, faster
        ),
        Figure("unchanged_bytes", middle(mine.again_bytes), "bytes"),
        beside("export", rate(mine.export), "MB/s", ">= 3", rate(restic.export) if restic else None),
        Figure("export_differences", len(unequal), "files", "== 0"),
        Figure("peak_memory", max(mine.memory) / 1e6, "MB", "<= 800"),
        beside("edited", middle(mine.edited), "s", "", middle(restic.edited) if restic else None),
        beside(
            "edited_bytes",
            middle(mine.edited_bytes),
            "bytes",
            "<= 1.2",
            middle(restic.edited_bytes) if restic else None,
        ),
    ]
    for name in measured:
        if name != "lepton":
            other = measured[name]
            figures += [
                beside(f"{name}_import", rate(other.first), "MB/s", "", beside_restic(name)),
                Figure(f"{name}_unchanged", middle(other.again), "s"),
                Figure(f"{name}_export", rate(other.export), "MB/s"),
                Figure(f"{name}_edited", middle(other.edited), "s"),
                Figure(f"{name}_stored", middle(other.stored), "bytes"),
                Figure(f"{name}_edited_bytes", middle(other.edited_bytes), "bytes"),
                Figure(f"{name}_peak_memory", max(other.memory) / 1e6, "MB"),
            ]
    return figures


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The large tree `--runs` times, then many small files; medians."""
    peers = [name for name in (arguments.vs or "").split(",") if name]
    for name in peers:
        if name not in PROGRAMS or not shutil.which(name.split("-")[0]):
            raise SystemExit(f"{name} is not known or not installed; --vs knows {', '.join(list(PROGRAMS)[2:])}")
    encrypted = [] if arguments.no_encryption else ["lepton-encrypted"]

    def say(line: str) -> None:
        if not arguments.json:
            print(f"{line}  load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        place = Path(folder)
        tree = arguments.tree or (_quick_tree if arguments.quick else _real_tree)(place)
        size = sum(path.stat().st_size for path in trees.files_of(tree))
        compileall.compile_dir(harness.ROOT / "leptonstore", quiet=1)  # as every installed program is
        bench = Bench(place, ["lepton", *encrypted, *peers], say)
        for turn in range(1 if arguments.quick else arguments.runs):
            bench.once(tree, turn, full=True)
        figures = _tree_figures(bench.measured, peers, size, bench.unequal, arguments.quick)
        for line in bench.unequal:
            print(f"export differs: {line}", file=sys.stderr)
        floors = [_floor(tree) for _ in range(1 if arguments.quick else arguments.runs)]
        floor = size / 1e6 / harness.median(floor["seconds"] for floor in floors)
        mine = next(figure.value for figure in figures if figure.name == "import")
        figures.append(Figure("import_of_floor", mine, "MB/s", "", "FastCDC + BLAKE3 + zstd in memory", floor))
        figures.append(Figure("floor_stored", floors[0]["stored_bytes"], "bytes"))
        figures += _small_figures(place, peers, say, arguments)
    return figures


def _small_figures(
    place: Path, peers: list[str], say: Callable[[str], None], arguments: argparse.Namespace
) -> list[Figure]:
    """Many files of 1-4 KB: first import, and the bytes."""
    files = SMALL_FILES_QUICK if arguments.quick else SMALL_FILES
    tree = place / "small"
    trees.build_small(tree, files)
    bench = Bench(place, ["lepton", *peers], say)
    for turn in range(1 if arguments.quick else arguments.runs):
        bench.once(tree, turn, full=False)
    times = {name: files / harness.median(bench.measured[name].first) for name in bench.measured}
    stored = {name: harness.median(bench.measured[name].stored) for name in bench.measured}
    beside = "restic" if "restic" in peers else ""
    bound = ">= 2" if beside and not arguments.quick else ""
    figures = [
        Figure("small_import", times["lepton"], "files/s", bound, beside, times.get("restic")),
        Figure("small_stored", stored["lepton"], "bytes", "", beside, stored.get("restic")),
        Figure("small_unchanged", harness.median(bench.measured["lepton"].again), "s"),
        Figure("small_peak_memory", max(bench.measured["lepton"].memory) / 1e6, "MB", "<= 800"),
    ]
    for name in peers:
        figures.append(Figure(f"{name}_small_import", times[name], "files/s"))
        figures.append(Figure(f"{name}_small_stored", stored[name], "bytes"))
        figures.append(Figure(f"{name}_small_unchanged", harness.median(bench.measured[name].again), "s"))
    return figures


if __name__ == "__main__":
    parser = harness.parser("ingest", __doc__ or "")
    parser.add_argument(
        "--tree", metavar="DIR", type=Path, help="what to import (default: what python -m bench.trees makes)"
    )
    parser.add_argument("--vs", metavar="PROGRAMS", help="restic, borg, borg-zstd: comma-separated")
    parser.add_argument("--runs", type=int, default=3, help="of every step, in turns; medians count (default 3)")
    parser.add_argument("--no-encryption", action="store_true", help="leave out the row with our encryption on")
    parser.add_argument("--work", metavar="DIR", help="where the copies and repositories go (default: a temporary one)")
    given = parser.parse_args()
    harness.main("ingest", given, measure)
