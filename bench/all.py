"""Every benchmark with every peer: one file of results, one HTML page, a PNG plot of each run.

python -m bench.all [--only NAME ...] [--out DIR] [--resume] [--history]     all of it (75 minutes), or these runs (--list)
python -m bench.all --list                          the runs, how long they took last time, and what CI watches
python -m bench.all --small                         each with small data and no peers: does it still run?
python -m bench.all --quick                         a few minutes, for CI: ratios against bench/baseline.json (bench/all_quick.py)
python -m bench.all --write-baseline                measures those three times and writes the baseline
python -m bench.all --write-readme RESULTS.json     keeps what is newer in bench/results/latest.json, and writes the README's table of it

Each run is a process of its own, one after the other, with a time limit; what it leaves in temporary folders is removed. DIR gets
results.json (bench/all_results.py says what is in it), which is written after each run; index.html; NAME.png; and NAME.log, what the run
said. Ctrl-C ends the run at hand and keeps what is done; --resume goes on with what has no result yet. Without --resume the chosen runs are
measured anew and take the place of their former results; those of others stay.

Exit codes: 0 all were measured (figures that fall short are told, and shown first), 1 one was not, or with --quick a ratio regressed, 2
usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import all_quick, all_results, harness
from bench.all_results import LATEST, Result
from bench.all_runs import RUNS, Run, named
from bench.harness import ROOT, Figure

GRACE_S = 20.0  # from SIGINT, which lets a run stop its servers and remove its files, to SIGKILL
LOG_BYTES = 4_000  # of what a run said that failed
TOLD_EVERY_S = 60.0  # where the progress is no terminal's


class Progress:
    """Lines on standard error: one that counts in a terminal, one a minute elsewhere."""

    def __init__(self, total: int, last: dict[str, float]) -> None:
        self.total, self.last, self.at = total, last, 0
        self._live = sys.stderr.isatty()
        self._told = 0.0

    def begin(self, run: Run) -> None:
        """The next one."""
        self.at, self._told = self.at + 1, 0.0
        self._line(run, 0.0, end="\r" if self._live else "\n")

    def tick(self, run: Run, seconds: float) -> None:
        """How long so far."""
        if self._live or seconds - self._told >= TOLD_EVERY_S:
            self._told = seconds
            self._line(run, seconds, end="\r" if self._live else "\n")

    def end(self, run: Run, result: Result) -> None:
        """What came of it."""
        said = f"{len(result.figures)} figures" if result.measured else f"NOT MEASURED: see {run.name}.log"
        short = f", {len(result.short)} short" if result.short else ""
        print(f"\r\x1b[K{self._head(run)}" if self._live else self._head(run), end="", file=sys.stderr)
        print(f"{result.seconds or 0.0:.0f} s, {said}{short}", file=sys.stderr, flush=True)
        for figure in result.short:
            measured = figure.value if figure.ratio is None else figure.ratio
            print(f"    short: {figure.name} {measured:.4g}, wanted {figure.bound}", file=sys.stderr, flush=True)

    def _head(self, run: Run) -> str:
        return f"[{self.at}/{self.total}] {run.name:<20} "

    def _line(self, run: Run, seconds: float, end: str) -> None:
        last = f" (last time {self.last[run.name]:.0f} s)" if run.name in self.last else ""
        clear = "\r\x1b[K" if self._live else ""
        print(f"{clear}{self._head(run)}{seconds:.0f} s{last}", end=end, file=sys.stderr, flush=True)


def execute(run: Run, out: Path, small: bool, data: str | None, progress: Progress) -> Result:
    """One run to its end, or to its time limit. Raises KeyboardInterrupt when it was interrupted; then its processes are gone, too."""
    arguments = run.arguments(small, data)
    command = [sys.executable, "-m", f"bench.{run.bench}", *arguments]
    out.mkdir(parents=True, exist_ok=True)
    log, said = out / f"{run.name}.log", out / f"{run.name}.out"
    began, ended_by_us = time.monotonic(), ""
    progress.begin(run)
    with _room() as room, log.open("wb") as errors, said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True,
            env={**os.environ, "TMPDIR": str(room)},
        )  # fmt: skip
        try:
            while True:
                try:
                    process.wait(1.0)
                    break
                except subprocess.TimeoutExpired:
                    progress.tick(run, time.monotonic() - began)
                if time.monotonic() - began > run.limit_s:
                    ended_by_us = f"\nended by bench.all: it took longer than {run.limit_s:.0f} s\n"
                    break
        finally:
            stop(process)
    seconds = round(time.monotonic() - began, 1)
    result = _result(run, arguments, small, said.read_bytes(), log.read_bytes(), seconds)
    code = None if ended_by_us else process.returncode
    if ended_by_us or not result.measured:
        tail = (said.read_bytes() + log.read_bytes())[-LOG_BYTES:].decode(errors="replace")
        result = Result(**{**vars(result), "figures": (), "exit_code": code, "log": tail + ended_by_us})
    else:
        result = Result(**{**vars(result), "exit_code": code})
    said.unlink()
    progress.end(run, result)
    return result


@contextlib.contextmanager
def _room() -> Any:
    """Where a run's temporary files go, so that one that is killed leaves none."""
    room = Path(tempfile.mkdtemp(prefix="lepton-all-"))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run and all that it started: SIGINT, which it may use to clean up, then SIGKILL to what is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _result(run: Run, arguments: Sequence[str], small: bool, output: bytes, log: bytes, seconds: float) -> Result:
    """Of a run's last line; without one, a result without figures."""
    told: dict[str, Any] = {}
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError, IndexError):
        told = json.loads(output.decode().strip().split("\n")[-1])
    if not isinstance(told, dict) or "figures" not in told:
        told = {"figures": [], "commit": harness.revision(), "machine": harness.machine()}
        told["date"] = datetime.date.today().isoformat()
    return Result(
        name=run.name,
        bench=run.bench,
        commit=told["commit"],
        date=told["date"],
        machine=told["machine"],
        figures=tuple(Figure.from_json(one) for one in told["figures"]),
        arguments=tuple(arguments),
        quick=small,
        seconds=seconds,
    )


# -- the whole -----------------------------------------------------------------------------------------------------------


def run_all(arguments: argparse.Namespace, runs: Sequence[Run], small: bool) -> int:
    """Measure what was chosen, keep each result at once, and make page and plots in the end, whatever happens."""
    out: Path = arguments.out
    file = out / "results.json"
    results = all_results.read(file) if file.exists() else []
    done = {result.name for result in results if result.measured} if arguments.resume else set()
    left = [run for run in runs if run.name not in done]
    for name in sorted(done & {run.name for run in runs}):
        print(f"{name}: has a result", file=sys.stderr)
    progress = Progress(len(left), last_seconds(results, small))
    made: list[Result] = []
    code = 0
    try:
        for run in left:
            made.append(execute(run, out, small, arguments.data, progress))
            results = all_results.replaced(results, made[-1])
            all_results.write(file, results)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {len(made)} of {len(left)} are done: --resume goes on", file=sys.stderr)
        code = 130
    if arguments.history:
        all_results.append_history(result for result in made if result.measured)
    if results:
        show(results, out)
    if arguments.json and file.exists():
        print(json.dumps(json.loads(file.read_text())))
    chosen = {run.name for run in runs}
    return code or int(any(not result.measured for result in results if result.name in chosen))


def show(results: Sequence[Result], out: Path) -> None:
    """The page and the plots, and where they are. A library that is missing is told, and costs nothing that was measured."""
    from bench import all_page

    (out / "index.html").write_text(all_page.page(results), "utf-8")
    print(f"results: {out / 'results.json'}\npage:    {out / 'index.html'}", file=sys.stderr)
    try:
        print(f"plots:   {len(all_page.plots(results, out))} files {out}/NAME.png", file=sys.stderr)
    except ImportError as error:
        print(f"plots:   none: {error} (extra dev)", file=sys.stderr)


def last_seconds(results: Sequence[Result], small: bool) -> dict[str, float]:
    """How long runs took: in this place before, else in the results that are kept in the repository."""
    kept = all_results.read(LATEST) if LATEST.exists() and not small else []
    known = [one for one in [*kept, *results] if one.quick == small]
    return {one.name: one.seconds for one in known if one.seconds is not None}


def tell_runs(arguments: argparse.Namespace) -> None:
    """What --list says."""
    file = arguments.out / "results.json"
    last = last_seconds(all_results.read(file) if file.exists() else [], False)
    if arguments.json:
        told = [
            {**vars(run), "command": run.arguments(False, arguments.data), "seconds": last.get(run.name)}
            for run in RUNS
        ]
        print(json.dumps(told))
        return
    for run in RUNS:
        took = f"{last[run.name]:6.0f} s" if run.name in last else "      ? s"
        said = f"  watched: {'; '.join(run.watched)}" if run.watched else ""
        print(
            f"{run.name:<20} {took}, at most {run.limit_s / 60:.0f} min  bench.{run.bench} {' '.join(run.options)}{said}"
        )


# -- the short set -------------------------------------------------------------------------------------------------------


def check(arguments: argparse.Namespace) -> int:
    """--quick: 0 when no ratio regressed and none is missing."""
    expected = all_quick.read_baseline(all_quick.BASELINE, harness.processor())
    runs = all_quick.watched_runs(arguments.only)
    progress = Progress(len(runs), {})
    results: list[Result] = []

    def measure(run: Run) -> Result:
        progress.at = min(progress.at, runs.index(run))  # once more is no further
        results.append(execute(run, arguments.out, True, None, progress))
        return results[-1]

    began = time.monotonic()
    compared = all_quick.compare(expected, runs, measure)
    all_results.write(arguments.out / "results.json", results)
    told = [
        {**vars(one.expected), "ratios": one.ratios, "failed": one.failed, "missing": one.missing} for one in compared
    ]
    if arguments.json:
        print(json.dumps({"seconds": round(time.monotonic() - began, 1), "figures": told}))
    else:
        print("\n".join(one.line() for one in compared))
    for result in results:
        if not result.measured:
            print(f"{result.name} failed:\n{result.log}", file=sys.stderr)
    unwatched = {(run.name, name) for run in runs for name in run.watched} - {(one.run, one.figure) for one in expected}
    for run_name, name in sorted(unwatched):
        print(f"{run_name}: {name} is not in the baseline: --write-baseline", file=sys.stderr)
    return int(any(one.failed for one in compared) or bool(unwatched) or not compared)


def write_baseline(arguments: argparse.Namespace) -> int:
    """Each watched run several times, in turn: a slow spell of the machine does not meet all of one."""
    runs = all_quick.watched_runs(arguments.only)
    progress = Progress(len(runs) * all_quick.MEASURED_MAX, {})
    found: dict[str, list[Result]] = {run.name: [] for run in runs}
    for _ in range(all_quick.MEASURED_MAX):
        for run in runs:
            found[run.name].append(execute(run, arguments.out, True, None, progress))
    file = all_quick.BASELINE
    before = json.loads(file.read_text()) if file.exists() else None
    all_quick.write_baseline(all_quick.merged(before, all_quick.baseline_of(found)), file)
    print(f"written: {file}", file=sys.stderr)
    return 0


def write_readme(file: Path) -> int:
    """Keep what is newest, and write the tables of it."""
    from bench import all_table

    before = all_results.read(LATEST) if LATEST.exists() else []
    results = all_results.newest([*before, *all_results.read(file)])
    all_results.write(LATEST, results)
    for missing in all_table.missing(results):
        print(f"no result of {missing}: left out of the table", file=sys.stderr)
    for written in [LATEST, *all_table.write_tables(results)]:
        print(f"written: {written}", file=sys.stderr)
    return 0


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments. --out has another default for each kind of run, so that none takes the place of another's results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    kind.add_argument("--small", action="store_true", help="each with small data, without peers")
    kind.add_argument("--quick", action="store_true", help="the short set, against bench/baseline.json")
    kind.add_argument("--write-baseline", action="store_true", help="measure the short set three times and write it")
    kind.add_argument(
        "--write-readme", type=Path, metavar="RESULTS", help="write bench/results/latest.json and the README's table"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runs, or benchmarks with all their runs")
    parser.add_argument("--resume", action="store_true", help="leave out what has a result in DIR")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: build/bench, build/bench-small, …)"
    )
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX files (default: ../shared/data/mnist)")
    parser.add_argument("--history", action="store_true", help="append the results to bench/history.jsonl at the end")
    parser.add_argument("--json", action="store_true", help="the results as one JSON object on standard output")
    arguments = parser.parse_args(given)
    if arguments.history and (arguments.small or arguments.quick):
        parser.error("--history is of whole runs")
    try:
        named(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.out is None:
        short = arguments.quick or arguments.write_baseline
        arguments.out = ROOT / "build" / ("bench-quick" if short else "bench-small" if arguments.small else "bench")
    arguments.out = arguments.out.absolute()
    return arguments


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started must not go on
    arguments = parsed()
    if arguments.list:
        tell_runs(arguments)
        return
    try:
        if arguments.write_readme:
            code = write_readme(arguments.write_readme)
        elif arguments.write_baseline:
            code = write_baseline(arguments)
        elif arguments.quick:
            code = check(arguments)
        else:
            code = run_all(arguments, named(arguments.only) if arguments.only else RUNS, arguments.small)
    except KeyboardInterrupt:
        code = 130
    except (ValueError, FileNotFoundError) as error:
        print(f"bench.all: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
