"""lepton checkpoint: list, show, compare, export, import, remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from training_data import quick_config, write_patterns

from leptonstore.cli.group import lepton
from leptonstore.dataset.branches import create_ref
from leptonstore.errors import BadInput, LeptonError, RefMissing
from leptonstore.store import Store
from loaders.receipt import Receipt
from trainers.checkpoint import Checkpoint, Checkpointer, load
from trainers.compare import compare
from trainers.export import export_checkpoint, optimizer_state_of, weights_of
from trainers.importing import import_checkpoint, read_foreign
from trainers.listing import list_checkpoints
from trainers.loop import Trainer
from trainers.weights import checkpoint_digest, weights_digest


@pytest.fixture
def trained(store: Store) -> Store:
    """Run "run" with checkpoints at steps 5, 10 and 15."""
    Trainer(quick_config(), store, write_patterns(store), run="run").fit()
    return store


def run(store: Store, *arguments: str) -> Result:
    store.flush()
    given = ["checkpoint", *arguments, "--store", store.url]
    return CliRunner().invoke(lepton, given, standalone_mode=False)


def told(store: Store, *arguments: str) -> Any:
    done = run(store, *arguments, "--json")
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout.strip().splitlines()[-1])


def save(store: Store, name: str, step: int, **tensors: torch.Tensor) -> Checkpoint:
    with Checkpointer(store, name) as checkpointer:
        checkpointer.save(step, {"model": tensors}, {"config": {"lr": step}}, {"loss": 1 / step})
    return load(store, name, step)


# -- ls, show ----------------------------------------------------------------------------------------------------------


def test_ls_says_steps_metrics_tags_and_bytes(trained: Store) -> None:
    create_ref(trained, "checkpoint", "run", "best", load(trained, "run", 10).commit, tag=True)
    found = told(trained, "ls", "run")["checkpoints"]
    assert [(one["run"], one["step"], one["tags"]) for one in found] == [
        ("run", 5, []),
        ("run", 10, ["best"]),
        ("run", 15, []),
    ]
    assert all(one["metrics"]["val_loss"] > 0 and one["own"] + one["shared"] == one["stored"] for one in found)
    text = run(trained, "ls").stdout
    assert "best" in text and "val_accuracy" in text and "own" in text
    with pytest.raises(RefMissing, match="runs with checkpoints: run"):
        told(trained, "ls", "other")


def test_bytes_that_are_shared_are_no_checkpoints_own(store: Store) -> None:
    torch.manual_seed(0)
    big = torch.randn(1 << 18)
    save(store, "one", 1, big=big, small=torch.zeros(3))
    before = list_checkpoints(store)[0]
    save(store, "one", 2, big=big, small=torch.ones(3))
    first, second = list_checkpoints(store)
    assert before.own == before.stored > 1 << 19
    assert first.own < 10_000 and second.own < 10_000 and first.stored == before.stored


def test_a_checkpoint_whose_step_was_let_go_is_listed_by_its_tag(store: Store) -> None:
    save(store, "one", 1, a=torch.zeros(3))
    create_ref(store, "checkpoint", "one", "best", load(store, "one", 1).commit, tag=True)
    told(store, "rm", "one", "--yes")
    assert [(one.branch, one.step) for one in list_checkpoints(store)] == [("step-000000001", 1)], "a tag keeps it"
    from leptonstore.dataset import delete_ref

    delete_ref(store, "checkpoint", "one", "step-000000001")
    assert [(one.branch, one.step) for one in list_checkpoints(store)] == [("best", None)]


def test_show_says_what_made_it_and_verify_computes_it_again(trained: Store, tmp_path: Path) -> None:
    found = told(trained, "show", "run@10", "--digest", "--verify", "--receipt", str(tmp_path / "r.json"))
    assert (found["branch"], found["manifest"]["epoch"]) == ("step-000000010", 2)
    assert found["weights"] == checkpoint_digest(load(trained, "run", 10))
    assert found["verified"] == {"tensors": len(found["tensors"]), "steps": 10, "rows": 100}
    assert Receipt.load(tmp_path / "r.json").steps == 10
    text = run(trained, "show", "run", "--tensors").stdout
    for part in ("step", "15, 3 epochs done", "val_accuracy", "threads 1", "model/network.conv.weight", "head"):
        assert part in text


def test_verify_finds_a_receipt_of_another_run(trained: Store) -> None:
    """Rewritten: the commit that it names holds the same rows, but the seed was another."""
    from leptonstore.dataset import write_files
    from loaders.verify import ReceiptDiffers

    saved = load(trained, "run", 10)
    lineage = json.loads(json.dumps(saved.files.lineage))
    lineage["receipt"]["origins"][0]["seed"] = 1
    files = [(path, saved.files.read(path)) for path in saved.files.paths()]
    write_files(trained, "checkpoint", "run", files, lineage, branch=saved.branch, apart=True)
    with pytest.raises(ReceiptDiffers, match="epoch 0"):
        told(trained, "show", "run@10", "--verify")


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_names_keys_metrics_and_tensors(trained: Store) -> None:
    found = told(trained, "diff", "run@5", "run@10")
    assert found["keys"]["epoch"] == [1, 2] and "config.seed" not in found["keys"]
    assert found["metrics"]["epoch"] == [1, 2]
    changed = {one["path"]: one for one in found["tensors"]}
    assert changed["model/network.conv.weight"]["max_difference"] > 0
    assert changed["optimizer/step/network.conv.weight"]["max_difference"] == 5
    assert found["unchanged"] + len(changed) == len(load(trained, "run", 5).paths)
    quick = told(trained, "diff", "run@5", "run@10", "--quick")
    assert {one["path"] for one in quick["tensors"]} == set(changed)
    assert "tensors differ" in run(trained, "diff", "run@5", "run").stdout


def test_diff_measures_what_it_says(store: Store) -> None:
    one = save(
        store,
        "a",
        1,
        w=torch.tensor([0.0, 1.0, torch.nan, -0.0]),
        same=torch.ones(2),
        gone=torch.ones(1),
        shape=torch.ones(2),
    )
    other = save(
        store,
        "b",
        2,
        w=torch.tensor([0.0, 3.0, torch.nan, 0.0]),
        same=torch.ones(2),
        new=torch.ones(1),
        shape=torch.ones(3),
    )
    found = compare(store, one, other)
    by_path = {tensor.path: tensor for tensor in found.tensors}
    assert {path: tensor.kind for path, tensor in by_path.items()} == {
        "model/w": "changed",
        "model/gone": "removed",
        "model/new": "added",
        "model/shape": "reshaped",
    }
    assert (by_path["model/w"].elements, by_path["model/w"].max_difference, by_path["model/w"].mean_difference) == (
        2,
        2.0,
        0.5,
    )
    assert found.keys == {"config.lr": (1, 2), "run": ("a", "b"), "step": (1, 2)} and found.unchanged == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_can_be_compared(store: Store, dtype: torch.dtype) -> None:
    one = save(store, "a", 1, w=torch.tensor([0, 1, 1]).to(dtype))
    other = save(store, "b", 1, w=torch.tensor([0, 1, 0]).to(dtype))
    found = compare(store, one, other).tensors[0]
    assert (found.elements, found.max_difference) == (1, 1.0)


# -- export ------------------------------------------------------------------------------------------------------------


def test_exported_weights_are_the_weights(trained: Store, tmp_path: Path) -> None:
    weights = weights_of(load(trained, "run"))
    told(trained, "export", "run", str(tmp_path / "w.safetensors"))
    told(trained, "export", "run", str(tmp_path / "w.pt"))
    plain = torch.load(tmp_path / "w.pt", weights_only=True)
    assert weights_digest(load_file(tmp_path / "w.safetensors")) == weights_digest(plain) == weights_digest(weights)
    assert sorted(path.name for path in tmp_path.glob("*w*")) == ["w.pt", "w.safetensors"], (
        "nothing half-written is left"
    )


def test_an_exported_optimizer_goes_on(trained: Store, tmp_path: Path) -> None:
    """What torch's own functions load: the next step is the one that the run would have made."""
    checkpoint = load(trained, "run", 10)
    told(trained, "export", "run@10", str(tmp_path / "s.pt"), "--optimizer")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    assert state["step"] == 10
    model = checkpoint.task.build(checkpoint.config.model, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    weight = model.get_parameter("network.conv.weight")
    assert torch.equal(optimizer.state[weight]["exp_avg"], checkpoint.tensor("optimizer/exp_avg/network.conv.weight"))
    assert optimizer.param_groups[0]["lr"] == 0.003


def test_an_export_replaces_nothing_unasked_and_leaves_nothing_half_written(trained: Store, tmp_path: Path) -> None:
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"w\.safetensors exists"):
        told(trained, "export", "run", str(target))
    assert target.read_bytes() == b"mine"
    told(trained, "export", "run", str(target), "--force")
    assert load_file(target)
    for place, said in ((tmp_path / "nowhere" / "w.pt", "cannot write"), (tmp_path / "w.what", "says no format")):
        with pytest.raises(BadInput, match=said):
            export_checkpoint(load(trained, "run"), place)
    assert not list(tmp_path.glob(".*part*"))


# -- import ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def trained_net() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(1)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict", "module"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_of_torch_save(store: Store, tmp_path: Path, key: str | None, packed: bool) -> None:
    net, optimizer = trained_net()
    tree = (
        net.state_dict()
        if key is None
        else {key: net.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 12}
    )
    torch.save(tree, tmp_path / "a.ckpt", _use_new_zipfile_serialization=packed)
    made, found = import_checkpoint(store, tmp_path / "a.ckpt", "theirs")
    assert weights_digest(weights_of(made)) == weights_digest(net.state_dict())
    assert (made.branch, found.left_out) == (f"step-{12 if key else 0:09d}", [])
    if key:
        assert torch.equal(
            made.tensor("imported/optimizer/state/0/exp_avg"), optimizer.state_dict()["state"][0]["exp_avg"]
        )
        assert made.scalars["imported/optimizer/param_groups/0/lr"] == 0.001
    file = made.files.lineage["imported"]["files"][0]
    assert file["name"] == "a.ckpt" and len(file["digest"]) == 64 and str(tmp_path) not in json.dumps(made.manifest)


def test_what_was_exported_comes_back_as_it_was(trained: Store, tmp_path: Path) -> None:
    checkpoint = load(trained, "run")
    export_checkpoint(checkpoint, tmp_path / "all.pt", optimizer=True)
    made, _ = import_checkpoint(trained, tmp_path / "all.pt", "back")
    ours = [path for path in checkpoint.paths if not path.startswith("rng/")]
    assert [path for path in made.paths if not path.startswith("imported/")] == ours
    assert all(torch.equal(made.tensor(path), checkpoint.tensor(path)) for path in ours)
    assert optimizer_state_of(made)["state"].keys() == optimizer_state_of(checkpoint)["state"].keys()


def test_a_directory_of_dcp(store: Store, tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    net, optimizer = trained_net()
    model, states = get_state_dict(net, optimizer)
    half = torch.arange(5, dtype=torch.bfloat16)
    dcp.save(
        {"model": model, "optimizer": states, "step": 7, "note": "x", "half": half, "empty": torch.zeros(0, 3)},
        checkpoint_id=tmp_path / "dcp",
    )
    made, found = import_checkpoint(store, tmp_path / "dcp", "theirs")
    assert (made.step, found.format, found.left_out) == (7, "torch.distributed.checkpoint", [])
    assert weights_digest(weights_of(made)) == weights_digest(model)
    for name, state in states["state"].items():
        assert torch.equal(made.tensor(f"optimizer/exp_avg/{name}"), state["exp_avg"])
    assert torch.equal(made.tensor("imported/half"), half) and made.described("imported/empty").shape == (0, 3)
    assert made.scalars["imported/note"] == "x"


def test_safetensors_with_a_prefix_begin_a_training(store: Store, tmp_path: Path) -> None:
    ds = write_patterns(store)
    Trainer(quick_config(), store, ds, run="first").fit()
    told(store, "export", "first", str(tmp_path / "w.safetensors"))
    stripped = {name.removeprefix("network."): tensor for name, tensor in load_file(tmp_path / "w.safetensors").items()}
    torch.save(stripped, tmp_path / "w.pt")
    assert told(store, "import", str(tmp_path / "w.pt"), "theirs", "--prefix", "network.")["weights"] == len(stripped)
    assert checkpoint_digest(load(store, "theirs")) == checkpoint_digest(load(store, "first"))
    with pytest.raises(BadInput, match="was imported, and is no run that could go on"):
        Trainer(quick_config(), store, ds, run="theirs").fit(resume=True)


def test_importing_again_changes_nothing_and_runs_that_were_trained_are_safe(trained: Store, tmp_path: Path) -> None:
    torch.save(trained_net()[0].state_dict(), tmp_path / "a.pt")
    commits = {told(trained, "import", str(tmp_path / "a.pt"), "theirs")["commit"] for _ in range(2)}
    assert len(commits) == 1
    with pytest.raises(BadInput, match="'run' has checkpoints that were trained here"):
        told(trained, "import", str(tmp_path / "a.pt"), "run")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": 1, "b": "x"}, "no weights where they usually are; it has a, b"),
        ([torch.zeros(1)], "holds a list"),
        ({"model": {"w": torch.zeros(1), "b": "text"}}, "the weight 'b' is a str"),
        ({"model": {"w": torch.zeros(2, 2).to_sparse()}}, "which cannot be stored"),
    ],
)
def test_what_is_no_state_is_refused_by_name(tmp_path: Path, tree: Any, said: str) -> None:
    torch.save(tree, tmp_path / "a.pt")
    with pytest.raises(BadInput, match=said):
        read_foreign(tmp_path / "a.pt")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(1000)}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 40)
    for size in (0, 1, 100, len(data) // 2, len(data) - 10):
        (tmp_path / "a.pt").write_bytes(data[:size])
        with pytest.raises(LeptonError, match=r"a\.pt"):
            read_foreign(tmp_path / "a.pt")
    for name, said in (("b.safetensors", "damaged"), ("none.pt", "there is no file"), (".", "without the .metadata")):
        with pytest.raises(LeptonError, match=said):
            read_foreign(tmp_path / name)


# -- rm ----------------------------------------------------------------------------------------------------------------


def test_rm_removes_what_is_named_and_keeps_what_has_a_tag(trained: Store) -> None:
    create_ref(trained, "checkpoint", "run", "best", load(trained, "run", 10).commit, tag=True)
    dry = told(trained, "rm", "run", "--dry-run")
    assert dry["removed"] == [] and dry["kept"] == {"run@step-000000010": "best"}
    assert told(trained, "rm", "run@5", "--yes")["removed"] == ["run@step-000000005"]
    assert [one.step for one in list_checkpoints(trained)] == [10, 15]
    assert told(trained, "rm", "run", "--keep-last", "1", "--yes")["removed"] == []
    assert told(trained, "rm", "run", "--yes")["removed"] == ["run@step-000000015"]
    assert [one.step for one in list_checkpoints(trained)] == [10]
    with pytest.raises(BadInput, match="is a tag: remove it with `lepton tag -d run@best"):
        told(trained, "rm", "run@best", "--yes")
    with pytest.raises(RefMissing):
        told(trained, "rm", "run@7", "--yes")


def test_rm_asks_nobody_when_nobody_is_there(trained: Store) -> None:
    done = run(trained, "rm", "run@5")
    assert done.exception is not None and "--yes" in str(done.exception)
    assert len(list_checkpoints(trained)) == 3


def test_numpy_states_of_other_frameworks_are_listed_and_shown(store: Store) -> None:
    with Checkpointer(store, "jax") as checkpointer:
        checkpointer.save(3, {"params": {"dense": {"kernel": np.ones((2, 2), np.float32)}}}, {})
    assert told(store, "show", "jax", "--verify")["verified"] == {"tensors": 1, "steps": None, "rows": None}
