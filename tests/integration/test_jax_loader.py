"""The JAX loader on eight forced CPU devices, and with two jax.distributed processes. The checks stand in jax_run.py."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store
from leptonstore.testing.ports import free_ports

HAS_JAX = importlib.util.find_spec("jax") is not None
needs_jax = pytest.mark.skipif(not HAS_JAX, reason="jax is not installed")
SCRIPT = Path(__file__).with_name("jax_run.py")
ROWS = 203


def checks(kind: str) -> list[str]:
    return re.findall(rf"^def ({kind}_\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the store that all processes read."""
    place = tmp_path_factory.mktemp("jax")
    tokens = (np.arange(ROWS)[:, None] * 100 + np.arange(4)).astype(np.int32)
    table = pa.table(
        {
            "id": pa.array(np.arange(ROWS)),
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), 4),
            "text": pa.array([f"row {at}" for at in range(ROWS)]),
            "big": pa.array((1 << 40) + np.arange(ROWS)),
            "half": pa.array(np.arange(ROWS).astype(np.float16)),
            "wide": pa.array(np.arange(ROWS) / 3),
        }
    )
    with Store.create(place / "store", cache_dir=place / "cache") as store:
        write_dataset(store, "sequences", Source(table.schema, ("id",), lambda: iter(table.to_batches()), ROWS, {}))
    return place


def start(folder: Path, out: str, devices: int, *more: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, SCRIPT, folder / "store", folder / out, *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def one_process(folder: Path) -> dict[str, str]:
    process = start(folder, "one.json", 8)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    found: dict[str, str] = json.loads((folder / "one.json").read_text())
    return found


@pytest.fixture(scope="module")
def two_processes(folder: Path) -> list[dict[str, str]]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    processes = [start(folder, f"{rank}.json", 4, str(rank), address) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all((folder / f"{rank}.json").exists() for rank in range(2)), "\n".join(outputs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@needs_jax
@pytest.mark.parametrize("check", checks("check"))
def test_eight_devices(one_process: dict[str, str], check: str) -> None:
    assert one_process[check] == "", one_process[check]


@needs_jax
@pytest.mark.parametrize("check", checks("together"))
def test_two_processes(two_processes: list[dict[str, str]], check: str) -> None:
    for found in two_processes:
        assert found.get(check) == "", found
