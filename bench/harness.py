"""What all benchmarks share: figures and their contract, several runs and their median, peers, cold files, the machine.

A figure's `bound` is text such as ">= 0.9837" or "<= 0.01". It applies to `ratio` when there is a peer, else to `value`.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import operator
import os
import platform
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "bench" / "history.jsonl"
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


@dataclass(frozen=True)
class Figure:
    """One measured number. `ratio` is value / peer_value."""

    name: str
    value: float
    unit: str
    bound: str = ""
    peer: str = ""
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """None without a peer."""
        return self.value / self.peer_value if self.peer_value else None

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None when there is none."""
        if not self.bound:
            return None
        sign, limit = self.bound.split()
        measured = self.value if self.ratio is None else self.ratio
        return bool(_COMPARE[sign](measured, float(limit)))

    @property
    def higher_is_better(self) -> bool:
        """What the sign of the bound says; without one, rates should be high, and times and bytes low."""
        if self.bound and self.bound[0] != "=":
            return self.bound[0] == ">"
        return self.unit.endswith("/s")

    @property
    def advantage(self) -> float | None:
        """How many times better than the peer, whichever direction is better; None without a peer."""
        if self.ratio is None or self.higher_is_better:
            return self.ratio
        return 1 / self.ratio if self.ratio else math.inf

    def to_json(self) -> dict[str, Any]:
        """With ratio and holds."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Figure:
        """Of what `to_json` made; the ratio and whether the bound holds are worked out again."""
        return cls(**{field.name: told[field.name] for field in fields(cls)})


def median(values: Iterable[float]) -> float:
    """Of several runs: one slow run (another process, a cold cache) does not decide."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
    }


def processor() -> str:
    """As the system names it, with what tells generations apart that have one name in virtual machines: AMD EPYC, family 25 model 17."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    return f"{told['model name']}, family {told.get('cpu family', '?')} model {told.get('model', '?')}"


def revision() -> str:
    """The commit that is measured, with "+" when files differ from it; "" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return f"{head[:12]}{'+' if changed else ''}" if head else ""


def make_cold(folder: Path) -> None:
    """Write files back and drop their pages from the cache, so that the next read goes to the device."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def find_mnist(given: str | None) -> Path | None:
    """MNIST's IDX files: where they are said to be, or beside the project."""
    place = Path(given) if given else ROOT.parent / "shared" / "data" / "mnist"
    return place if place.is_dir() else None


def peer_place(name: str) -> Path:
    """Where the environment of a peer is, or will be."""
    wanted = (ROOT / "bench" / "peers" / f"{name}.txt").read_text()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lepton-bench" / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"


def make_peer(name: str, shared: bool = False) -> Path:
    """The environment of bench/peers/<name>.txt, made if it is not there yet; its interpreter.

    shared: the packages are installed without what they ask for, and see those of this environment.
    """
    place = peer_place(name)
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=True, clear=True)
        text = (ROOT / "bench" / "peers" / f"{name}.txt").read_text()
        packages = [line for line in text.split("\n") if line and not line.startswith("#")]
        options = ["--no-deps"] if shared else ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([python, "-m", "pip", "install", "-q", *options, *packages], check=True)
        if shared:
            paths = [path for path in sys.path if path.endswith("site-packages")]
            next((place / "lib").glob("python*/site-packages")).joinpath("shared.pth").write_text("\n".join(paths))
        (place / "ready").touch()
    return python


def run_peer(name: str, arguments: Sequence[str], shared: bool = False, environment: str = "") -> dict[str, Any]:
    """Run bench/peers/<name>.py in an environment of its own, made from bench/peers/<name>.txt; its last line is JSON.

    shared: see `make_peer`. environment: the peer whose environment it is instead.
    """
    command: list[str | Path] = [
        make_peer(environment or name, shared),
        ROOT / "bench" / "peers" / f"{name}.py",
        *arguments,
    ]
    return _last_line(subprocess.run(command, check=True, capture_output=True, text=True))


def in_process(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this package in a new process: `python -m module arguments`; its last line is JSON."""
    command = [sys.executable, "-m", module, *arguments]
    return _last_line(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT))


def _last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def peak_mib() -> float:
    """Resident memory of this process at its peak. (Linux hands ru_maxrss on to what a process executes.)"""
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes; add more to it."""
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="small data, no peers: does it run and hold?")
    made.add_argument("--json", action="store_true", help="only the JSON line")
    made.add_argument("--history", action="store_true", help="append the result to bench/history.jsonl")
    return made


def main(name: str, arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], list[Figure]]) -> None:
    """Measure, print, and exit with 0 if every bound holds, else 1."""
    figures = measure(arguments)
    if not arguments.json:
        for figure in figures:
            beside = f"  {figure.peer} {figure.peer_value:.4g}: {figure.ratio:.3f}x" if figure.ratio is not None else ""
            verdict = "" if figure.holds is None else f"  {figure.bound} {'holds' if figure.holds else 'FAILS'}"
            print(f"{figure.name:<24} {figure.value:>14.6g} {figure.unit:<12}{beside}{verdict}")
    result = {
        "bench": name,
        "quick": arguments.quick,
        "commit": revision(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "figures": [figure.to_json() for figure in figures],
    }
    line = json.dumps(result)
    if arguments.history:
        with open(HISTORY, "a") as file:
            file.write(line + "\n")
    print(line)
    sys.exit(0 if all(figure.holds is not False for figure in figures) else 1)
