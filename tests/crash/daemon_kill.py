"""kill -9 of the daemon while clients push: every push that was acknowledged is there, the others are there as a whole or not at all.

    python -m tests.crash.daemon_kill --kills 50

Two writers (`write_dataset` over lepton://) and a pusher (`push` from a store of its own) work all the time, and jobs of the daemon
collect garbage. In each round, when somebody has begun, the daemon is killed at a moment that is drawn; before it is started again,
another process looks at the store itself, with an index of its own: all that was acknowledged is there with its rows, all that is there
is whole. The clients are never restarted: they find the daemon again. One whose work fails looks what became of it, and writes down what
it learned; that must be so ever after. What was promised stands in journals, which the clients sync.

Prints one JSON line. Exits with 1 when anything was lost or wrong, or when nothing was in flight when the daemon died.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.soak import rows_of
from leptonstore.dataset import Dataset, Source, delete_ref, write_dataset
from leptonstore.dataset.exchange import push
from leptonstore.errors import CommitExpired, Conflict, LeptonError, TierUnavailable, TooBusy
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from leptonstore.testing import daemon
from tests.crash.kill import Journal

ROLES = ("writer-0", "writer-1", "pusher")
KEPT = 3  # datasets of each; older ones are removed, so that there is garbage
STEP_S = 0.002  # between two looks at the journals
ROUND_S_MAX = 120.0
EXPECTED = (TierUnavailable, TooBusy, CommitExpired, Conflict)  # what a client may be told when its daemon dies


# -- clients ---------------------------------------------------------------------------------------------------------


class Client:
    """One of ROLES: a process that works until it is told to stop."""

    def __init__(self, place: Path, role: str, url: str) -> None:
        self.place, self.role, self.url = place, role, url
        self.journal = Journal(place / f"{role}.journal")
        self.mine: list[str] = []

    def run(self) -> None:
        """Units of work, one after another."""
        number = 0
        with Store.open(self.url) as store:
            while not (self.place / "stop").exists():
                self.unit(store, number)
                number += 1

    def unit(self, store: Store, number: int) -> None:
        """A dataset more, and the oldest of this client's less."""
        name, seed = f"{self.role}-{number}", number * len(ROLES) + ROLES.index(self.role)
        self.journal.add("begin", name=name, seed=seed)
        try:
            commit = self.put(store, name, seed)
            self.journal.add("acknowledged", name=name, commit=commit, seed=seed)
        except EXPECTED as error:
            self.journal.add("failed", error=type(error).__name__)
            self.learn(store, name, seed)
        if store_has(store, name):
            self.mine.append(name)
        if len(self.mine) > KEPT:
            old = self.mine.pop(0)
            self.journal.add("removing", name=old)
            try:
                delete_ref(store, "dataset", old, "main")
            except EXPECTED as error:
                self.journal.add("failed", error=type(error).__name__)

    def put(self, store: Store, name: str, seed: int) -> str:
        """The commit, acknowledged."""
        rows = rows_of(seed)
        source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {"seed": seed})
        if self.role != "pusher":
            return write_dataset(store, name, source).commit
        with Store.open(self.place / "pushed") as mine:
            commit = write_dataset(mine, name, source).commit
            push(mine, store, [f"dataset/{name}/main"])
            delete_ref(mine, "dataset", name, "main")
        return commit

    def learn(self, store: Store, name: str, seed: int) -> None:
        """What became of what failed."""
        while True:
            try:
                store.refresh()
                record = store.state.refs.get(f"dataset/{name}/main")
                break
            except (TierUnavailable, TooBusy):
                continue
        self.journal.add("learned", name=name, commit=record.commit if record else None, seed=seed)


def store_has(store: Store, name: str) -> bool:
    """As of the last look."""
    return f"dataset/{name}/main" in store.state.refs


# -- what was promised -----------------------------------------------------------------------------------------------


class Promised:
    """What the journals add up to so far."""

    def __init__(self, place: Path) -> None:
        self.there: dict[str, tuple[str, int]] = {}  # name -> (commit, seed)
        self.absent: set[str] = set()  # learned to be
        self.open: set[str] = set()  # begun, or being removed: there or not
        self.counts: Counter[str] = Counter()
        for role in ROLES:
            for entry in entries(place, role):
                self._add(entry)

    def _add(self, entry: dict[str, Any]) -> None:
        what, name = entry["what"], entry.get("name", "")
        self.counts[what] += 1
        self.counts[entry.get("error", "")] += 1
        if what in ("begin", "removing"):
            self.there.pop(name, None)
            self.open.add(name)
        elif what == "acknowledged" or (what == "learned" and entry["commit"] is not None):
            self.open.discard(name)
            self.there[name] = entry["commit"], entry["seed"]
        elif what == "learned":
            self.open.discard(name)
            self.absent.add(name)


def entries(place: Path, role: str) -> list[dict[str, Any]]:
    """The lines of a journal, without one that is being written."""
    path = place / f"{role}.journal"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def in_flight(place: Path) -> int:
    """How many clients are in the middle of a push."""
    lasts = (entries(place, role)[-1:] for role in ROLES)
    return sum(last[0]["what"] == "begin" for last in lasts if last)


def look(place: Path, promised: Promised) -> None:
    """The daemon is dead: the store itself holds what was promised, and everything in it is whole. Raises AssertionError."""
    cache = Path(tempfile.mkdtemp(dir=place))
    with Store.open(place / "store", cache) as store:
        report = check_store(store, read_data=True)
        assert report.clean, [problem.line() for problem in report.problems]
        for name, (commit, _) in promised.there.items():
            assert store_has(store, name), f"{name} was acknowledged and is not there"
            assert store.state.refs[f"dataset/{name}/main"].commit == commit, f"{name} is another version"
        for name in promised.absent:
            assert not store_has(store, name), f"{name} came after its client had learned that it was not there"
        for ref in store.state.refs:
            name = ref.split("/")[1]
            assert name in promised.there or name in promised.open, f"nobody made {name}"
            role, number = name.rsplit("-", 1)
            expected = rows_of(int(number) * len(ROLES) + ROLES.index(role))
            assert Dataset.open(store, name).to_arrow().equals(expected), f"{name} has other rows"


# -- a daemon that dies between a publication and its answer ----------------------------------------------------------


def serve_dying() -> int:
    """`lepton serve`, which kills itself when the log has the first commit, before anybody is told."""
    from leptonstore.cli import main as lepton_main
    from leptonstore.store.log import Log, LogState, Proposal

    append = Log.append

    def dying(log: Log, state: LogState, decide: Callable[[LogState], Proposal]) -> None:
        proposed: list[Proposal] = []
        append(log, state, lambda state: proposed.append(decide(state)) or proposed[-1])  # type: ignore[func-returns-value]
        if proposed[-1].refs:
            os.kill(os.getpid(), signal.SIGKILL)

    Log.append = dying  # type: ignore[method-assign]
    return lepton_main() or 0


# -- the driver ------------------------------------------------------------------------------------------------------


def _child(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with open(place / "errors", "ab") as errors:
        return subprocess.Popen([sys.executable, "-m", "tests.crash.daemon_kill", *arguments], stderr=errors)


def run(kills: int, seed: int, place: Path) -> dict[str, Any]:
    """All rounds on one store, until something is wrong. This process opens no store: its children do."""
    begin = time.perf_counter()
    rng, wrong, told = random.Random(seed), [], Counter[str]()  # type: random.Random, list[str], Counter[str]
    for name in ("store", "pushed"):
        Store.create(place / name).close()
    served = daemon.start(place / "store", folder=place)
    clients = {
        role: _child(place, "--client", role, served.url, "--place", str(place)) for role in (*ROLES, "collector")
    }
    done = 0
    try:
        while done < kills and not wrong:
            units = time.perf_counter()
            before = sum(len(entries(place, role)) for role in ROLES)
            # At least one unit has ended since the last death, and one has begun.
            while (grown := sum(len(entries(place, role)) for role in ROLES) - before) < 4 or not in_flight(place):
                time.sleep(STEP_S)
                if time.perf_counter() - units > ROUND_S_MAX or any(one.poll() for one in clients.values()):
                    wrong.append(
                        f"round {done}: the clients did nothing more ({grown} lines); the daemon said {served.said()}"
                    )
                    break
            time.sleep(rng.random() * 2 * (time.perf_counter() - units) / max(1, grown))
            flying = in_flight(place)
            served.kill()
            told["in_flight"] += flying
            told["rounds_with_nothing_in_flight"] += flying == 0
            if _child(place, "--look", "--place", str(place)).wait():
                wrong.append(f"round {done}: the store was not as promised")
            served.restart()
            done += 1
        (place / "stop").touch()
        for role, client in clients.items():
            if client.wait(ROUND_S_MAX):
                wrong.append(f"{role} ended with {client.returncode}")
        served.stop()
        if _child(place, "--look", "--collect", "--place", str(place)).wait():
            wrong.append("at the end the store was not as promised")
    finally:
        for client in clients.values():
            client.kill()
            client.wait()
        served.kill()
    if (place / "errors").exists() and (errors := (place / "errors").read_text()):
        wrong.append(errors[-5_000:])
    promised = Promised(place)
    if told["in_flight"] == 0:
        wrong.append("nothing was in flight when the daemon died")
    return {
        "kills": done,
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        **told,
        **{name: promised.counts[name] for name in ("begin", "acknowledged", "failed", "learned", "removing")},
        "errors": {kind.__name__: promised.counts[kind.__name__] for kind in EXPECTED},
        "learned_there": sum(
            one["what"] == "learned" and one["commit"] is not None for role in ROLES for one in entries(place, role)
        ),
        "collections": dict(Counter(one["what"] for one in entries(place, "collector"))),
        "readable": len(promised.there),
        "wrong": wrong,
    }


def collector(place: Path, url: str) -> None:
    """Has the daemon collect garbage, again and again."""
    journal = Journal(place / "collector.journal")
    with Store.open(url) as store:
        while not (place / "stop").exists():
            try:
                job = store.link.act("job", {"kind": "gc"})["job"]  # type: ignore[attr-defined]
                while job["state"] == "running" and not (place / "stop").exists():
                    jobs = store.link.act("jobs")["jobs"]  # type: ignore[attr-defined]
                    job = next((one for one in jobs if one["id"] == job["id"]), {"state": "gone with its daemon"})
                    time.sleep(0.05)
                journal.add("collected" if job["state"] == "done" else job["state"], error=job.get("error", ""))
            except (TierUnavailable, TooBusy, Conflict):
                continue


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.daemon_kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--client", nargs=2, metavar=("ROLE", "URL"), help=argparse.SUPPRESS)
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        role, url = arguments.client
        sys.exit(
            _reported(
                lambda: (
                    collector(arguments.place, url) if role == "collector" else Client(arguments.place, role, url).run()
                )
            )
        )
    if arguments.look:
        sys.exit(_reported(lambda: _looked(arguments.place, arguments.collect)))
    with tempfile.TemporaryDirectory(prefix="lepton-daemon-kill-") as folder:
        os.environ["XDG_CACHE_HOME"] = os.environ["XDG_STATE_HOME"] = folder
        os.environ["XDG_RUNTIME_DIR"] = folder
        os.environ["LEPTON_CACHE"] = "none"
        result = run(arguments.kills, arguments.seed, Path(folder))
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


def _looked(place: Path, and_collect: bool) -> None:
    look(place, Promised(place))
    if and_collect:
        with Store.open(place / "store") as store:
            collect(store)
            assert set(store.tier.packs()) == set(store.state.packs), "something was left behind"
        look(place, Promised(place))


def _reported(work: Any) -> int:
    try:
        work()
    except BaseException as error:
        if isinstance(error, LeptonError | AssertionError):
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
