"""The whole chain, as a newcomer runs it, and the contract of the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.harness import Figure
from leptonstore.dataset import Dataset, FileTable
from leptonstore.store import Store, check_store

FIELDS = {
    "dataset", "train_samples", "val_samples", "val_accuracy", "us_per_sample", "data_wait_fraction", "logical_bytes",
    "stored_bytes", "checkpoint_bytes", "new_bytes", "commit", "model", "report",
}  # fmt: skip


def _demo(*options: str | Path) -> dict[str, object]:
    command = [sys.executable, "-c", "from leptonstore.cli import main; main()", "demo", "--json"]
    done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def test_the_demo_runs_the_chain_and_the_second_run_adds_nothing(tmp_path: Path) -> None:
    first = _demo("--workdir", tmp_path / "w", "--epochs", 8)
    assert set(first) == FIELDS and float(str(first["val_accuracy"])) > 0.9
    again = _demo("--workdir", tmp_path / "w", "--epochs", 8)
    assert again["new_bytes"] == 0
    assert {key: again[key] for key in ("commit", "model", "val_accuracy", "stored_bytes")} == {
        key: first[key] for key in ("commit", "model", "val_accuracy", "stored_bytes")
    }
    html = Path(str(first["report"])).read_text()
    assert "<svg" in html and "http://" not in html.replace("http://www.w3.org", "") and 'src="http' not in html
    with Store.open(tmp_path / "w" / "store") as store:
        assert check_store(store, read_data=True).clean
        model = FileTable.open(store, "model", "digits-cnn")
        assert model.lineage["data"]["training"]["commit"] == first["commit"], "the model names the data that made it"
        assert Dataset.open(store, "digits@prepared").commit == first["commit"]


def test_the_demo_takes_a_folder_of_images_and_cleans_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, (low, high) in {"dark": (0, 100), "light": (150, 255)}.items():
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for at in range(60):
            Image.fromarray(rng.integers(low, high, (12, 10), np.uint8)).save(
                tmp_path / "pictures" / label / f"{at}.png"
            )
    twin = tmp_path / "pictures" / "dark" / "twin.png"
    twin.write_bytes((tmp_path / "pictures" / "dark" / "0.png").read_bytes())
    (tmp_path / "pictures" / "light" / "broken.png").write_bytes(b"\x89PNG not really")
    result = _demo("--data", tmp_path / "pictures", "--workdir", tmp_path / "w", "--epochs", 3)
    assert int(str(result["train_samples"])) + int(str(result["val_samples"])) == 120
    assert float(str(result["val_accuracy"])) > 0.9


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (Figure("a", 1.0, "s"), None),
        (Figure("a", 1.0, "s", "<= 1"), True),
        (Figure("a", 1.0, "s", ">= 1.1"), False),
        (Figure("a", 1.0, "s", ">= 1.1", "peer", 0.5), True),
    ],
)
def test_a_bound_is_on_the_ratio_when_there_is_a_peer(figure: Figure, holds: bool | None) -> None:
    assert figure.holds is holds and figure.to_json()["holds"] is holds
