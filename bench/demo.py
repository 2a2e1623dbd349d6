"""The main job, measured: `lepton demo` from raw files to a deployed model, then once more in the same place.

python -m bench.demo --data MNIST_DIR [--runs 3] [--history]     the MNIST figures
python -m bench.demo --quick                                    scikit-learn's digits, no peer

The peer is a bare torch loop over an in-memory TensorDataset: same network, batch and epochs, an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Figure


def demo(workdir: Path, options: list[str]) -> dict[str, Any]:
    """Run `lepton demo --json` in a process of its own."""
    command = [sys.executable, "-c", "from leptonstore.cli import main; main()", "demo", "--json"]
    done = subprocess.run(
        [*command, "--workdir", str(workdir), *options], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    result: dict[str, Any] = json.loads(done.stdout.decode().strip().split("\n")[-1])
    return result


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Several seeds of the demo; medians. The second run in one workdir must add nothing."""
    options = ["--data", arguments.data, "--epochs", "5"] if arguments.data else []
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1 if arguments.quick else arguments.runs):
            runs.append(demo(Path(folder) / f"seed-{seed}", [*options, "--seed", str(seed)]))
        again = demo(Path(folder) / "seed-0", [*options, "--seed", "0"])
    first = runs[0]
    peer = harness.run_peer("torch_mnist", [arguments.data]) if arguments.data and not arguments.quick else None
    mnist = bool(arguments.data)
    return [
        Figure(
            "val_accuracy",
            harness.median(run["val_accuracy"] for run in runs),
            "share",
            ">= 0.9837" if mnist else ">= 0.95",
        ),
        Figure("val_accuracy_worst", min(run["val_accuracy"] for run in runs), "share"),
        Figure(
            "us_per_sample",
            harness.median(run["us_per_sample"] for run in runs),
            "us",
            peer="bare torch loop" if peer else "",
            peer_value=peer["us_per_sample"] if peer else None,
        ),
        Figure(
            "data_wait_fraction",
            harness.median(run["data_wait_fraction"] for run in runs),
            "share",
            "<= 0.01" if mnist else "",
        ),
        Figure(
            "stored_share", first["stored_bytes"] / first["logical_bytes"], "of logical", "<= 0.25" if mnist else ""
        ),
        Figure("stored_bytes", first["stored_bytes"], "bytes"),
        Figure("checkpoint_bytes", first["checkpoint_bytes"], "bytes"),
        Figure("new_share_of_second_run", again["new_bytes"] / first["stored_bytes"], "of stored", "<= 0.01"),
        Figure("same_commit_again", float(again["commit"] == first["commit"]), "yes/no", "== 1"),
        Figure("same_model_again", float(again["model"] == first["model"]), "yes/no", "== 1"),
    ]


if __name__ == "__main__":
    parser = harness.parser("demo", __doc__ or "")
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX files; without it scikit-learn's digits")
    parser.add_argument("--runs", type=int, default=3, help="seeds to measure (default 3)")
    given = parser.parse_args()
    harness.main("demo", given, measure)
