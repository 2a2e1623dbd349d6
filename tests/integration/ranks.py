"""Ranks of a run for the tests: processes of a script of its own, as forks of a test's process would have the locks of its threads.

test      told = run_ranks("mesh_run.py", folder, 4)     what each rank wrote to FOLDER/<rank>.json
          run_script("wrap_run.py", folder)              the same for a script that starts several worlds
script    start_ranks(run, 4)                            run(rank, folder) in a fork for each: torch is imported once
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS_MAX = 300


def run_ranks(script: str, folder: Path, ranks: int, *arguments: str) -> list[dict[str, Any]]:
    """What the ranks of the script beside this file wrote. Fails with what it printed."""
    run_script(script, folder, *arguments, XDG_CACHE_HOME=str(folder / "cache"))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def run_script(script: str, folder: Path, *arguments: str, **environment: str) -> None:
    """The script beside this file, on one thread of torch. Fails with what it printed."""
    command = [sys.executable, Path(__file__).with_name(script), folder, *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stderr


def start_ranks(run: Callable[[int, Path], None], ranks: int) -> None:
    """`run(rank, folder)` in a fork for each rank; the folder is the script's argument. Exits with 0 when all did."""
    sys.exit(max(abs(code) for code in fork_ranks(lambda rank: run(rank, Path(sys.argv[1])), ranks)))


def fork_ranks(run: Callable[[int], None], ranks: int) -> list[int]:
    """`run(rank)` in a fork for each rank; their exit codes (-9: killed) when all have ended."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]
