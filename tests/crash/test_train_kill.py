"""Trainings of two and three ranks, each killed ten times (tests/crash/train_kill.py), come to what undisturbed ones come to."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("ranks", "more"), [(2, []), (3, ["--asynchronous"])])
def test_killed_and_resumed_is_bit_for_bit_the_undisturbed_run(kind: str, ranks: int, more: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.crash.train_kill",
        "--kind",
        kind,
        "--ranks",
        str(ranks),
        "--kills",
        "10",
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == [] and told["kills"] >= 10
    assert told["ended_by_themselves"] > 0  # the others notice
