"""kill -9 in the middle of a push: both stores are whole, and run again it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
# What the test must notice: the ref moves before what it needs is there.
PLANTED = """
import json, tempfile
from pathlib import Path
from tests.crash import transfer_kill
from leptonstore.store import RefUpdate, Store
def planted(place, death):
    with Store.open(place / "source") as source, Store.open(place / "destination") as destination:
        old, new = (store.state.refs[transfer_kill.REF].commit for store in (destination, source))
        destination.put(source.get(bytes.fromhex(new)), 2)
        destination.publish("planted", lambda state: (RefUpdate(transfer_kill.REF, old, new),))
transfer_kill.transfer = planted
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(transfer_kill.run(1, Path(folder))))
"""


def _run(*arguments: str) -> dict[str, Any]:
    """The last line of a process of its own: it forks, and pytest has threads."""
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def test_kill_9_harms_neither_store() -> None:
    result = _run("-m", "tests.crash.transfer_kill", "--every", "6")
    assert result["wrong"] == []
    assert result["kills"] >= 6, "the push came to its end too early"


def test_the_test_notices_a_ref_that_moves_too_early() -> None:
    wrong = " ".join(_run("-c", PLANTED)["wrong"])
    assert "a store was not whole" in wrong, wrong
