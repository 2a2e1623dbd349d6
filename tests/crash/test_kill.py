"""kill -9 in the middle of concurrent imports, collections and reads: what was acknowledged is there, and all is clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
KILLS = 12


def _run(*arguments: str) -> dict[str, Any]:
    """The last line of a process of its own: it forks, and pytest has threads."""
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    assert done.returncode == bool(result["wrong"]), (done.returncode, done.stderr)
    return result


def test_kill_9_loses_no_acknowledged_commit() -> None:
    """Each victim died by the signal with work begun and not finished; the others were at work, too, and went on."""
    result = _run("-m", "tests.crash.kill", "--kills", str(KILLS))
    assert result["wrong"] == [] and result["kills"] == KILLS
    assert result["others_in_flight"] >= KILLS, "the victims died alone"
    assert result["acknowledged"] >= 2 * KILLS and result["collected"] >= KILLS and result["read"] >= KILLS
    assert result["packs_removed"] >= KILLS and result["packs_repacked"] >= 1


# What the test itself must notice: a body for `kill.importer`, and what is said then.
PLANTED = {
    "a commit is acknowledged and was never made": (
        """journal.add("acknowledged", name="x", commit="00" * 32, seed=1); journal.add("begin"); os.fsync(1)""",
        "the store was not as promised",
    ),
    "a victim is idle when it dies": ("""journal.add("idle"); os.link("/", "/")""", "nothing was in flight"),
    "a survivor fails": ("""raise ValueError("planted")""", "planted"),
}
SCRIPT = """
import json, os, sys, tempfile
from pathlib import Path
from tests.crash import kill
def planted(store, journal, role, number, mine):
    %s
kill.importer = planted
kill.OPERATIONS["importer-0"] = 1
with tempfile.TemporaryDirectory() as folder:
    result = kill.run(1, 0, Path(folder))
print(json.dumps(result))
sys.exit(bool(result["wrong"]))
"""


@pytest.mark.parametrize("fault", PLANTED)
def test_the_test_notices(fault: str) -> None:
    body, said = PLANTED[fault]
    wrong = " ".join(_run("-c", SCRIPT % body)["wrong"])
    assert said in wrong, wrong
