"""DDP and FSDP2 over NCCL: the promises that hold there. Written, and not run where this project is tested: it has no such device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from training_data import quick_config, quick_options, train_command, write_patterns  # noqa: E402

from leptonstore.store import Store  # noqa: E402
from trainers import checkpoint as checkpoints  # noqa: E402
from trainers.metrics import read_metrics  # noqa: E402

RANKS = torch.cuda.device_count()


def requires_cuda(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.requires_cuda(pytest.mark.skipif(RANKS == 0, reason="no CUDA device")(test))


@requires_cuda
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stopped_run_goes_on_in_the_same_order_with_the_same_losses(
    tmp_path: Path, kind: str, precision: str
) -> None:
    """Bits are promised on the CPU only: kernels of a GPU may add up in any order."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        write_patterns(store)
    options = [*quick_options(quick_config()), "--device", "cuda", "--set", f"parallel.kind={kind}"]
    options += ["--set", f"precision={precision}"]
    logs = {name: tmp_path / f"{name}.jsonl" for name in ("whole", "parts")}

    def run(name: str, *more: str) -> None:
        told = ["--run-name", name, "--metrics", str(logs[name]), *more]
        train_command(RANKS, tmp_path / "store", [*told, *options], environment)

    run("whole")
    run("parts", "--max-steps", "7")
    run("parts", "--resume")
    whole, parts = ([e["loss"] for e in read_metrics(log) if e["event"] == "step"] for log in logs.values())
    assert parts == pytest.approx(whole, abs=1e-3)
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        left, right = (checkpoints.load(store, name).manifest["receipt"] for name in logs)
    assert left["head"] == right["head"]
