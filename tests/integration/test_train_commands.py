"""`lepton train` as it is typed: a name that is taken, and advice that can be typed in turn."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from test_tasks_scalars import write_scalars
from training_data import quick_config, write_patterns

from leptonstore.cli.process import command as process
from leptonstore.cli.runtime import run
from leptonstore.dataset import Dataset, list_refs, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers.commands import train
from trainers.loop import Trainer
from trainers.metrics import default_path
from trainers.run import run_train

COMMANDS = click.Group(commands={"train": train, "process": process})
QUICK = ["--epochs", "3", "--batch-size", "10", "--threads", "1", "--device", "cpu", "--checkpoint-every", "2"]
TAKEN = r"run 'cc' has checkpoints already, the newest of step 15: go on with --resume .*lepton checkpoint rm cc\)$"


@pytest.fixture
def at_store(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The store is the one that commands find by themselves, and the folder an empty one."""
    monkeypatch.setenv("LEPTON_STORE", str(store.url))
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    yield store


def checkpoints_of(store: Store, name: str = "cc") -> list[tuple[str, str]]:
    store.refresh()
    return [(ref.branch, str(ref.commit)) for ref in list_refs(store, "checkpoint", name)]


# -- a name that is taken ----------------------------------------------------------------------------------------------


def test_a_named_run_that_has_checkpoints_does_not_begin_anew(
    at_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write_patterns(at_store)
    begin = ["train", "patterns", "--run-name", "cc", *QUICK]
    assert run(COMMANDS, begin) == 0
    before, log = checkpoints_of(at_store), default_path(at_store, "cc").read_text()
    assert len(before) == 3
    capsys.readouterr()
    for more in ([], ["--max-steps", "4"], ["--threads", "2"]):
        assert run(COMMANDS, [*begin, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and re.search(TAKEN, said[0])
    assert (checkpoints_of(at_store), default_path(at_store, "cc").read_text()) == (before, log)

    assert run(COMMANDS, [*begin, "--seed", "9"]) == 2
    assert "of another training: seed is 0 in the checkpoint and 9 here" in capsys.readouterr().err
    for how in ("--resume", "--auto-resume"):
        assert run(COMMANDS, [*begin, how]) == 0
    assert checkpoints_of(at_store) == before


def test_ranks_that_torchrun_started_again_go_on(at_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_patterns(at_store)
    begin = ["train", "patterns", "--run-name", "cc", *QUICK]
    assert run(COMMANDS, [*begin, "--max-steps", "4"]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(COMMANDS, begin) == 0
    assert checkpoints_of(at_store)[-1][0] == "step-000000015"


def test_the_same_training_without_a_name_may_be_done_again(store: Store) -> None:
    """Its name follows from data and configuration, so that it is the same one."""
    write_patterns(store)
    values: dict[str, Any] = {"epochs": 1, "threads": 1, "device": "cpu"}
    first, again = (run_train(store, "patterns", values) for _ in range(2))
    assert (first["run"], first["checkpoint"]) == (again["run"], again["checkpoint"])


def test_whoever_says_so_replaces(store: Store, patterns: Dataset) -> None:
    config = quick_config()
    first = Trainer(config, store, patterns, run="cc").fit()
    with pytest.raises(BadInput, match=TAKEN):
        Trainer(config, store, patterns, run="cc").fit(replace=False)
    assert Trainer(config, store, patterns, run="cc").fit().checkpoint == first.checkpoint
    values: dict[str, Any] = {"epochs": 1, "threads": 1, "device": "cpu"}
    for _ in range(2):
        assert run_train(store, "patterns", values, run="named", replace=True)["finished"]


# -- advice ------------------------------------------------------------------------------------------------------------


def write_photographs(store: Store, folder: Path) -> None:
    """24 JPEGs of three sizes in folders of two classes, as `lepton import` makes a dataset of them."""
    pixels = np.random.default_rng(0)
    for number in range(24):
        name = ("dark", "light")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        made = pixels.integers(0, 256, (20 + number % 3, 24, 3)) // (2 - number % 2)
        file = io.BytesIO()
        Image.fromarray(made.astype(np.uint8)).save(file, "JPEG")
        (folder / name / f"{number}.jpg").write_bytes(file.getvalue())
    write_dataset(store, "photographs", open_source(str(folder)))


def test_what_is_said_about_encoded_images_can_be_typed(
    at_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(at_store, tmp_path / "photographs")
    quick = ["--epochs", "1", "--threads", "1", "--device", "cpu"]
    assert run(COMMANDS, ["train", "photographs", *quick]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    found = re.search(r"decode them once \((printf .*)\), or whenever they are read: (--set .*)$", said)
    assert found is not None
    first, *commands = found[1].split("; ")
    printf, text, redirect, file = shlex.split(first)
    assert (printf, redirect) == ("printf", ">")
    Path(file).write_text(text.replace("\\n", "\n"))
    for command in commands:
        lepton, *arguments = shlex.split(command)
        assert lepton == "lepton"
        assert run(COMMANDS, [*arguments, *(quick if arguments[0] == "train" else [])]) == 0
    assert "uint8 64 x 64 x 3, 2 classes" in capsys.readouterr().out
    assert run(COMMANDS, ["train", "photographs", *quick, *shlex.split(found[2])]) == 0
    assert "uint8 64 x 64 x 3 after 3 transforms" in capsys.readouterr().out


def test_what_is_said_about_a_table_of_numbers_can_be_typed(
    at_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scalars(at_store)
    quick = ["--epochs", "1", "--threads", "1", "--device", "cpu"]
    assert run(COMMANDS, ["train", "scalars", *quick]) == 2
    said = capsys.readouterr().err
    settings = "--set data.inputs=COLUMN --set data.labels=COLUMN"
    assert "it has a (double), b (double), y (double)" in said and settings in said
    typed = settings.replace("COLUMN", "a", 1).replace("COLUMN", "y").split()
    assert run(COMMANDS, ["train", "scalars", *quick, *typed]) == 0
    out = capsys.readouterr().out
    assert "regression: 1 of column 'y' from 1 of column 'a'" in out and re.search(
        r"loss +\d+\.\d+ on \d+ rows held out", out
    )
