"""kill -9 of any rank of a training, again and again: what comes out is, bit for bit, what the undisturbed training gives.

    python -m tests.crash.train_kill --kind fsdp2 --ranks 3 --kills 10

A supervisor does what torchrun does, without importing torch anew: it forks the ranks, and when one has died, ends those that have not
ended by themselves, and forks them all again with resume="auto". The victim of each start, and its moment, are drawn: it kills itself
before the n-th call of a function that its main thread makes once the ranks have joined: while it builds, restores, trains, evaluates,
saves or logs. A moment that is counted does not depend on the machine's speed, and lies in the middle of something. Runs follow each
other until enough ranks were killed.

Compared with the undisturbed run: every loss of the log, in training and in evaluation, and the commit of the last checkpoint, which
binds weights, buffers, moments, generators, history, the data's order and the receipt. Prints one JSON line. Exits with 1 when anything
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pandas  # noqa: F401  (this, and the next one, are imported when first needed: here, once, instead of in every fork)
import torch
import torch._dynamo
from torch import distributed, nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from leptonstore.dataset import Dataset
from leptonstore.errors import RankLost
from leptonstore.store import Store
from tests.integration.training_data import quick_config, write_patterns
from trainers import checkpoint as checkpoints
from trainers import parallel
from trainers.config import TrainConfig
from trainers.loop import Trainer
from trainers.metrics import read_metrics

RUN = "killed"
TRAIN_ROWS, TEST_ROWS = 52, 7  # five batches of ten rows and one of two, which leaves one of three ranks without any
EPOCHS, CHECKPOINT_STEPS = 3, 2
LOST, FAILED = 7, 8  # exit codes
ALONE_S = 5.0  # how long the others have to end by themselves; torchrun gives them none
START_SECONDS_MAX = 60


def network(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Draws random numbers, has statistics that move and blocks of their own, and sizes that no number of ranks divides."""
    block = [nn.Sequential(nn.Linear(7, 7), nn.GELU(), nn.Dropout(0.3)) for _ in range(2)]
    first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, 7))
    return Network(first, nn.ModuleList(block), nn.Linear(7, classes))


class Network(nn.Module):
    """First, blocks with a way around each, last."""

    def __init__(self, first: nn.Module, blocks: nn.ModuleList, last: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks, self.last = first, blocks, last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        for block in self.blocks:
            x = x + block(x)
        logits: torch.Tensor = self.last(x)
        return logits

    def tensor_plan(self) -> dict[str, Any]:
        """One layer by columns, one by rows."""
        shared: dict[str, Any] = {"blocks.0.0": ColwiseParallel(output_layouts=Replicate())}
        return {**shared, "last": RowwiseParallel(input_layouts=Replicate())}


def config_of(kind: str, asynchronous: bool) -> TrainConfig:
    """Saves every second step, and keeps few checkpoints."""
    return quick_config(
        epochs=EPOCHS,
        checkpoint__asynchronous=asynchronous,
        parallel__kind="auto" if kind == "mesh" else kind,
        parallel__mesh={"data": 2, "tensor": 2} if kind == "mesh" else {},
        checkpoint__every_steps=CHECKPOINT_STEPS,
        model__reference="tests.crash.train_kill:network",
        model__params={},
    )


class Start(NamedTuple):
    """One start of all ranks. victim: -1 for none; call: the one before which it dies."""

    place: Path
    number: int
    kind: str
    asynchronous: bool
    ranks: int
    victim: int = -1
    call: int = 0


# -- a rank ----------------------------------------------------------------------------------------------------------


class Calls:
    """Counts the calls of the main thread, and kills the process before the n-th."""

    def __init__(self, last: int) -> None:
        self.count, self._last = 0, last

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def train(start: Start, rank: int) -> None:
    """The whole life of a rank."""
    torch.set_num_threads(1)
    place = start.place
    with parallel.naming_lost_ranks(), Store.open(place / "store", place / "cache") as store:
        rendezvous = f"file://{place}/rendezvous-{start.number}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=start.ranks)
        config = config_of(start.kind, start.asynchronous)
        trainer = Trainer(
            config,
            store,
            Dataset.open(store, "patterns"),
            run=RUN,
            metrics=place / "log.jsonl",
            world=parallel.start("cpu", config.parallel.mesh),
        )
        calls = Calls(start.call if rank == start.victim else -1)
        if start.victim in (-1, rank):
            sys.setprofile(calls)
        trainer.fit(resume="auto")
        sys.setprofile(None)
        (place / f"calls-{rank}").write_text(str(calls.count))


def forked(start: Start, rank: int) -> int:
    """A process that does `train`; what it raises is appended to the file "errors"."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        signal.alarm(START_SECONDS_MAX)
        train(start, rank)
        code = 0
    except RankLost:
        code = LOST
    except BaseException:
        with open(start.place / "errors", "a") as file:
            file.write(f"rank {rank}: {traceback.format_exc()}")
    finally:
        os._exit(code)


# -- the supervisor --------------------------------------------------------------------------------------------------


def run_ranks(start: Start) -> list[int | None]:
    """How each rank ended: its exit code, -9 when it was killed, None when it had to be ended after another one had died."""
    children = {forked(start, rank): rank for rank in range(start.ranks)}
    ends: list[int | None] = [None] * start.ranks
    died = None
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            ends[children.pop(pid)] = os.waitstatus_to_exitcode(status)
            died = died or (time.monotonic() if status else None)
        elif died is not None and time.monotonic() - died > ALONE_S:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return ends
        else:
            time.sleep(0.002)
    return ends


def prepare(place: Path) -> None:
    """A store with the rows, in a process of its own: this one never opens a store, it only forks."""
    place.mkdir()
    child = os.fork()
    if not child:
        with Store.create(place / "store", cache_dir=place / "cache") as store:
            write_patterns(store, train=TRAIN_ROWS, test=TEST_ROWS)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def outcome(place: Path) -> dict[str, Any]:
    """What a finished run left, told by a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with Store.open(place / "store", place / "cache") as store:
            commit = checkpoints.load(store, RUN).commit
        log = [event for event in read_metrics(place / "log.jsonl") if event["event"] in ("step", "epoch")]
        steps = [[event["step"], event.get("loss", event.get("val_loss"))] for event in log]
        os.write(writer, json.dumps({"commit": str(commit), "steps": steps}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told: dict[str, Any] = json.loads(file.read() or "{}")
    os.waitpid(child, 0)
    return told


def whole_run(start: Start) -> tuple[dict[str, Any], list[int]]:
    """The outcome of the undisturbed run, and how many calls each rank made."""
    place = start.place
    prepare(place)
    ends = run_ranks(start)
    if ends != [0] * start.ranks:
        raise AssertionError(f"the undisturbed run ended with {ends}: {errors_of(place)}")
    return outcome(place), [int((place / f"calls-{rank}").read_text()) for rank in range(start.ranks)]


def errors_of(place: Path) -> str:
    """What ranks raised, apart from RankLost."""
    path = place / "errors"
    return path.read_text() if path.exists() else ""


def killed_run(first: Start, kills: int, rng: random.Random, calls: list[int]) -> dict[str, Any]:
    """One run, killed so often at most; what it came to, and what happened."""
    ranks = first.ranks
    prepare(first.place)
    found: dict[str, Any] = {"kills": 0, "ended_by_themselves": 0, "had_to_be_ended": 0, "wrong": []}
    for number in range(4 * kills + 1):
        victim = rng.randrange(ranks) if found["kills"] < kills else -1
        # About ten starts make a run, some of which get nowhere.
        call = rng.randint(1, max(2, calls[victim] // 3))
        ends = run_ranks(first._replace(number=number, victim=victim, call=call))
        if ends == [0] * ranks:
            return {**found, **outcome(first.place)}
        others = [end for rank, end in enumerate(ends) if rank != victim]
        found["kills"] += victim >= 0 and ends[victim] == -signal.SIGKILL
        found["ended_by_themselves"] += sum(end in (0, LOST) for end in others)
        found["had_to_be_ended"] += others.count(None)
        if ends[victim] != -signal.SIGKILL or any(end not in (0, LOST, None) for end in others):
            found["wrong"].append(f"start {number}: victim {victim}, ends {ends}: {errors_of(first.place)}")
            return found
    found["wrong"].append("the run did not end")
    return found


def differences(found: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """What a killed run has and the undisturbed one has not, and the other way around."""
    told = [f"{one} only in the killed run" for one in found["steps"] if one not in whole["steps"]]
    told += [f"{one} only in the undisturbed run" for one in whole["steps"] if one not in found["steps"]]
    if not told and found["steps"] != whole["steps"]:
        told.append(f"the log of the killed run is in another order: {[step for step, _ in found['steps']]}")
    return told + (["the last checkpoints differ"] if found["commit"] != whole["commit"] else [])


def run(kind: str, asynchronous: bool, ranks: int, kills: int, seed: int, place: Path) -> dict[str, Any]:
    """Runs until `kills` ranks were killed; each must come to what the undisturbed run came to."""
    begin = time.perf_counter()
    rng = random.Random(f"{kind} {ranks} {seed}")
    first = Start(place / "whole", 0, kind, asynchronous, ranks)
    whole, calls = whole_run(first)
    told: dict[str, Any] = {
        "kind": kind,
        "asynchronous": asynchronous,
        "ranks": ranks,
        "seed": seed,
        "runs": 0,
        "steps": len(whole["steps"]),
    }
    told |= {"kills": 0, "ended_by_themselves": 0, "had_to_be_ended": 0}
    wrong: list[str] = []
    while told["kills"] < kills and not wrong:
        found = killed_run(first._replace(place=place / f"run-{told['runs']}"), kills - told["kills"], rng, calls)
        wrong = found["wrong"] or differences(found, whole)
        for key in ("kills", "ended_by_themselves", "had_to_be_ended"):
            told[key] += found[key]
        told["runs"] += 1
    return {**told, "seconds": round(time.perf_counter() - begin, 1), "wrong": wrong}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.train_kill", description=__doc__)
    parser.add_argument("--kind", choices=["ddp", "fsdp2", "mesh"], default="ddp", help="mesh: 2 x 2, by 4 ranks")
    parser.add_argument("--asynchronous", action="store_true", help="save in the background")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lepton-train-kill-") as folder:
        result = run(
            *(getattr(arguments, name) for name in ("kind", "asynchronous", "ranks", "kills", "seed")), Path(folder)
        )
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
