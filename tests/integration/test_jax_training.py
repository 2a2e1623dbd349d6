"""Training with JAX on eight forced devices, as one process and as two: stopped, restored in new processes, and the same to the bit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_data import write_patterns

from leptonstore.store import Store, check_store
from leptonstore.testing.ports import free_ports

pytestmark = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
SCRIPT = Path(__file__).with_name("jax_training_run.py")
STOPS = (1, 5, 7)
STEPS = 15
SECONDS_MAX = 300

Found = dict[str, Any]


def start(folder: Path, out: str, devices: int, *more: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
        # Half of the time goes into making the programs fast, which are run for a second.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
    }
    command = [sys.executable, str(SCRIPT), str(folder / "store"), str(folder / out), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def one(folder: Path, stage: str) -> Found:
    process = start(folder, f"one-{stage}.json", 8, stage)
    output = process.communicate(timeout=SECONDS_MAX)[0]
    assert process.returncode == 0, output
    found: Found = json.loads((folder / f"one-{stage}.json").read_text())
    return found


def two(folder: Path, stage: str) -> list[Found]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    processes = [start(folder, f"{rank}-{stage}.json", 4, stage, str(rank), address) for rank in range(2)]
    outputs = [process.communicate(timeout=SECONDS_MAX)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return [json.loads((folder / f"{rank}-{stage}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the store that all processes train from and save to."""
    place = tmp_path_factory.mktemp("jax")
    with Store.create(place / "store", cache_dir=place / "cache" / "lepton") as store:
        write_patterns(store)
    return place


@pytest.fixture(scope="module")
def stages(folder: Path) -> dict[str, list[Found]]:
    """What each stage said, by its processes."""
    return {
        "one first": [one(folder, "first")],
        "two first": two(folder, "first"),
        "one second": [one(folder, "second")],
        "two second": two(folder, "second"),
    }


@pytest.mark.parametrize("kind", ["one", "two"])
def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(stages: dict[str, list[Found]], kind: str) -> None:
    """Losses, weights, moments, PRNG key and place in the data, to the bit, on every process."""
    for before, after in zip(stages[f"{kind} first"], stages[f"{kind} second"], strict=True):
        whole = before["whole"]
        assert len(whole["losses"]) == STEPS and len(set(whole["losses"])) == STEPS
        for stop in STOPS:
            begun, resumed = before[f"stop-{stop}"], after[f"stop-{stop}"]
            assert begun["losses"] + resumed["losses"] == whole["losses"], stop
            assert begun["accuracy"] is None and resumed["accuracy"] == whole["accuracy"]
            assert resumed["digest"] == whole["digest"] and resumed["loader"] == whole["loader"]
            assert resumed["receipt"] == whole["receipt"] and whole["receipt"][1] == STEPS
            assert resumed["stretches"] == 1, "the same code in the same environment"


def test_all_processes_see_the_same_losses_and_checkpoints(stages: dict[str, list[Found]]) -> None:
    left, right = stages["two first"]
    for run in ("whole", *(f"stop-{stop}" for stop in STOPS)):
        assert left[run] == right[run]


def test_two_processes_train_as_one_does(stages: dict[str, list[Found]]) -> None:
    """The same rows in the same order, with the same of their features dropped; gradients are added up in another order."""
    alone, pair = stages["one first"][0]["whole"], stages["two first"][0]["whole"]
    assert [float.fromhex(loss) for loss in alone["losses"]] == pytest.approx(
        [float.fromhex(loss) for loss in pair["losses"]], rel=1e-4
    )
    assert alone["receipt"] == pair["receipt"]
    twin, rest = stages["two first"][0]["twin"], stages["one second"][0]["elsewhere"]
    assert [float.fromhex(loss) for loss in twin["losses"] + rest["losses"]] == pytest.approx(
        [float.fromhex(loss) for loss in pair["losses"]], rel=1e-4
    )
    assert rest["receipt"] == pair["receipt"] and rest["stretches"] == 2


def test_arrays_that_are_cut_by_columns_come_back_on_another_mesh_and_are_the_same_cells(
    stages: dict[str, list[Found]],
) -> None:
    for found in (*stages["one second"], *stages["two second"]):
        assert found["restored-one"] and found["restored-two"]
    (alone,), pair = stages["one first"], stages["two first"]
    assert alone["cells"] == pair[0]["cells"] == pair[1]["cells"] and len(alone["cells"]) >= 5
    assert alone["new_bytes"] > 2_000_000 and sum(one["new_bytes"] for one in pair) < 100_000, (
        "what is known adds nothing"
    )


def test_what_does_not_fit_is_refused_by_name(stages: dict[str, list[Found]]) -> None:
    told = stages["one second"][0]["refusals"]
    parts = [
        "config.",
        "no checkpoint of run 'nothing'",
        "no column 'picture'",
        "'more'",
        "'arrays/0/wide' is",
        "arrays/0/half",
        "'a/b'",
    ]
    for message, part in zip(told, parts, strict=True):
        assert part in message, (part, message)
    assert "background" in stages["two first"][0]["refused"]


def test_saves_in_the_background_keep_what_was_staged(stages: dict[str, list[Found]]) -> None:
    assert stages["one second"][0]["background"] is True


def test_no_torch_is_imported(stages: dict[str, list[Found]]) -> None:
    assert not any(found["torch"] for every in stages.values() for found in every)


def test_the_store_is_whole_afterwards(stages: dict[str, list[Found]], folder: Path) -> None:
    with Store.open(folder / "store") as store:
        assert check_store(store, read_data=True).clean


def test_the_program_runs_from_its_command_line(folder: Path, tmp_path: Path) -> None:
    words = [
        "patterns",
        "--store",
        str(folder / "store"),
        "--run",
        "cli",
        "--epochs",
        "4",
        "--batch-size",
        "10",
        "--lr",
        "0.003",
    ]
    command = [sys.executable, "-m", "trainers.examples.jax_mnist", *words]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}  # optimised as usual
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0 and "after 20 steps" in done.stdout, done.stdout + done.stderr
    assert float(done.stdout.split("accuracy ")[1].split()[0]) > 0.9
