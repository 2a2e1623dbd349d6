"""Training, measured: the CNN of the main job on MNIST from a store, beside the same in Keras and in a bare torch loop.

python -m bench.train --vs keras,torch [--data MNIST_DIR] [--seeds 5] [--json] [--history]
python -m bench.train --quick                           a step beside a bare loop's: no MNIST, no peers

fast      the project's recipe in two epochs, evaluated every half epoch: seconds until an evaluation finds TARGET, the
          article's validation accuracy; and seconds of the whole. Keras: the article's program, `fit` of one epoch at a
          time and `evaluate` after each, until it is there (bench/peers/keras_mnist.py)
equal     what Keras does by itself, done by the trainer: batch 32, Adam at 1e-3, float32; seconds of two epochs with an
          evaluation after each
overhead  microseconds of a step above a bare torch loop's, for a model of one layer (bench/train_overhead.py)

Compilation, building the model and decoding the data count, imports do not. Every run is a process of its own; programs
and seeds take turns, so that a slow spell of the machine meets all of them. Medians over seeds. Keras runs on TensorFlow,
in an environment that is made on first use.

Contract: fast <= 0.6x and equal <= 1.2x of Keras' time; a step <= 150 us above the bare loop's; <= 1% of the training's
time waits for data.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Figure, find_mnist, in_process, median

MNIST, OVERHEAD = (
    "bench.train_mnist",
    "bench.train_overhead",
)  # run in processes of their own: torch is not imported here
PEERS = ("keras", "torch")
EPOCHS = 2
TARGET = 0.9837
TENSORFLOW = "tf_feed"  # the peer whose environment has it
KERAS_EPOCHS_MAX = 10  # it has been there after two to five
# A run of ours that never gets there has taken this long: no bound holds, and JSON has a number for it.
NEVER_S = 3_600.0


Run = dict[str, Any]  # what a program printed: {"evaluations": [{"epoch", "seconds", "accuracy"}], …}


def seconds_to(run: Run, target: float, otherwise: float) -> float:
    """When an evaluation first found `target`."""
    return next((one["seconds"] for one in run["evaluations"] if one["accuracy"] >= target), otherwise)


def at_epoch(run: Run, epoch: int, key: str) -> float:
    """Of the evaluation at the end of an epoch (1-based)."""
    value: float = next(one[key] for one in run["evaluations"] if one["epoch"] == epoch)
    return value


def measure_mnist(data: Path, seeds: int, peers: list[str]) -> list[Figure]:
    """The figures of MNIST: all of one seed, then all of the next."""
    found: dict[str, list[Run]] = {"fast": [], "equal": [], "keras": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        store, arrays = Path(folder) / "store", Path(folder) / "mnist.npz"
        in_process(MNIST, "store", str(store), str(data), str(arrays))
        for seed in range(seeds):
            for recipe in ("fast", "equal"):
                found[recipe].append(in_process(MNIST, "ours", str(store), recipe, str(EPOCHS), str(seed)))
            if "keras" in peers:
                limits = [str(TARGET), str(EPOCHS), str(KERAS_EPOCHS_MAX)]
                found["keras"].append(
                    harness.run_peer("keras_mnist", [str(data), str(seed), *limits], True, TENSORFLOW)
                )
            if "torch" in peers:
                found["torch"].append(in_process(MNIST, "torch", str(arrays), str(EPOCHS), str(seed)))
    return figures_of(found)


def figures_of(found: dict[str, list[Run]]) -> list[Figure]:
    """`found`: the runs of each program, by seed."""

    def middle(name: str, epoch: int, key: str) -> float:
        return median(at_epoch(run, epoch, key) for run in found[name])

    fast = median(seconds_to(run, TARGET, NEVER_S) for run in found["fast"])
    whole, equal = middle("fast", EPOCHS, "seconds"), middle("equal", EPOCHS, "seconds")
    accuracies = [at_epoch(run, EPOCHS, "accuracy") for run in found["fast"]]
    figures = [
        Figure("time to 98.37%", fast, "s"),
        Figure("time of two epochs", whole, "s"),
        Figure("accuracy", median(accuracies), "share", f">= {TARGET}"),
        Figure("accuracy, worst seed", min(accuracies), "share"),
        Figure("time per row", median(run["us_per_sample"] for run in found["fast"]), "us"),
        Figure("waiting for data", median(run["data_wait"] for run in found["fast"]), "share", "<= 0.01"),
        Figure("equal recipe", equal, "s"),
        Figure("equal recipe, accuracy", middle("equal", EPOCHS, "accuracy"), "share"),
        Figure("equal recipe, waiting", median(run["data_wait"] for run in found["equal"]), "share", "<= 0.01"),
    ]
    if found["keras"]:
        # One that never gets there counts as if it had at its last epoch, which is in its favour.
        needed = median(seconds_to(run, TARGET, run["evaluations"][-1]["seconds"]) for run in found["keras"])
        two = middle("keras", EPOCHS, "seconds")
        figures += [
            Figure("time to 98.37% vs keras", fast, "s", "<= 0.6", "Keras", needed),
            Figure("two epochs vs keras", whole, "s", "", "Keras until 98.37%", needed),
            Figure("equal recipe vs keras", equal, "s", "<= 1.2", "Keras, two epochs", two),
            Figure("keras, accuracy", middle("keras", EPOCHS, "accuracy"), "share"),
            Figure("keras, epochs needed", median(len(run["evaluations"]) for run in found["keras"]), "epochs"),
        ]
    if found["torch"]:
        two = middle("torch", EPOCHS, "seconds")
        figures.append(Figure("equal recipe vs torch", equal, "s", "", "bare torch loop", two))
    return figures


def measure_overhead() -> list[Figure]:
    """The figures of one step."""
    found = in_process(OVERHEAD)
    return [
        Figure("overhead of a step", found["overhead_us"], "us", "<= 150"),
        Figure("step of one layer", found["step_us"], "us", "", "bare torch loop", found["bare_us"]),
        Figure(
            "step of one layer, processor time", found["step_cpu_us"], "us", "", "bare torch loop", found["bare_cpu_us"]
        ),
    ]


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures; with --quick those that need neither MNIST nor peers."""
    figures = measure_overhead()
    if arguments.quick:
        return figures
    data = find_mnist(arguments.data)
    if data is None:
        raise SystemExit("bench.train: MNIST's IDX files are not beside the project: --data DIR says where they are")
    return figures + measure_mnist(data, arguments.seeds, arguments.vs)


def peers_of(text: str) -> list[str]:
    """ "keras,torch" -> names. Raises ArgumentTypeError for another."""
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEERS)}")
    return names


def main() -> None:
    """Parse the arguments and run."""
    parser = harness.parser("train", __doc__.split("\n")[0])
    parser.add_argument("--vs", type=peers_of, default=[], metavar="NAME,NAME", help=f"peers: {', '.join(PEERS)}")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each, the median counts (default 5)")
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX files")
    harness.main("train", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
