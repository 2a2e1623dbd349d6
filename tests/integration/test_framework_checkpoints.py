"""Lightning and the Hugging Face Trainer save into the store, and go on from it bit for bit."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.errors import BadInput, RefMissing
from leptonstore.store import Store
from leptonstore.testing.ports import free_ports
from tests.integration.ranks import run_ranks
from trainers.checkpoint import load, save_objects
from trainers.listing import list_checkpoints

ROWS, BATCH, STOP, EPOCHS = 48, 6, 5, 3


@pytest.fixture
def place(tmp_path: Path, source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    with Store.create(tmp_path / "store") as store:
        columns = {"id": pa.array(np.arange(ROWS)), "score": pa.array(np.arange(ROWS, dtype=np.float32))}
        write_dataset(store, "rows", source_of(pa.table(columns), ("id",)))
    return tmp_path


def ranks_of(name: str, place: Path, ranks: int) -> list[dict[str, Any]]:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    (port,) = free_ports(1)
    (place / "plan.json").write_text(json.dumps({"name": name, "ranks": ranks, "port": str(port)}))
    return run_ranks("framework_checkpoints_run.py", place, ranks)


@pytest.mark.parametrize(("name", "ranks"), [("lightning", 2), ("transformers", 1), ("transformers", 2)])
def test_a_run_of_a_framework_goes_on_bit_for_bit(place: Path, name: str, ranks: int) -> None:
    told = ranks_of(name, place, ranks)
    steps = EPOCHS * ROWS // (BATCH * ranks)
    for rank in told:
        assert len(rank["whole"]["losses"]) == steps
        assert rank["parts"] == rank["whole"]
    assert len({rank["whole"]["weights"] for rank in told}) == 1
    with Store.open(place / "store") as store:
        found = load(store, "parts")
        assert found.step >= STOP and any(path.startswith("model/") for path in found.paths)
        assert "loss" in list_checkpoints(store, "parts")[0].metrics
        assert found.manifest["provenance"]["stretches"][0]["environment"]["world_size"] == ranks


# -- the parts alone ---------------------------------------------------------------------------------------------------


def test_paths_of_others_go_to_the_plugin_that_was_there(place: Path) -> None:
    pytest.importorskip("lightning")
    from trainers.lightning import StoreCheckpointIO

    with Store.open(place / "store") as store:
        plugin = StoreCheckpointIO(store)
        plugin.save_checkpoint({"a": 1}, place / "plain.ckpt")
        assert plugin.load_checkpoint(place / "plain.ckpt") == {"a": 1}
        plugin.save_checkpoint({"global_step": 3, "state_dict": {}, "loops": {"x": (1, {2: 3})}}, "lepton:run")
        assert plugin.load_checkpoint("lepton:run@3")["loops"] == {"x": (1, {2: 3})}
        plugin.remove_checkpoint("lepton:run@3")
        with pytest.raises(RefMissing):
            plugin.load_checkpoint("lepton:run")
        with pytest.raises(BadInput, match=r"lightning/hyper_parameters/loss is a builtins\.builtin_function"):
            plugin.save_checkpoint({"global_step": 3, "hyper_parameters": {"loss": print}}, "lepton:run")
        save_objects(store, "other", 1, {})
        with pytest.raises(BadInput, match="was not saved by Lightning"):
            plugin.load_checkpoint("lepton:other")


def test_a_directory_of_the_trainer_comes_back_file_for_file(place: Path) -> None:
    pytest.importorskip("transformers")
    import torch
    from safetensors.torch import save_file

    from trainers.huggingface import checkpoint_directory, save_directory

    folder = place / "checkpoint-7"
    folder.mkdir()
    save_file({"w": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    numpy_state = np.random.RandomState(1).get_state()
    torch.save({"numpy": numpy_state, "python": (3, (1, 2), None)}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text('{"global_step": 7}')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    with Store.open(place / "store") as store:
        save_directory(store, "run", 7, folder)
        assert checkpoint_directory(store, "none", place / "out") is None
        made = Path(str(checkpoint_directory(store, "run", place / "out")))
        assert sorted(path.name for path in made.iterdir()) == [
            "model.safetensors",
            "rng_state.pth",
            "trainer_state.json",
        ]
        assert (made / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert (made / "trainer_state.json").read_text() == '{"global_step": 7}'
        state = torch.load(made / "rng_state.pth", weights_only=False)
        assert state["python"] == (3, (1, 2), None) and np.array_equal(state["numpy"][1], numpy_state[1])
        (folder / "pytorch_model_fsdp").mkdir()
        with pytest.raises(BadInput, match="is a directory"):
            save_directory(store, "run", 7, folder)
        save_objects(store, "other", 1, {})
        with pytest.raises(BadInput, match="was not saved by a Hugging Face Trainer"):
            checkpoint_directory(store, "other", place / "out")


def test_a_bomb_in_a_directory_of_the_trainer_is_not_executed(place: Path) -> None:
    pytest.importorskip("transformers")
    import os

    import torch

    from trainers.huggingface import save_directory

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {place / 'executed'}",)

    folder = place / "checkpoint-7"
    folder.mkdir()
    torch.save({"state": Bomb()}, folder / "optimizer.pt")
    with (
        Store.open(place / "store") as store,
        pytest.raises(BadInput, match=r"optimizer\.pt .* nothing of it was executed"),
    ):
        save_directory(store, "run", 7, folder)
    assert not (place / "executed").exists()
