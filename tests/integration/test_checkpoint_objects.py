"""Any loop goes on as if it had never stopped, with the objects that it trains with: model, optimizer, scheduler, loader, generators."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_data import write_patterns

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, FormatDamaged, LeptonWarning, RefMissing
from leptonstore.store import Store
from loaders import DataLoader
from loaders.receipt import Receipt
from loaders.verify import replay_of
from trainers.checkpoint import ObjectCheckpointer, Retention, load, restore_objects, save_objects
from trainers.export import export_checkpoint
from trainers.listing import list_checkpoints
from trainers.reproduce import read_record
from trainers.trees import decode, encode


@pytest.fixture
def ds(store: Store) -> Dataset:
    return write_patterns(store)


class Loop:
    """A loop that nobody prepared for anything: dropout, a scheduler, numpy's and Python's generators."""

    def __init__(self, ds: Dataset, optimizer: str = "Adam", seed: int = 0) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        options: dict[str, Any] = {"lr": 0.01, **({"momentum": 0.9} if optimizer == "SGD" else {})}
        self.optimizer: torch.optim.Optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), **options)
        cycles = optimizer in ("Adam", "SGD")
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, 60, cycle_momentum=cycles)
        self.loader = DataLoader(ds, 10, shuffle=True, seed=3, as_tuple=("image", "label"), drop_last=True)
        self.losses: list[float] = []

    @property
    def objects(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "loader")}

    def steps(self, count: int) -> Iterator[int]:
        while True:
            for images, labels in self.loader:
                noise = random.random() + float(np.random.rand())
                outputs = self.model(images.float() / 255 + 0.01 * noise)
                loss = nn.functional.cross_entropy(outputs, labels.long())
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.losses.append(float(loss.detach()))
                yield len(self.losses)
                if len(self.losses) == count:
                    return


def equal_states(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "Adagrad", "RMSprop"])
def test_a_loop_goes_on_bit_for_bit(store: Store, ds: Dataset, optimizer: str) -> None:
    whole = Loop(ds, optimizer)
    for step in whole.steps(17):
        if step == 9:
            save_objects(store, "run", step, whole.objects, metrics={"loss": whole.losses[-1]})
    later = Loop(ds, optimizer, seed=5)
    saved = restore_objects(store, "run", later.objects)
    assert saved is not None and saved.step == 9
    list(later.steps(8))
    assert later.losses == whole.losses[9:]
    assert equal_states(later.model, whole.model)
    assert later.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_there_is_nothing_yet(store: Store, ds: Dataset) -> None:
    loop = Loop(ds)
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    assert restore_objects(store, "run", loop.objects) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.model.state_dict().items())
    save_objects(store, "run", 1, loop.objects)
    with pytest.raises(RefMissing, match="step-000000002"):
        restore_objects(store, "run", loop.objects, step=2)


def test_an_interrupted_loop_has_the_receipt_of_the_whole_run(store: Store, ds: Dataset) -> None:
    done = 0
    for stop in (3, 8, 12):
        loop = Loop(ds)
        restore_objects(store, "run", loop.objects)
        list(loop.steps(stop - done))
        save_objects(store, "run", stop, loop.objects)
        done = stop
    saved = load(store, "run")
    receipt = Receipt.from_dict(saved.manifest["receipt"])
    assert (receipt.steps, receipt.base_steps) == (12, 0)
    assert replay_of(receipt, ds).verify().rows == 120
    assert saved.manifest["data"]["loader"]["commit"] == ds.commit
    assert saved.manifest["provenance"]["stretches"][0]["environment"]["world_size"] == 1


def test_in_the_background_and_with_a_retention(store: Store, ds: Dataset) -> None:
    loop = Loop(ds)
    with ObjectCheckpointer(store, "run", retention=Retention(keep_last=2), asynchronous=True) as checkpointer:
        for step in loop.steps(6):
            checkpointer.save(step, loop.objects, {"loss": loop.losses[-1]})
            if step == 5:
                expected = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    assert [one.step for one in list_checkpoints(store, "run")] == [5, 6]
    again = Loop(ds)
    restore_objects(store, "run", again.objects, step=5)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())


def test_wrapped_models_have_the_names_of_plain_ones(store: Store, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = nn.Linear(3, 2)
        save_objects(store, "run", 1, {"model": DistributedDataParallel(torch.compile(model))})
    finally:
        torch.distributed.destroy_process_group()
    assert [path for path in load(store, "run").paths if path.startswith("model")] == ["model/bias", "model/weight"]
    plain = nn.Linear(3, 2)
    restore_objects(store, "run", {"model": plain})
    assert equal_states(plain, model)


def test_two_models_and_two_optimizers(store: Store) -> None:
    """As a GAN has them: an optimizer finds its weights among all modules."""

    def made(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        nets = {"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)}
        optimizers = {f"{name}_optimizer": torch.optim.Adam(net.parameters()) for name, net in nets.items()}
        nets["critic"](nets["generator"](torch.ones(1, 2))).sum().backward()
        for optimizer in optimizers.values():
            optimizer.step()
        return {**nets, **optimizers}

    first, other = made(0), made(1)
    save_objects(store, "run", 1, first)
    restore_objects(store, "run", other)
    for name in ("generator", "critic"):
        assert equal_states(first[name], other[name])
        left, right = (one[f"{name}_optimizer"].state_dict() for one in (first, other))
        assert all(torch.equal(left["state"][0][key], right["state"][0][key]) for key in left["state"][0])
        assert left["param_groups"] == right["param_groups"]


def test_what_does_not_fit_is_refused_by_name(store: Store, ds: Dataset) -> None:
    loop = Loop(ds)
    list(loop.steps(1))
    save_objects(store, "run", 1, loop.objects)
    other = nn.Linear(2, 2)
    for objects, said in (
        ({"ema": loop.model}, "no object 'ema'; it has loader, model, optimizer, scheduler"),
        ({"model": other}, "'model/1.bias'|'model/bias'|'model/weight'"),
        ({"model": loop.optimizer}, "module there and a optimizer here"),
        ({"model": other, "optimizer": torch.optim.Adam(other.parameters())}, "does not fit"),
        ({"optimizer": loop.optimizer}, "no module that is saved with it"),
    ):
        with pytest.raises(BadInput, match=said):
            restore_objects(store, "run", objects)
    for objects, said in (
        ({"a/b": loop.model}, "cannot name an object"),
        ({"rng": loop.model}, "cannot name an object"),
        ({"thing": object()}, "without state_dict"),
    ):
        with pytest.raises(BadInput, match=said):
            save_objects(store, "other", 1, objects)


def test_a_state_that_would_have_to_be_unpickled_is_refused_by_its_path(store: Store) -> None:
    class Holder:
        def state_dict(self) -> dict[str, Any]:
            return {"fine": [1, {"deep": print}]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise NotImplementedError

    with pytest.raises(BadInput, match=r"holder/fine/1/deep is a builtins.builtin_function_or_method"):
        save_objects(store, "run", 1, {"holder": Holder()})


def test_other_generators_and_environments_are_told(store: Store, ds: Dataset) -> None:
    loop = Loop(ds)
    save_objects(store, "run", 1, loop.objects)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(LeptonWarning, match=f"threads was {threads} and is {threads + 1} now"):
            restore_objects(store, "run", loop.objects)
    finally:
        torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_objects(store, "run", loop.objects)


def test_they_are_checkpoints_like_any_other(store: Store, ds: Dataset, tmp_path: Path) -> None:
    loop = Loop(ds)
    list(loop.steps(2))
    save_objects(store, "run", 2, loop.objects, metrics={"loss": 0.5}, config={"lr": 0.01}, manifest={"note": "mine"})
    saved = load(store, "run")
    export_checkpoint(saved, tmp_path / "w.pt", optimizer=True)
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert torch.equal(state["model"]["1.weight"], loop.model[1].weight)
    assert (saved.manifest["note"], list_checkpoints(store)[0].metrics) == ("mine", {"loss": 0.5})
    with pytest.raises(BadInput, match="saved by a loop of its own"):
        read_record(store, "run")


# -- states as JSON ------------------------------------------------------------------------------------------------------


def test_trees_come_back_as_they_were() -> None:
    tree = {
        "a": [1, -2.5, None, True, "x", float("inf"), float("-inf")],
        3: {"t": torch.arange(3), "n": np.ones(2)},
        None: (1, (2, [])),
        "empty": {},
        "tensor": {"tensor": "not one"},
        True: {"dict": [1]},
    }
    tensors: dict[str, Any] = {}
    told = encode(tree, "it", tensors)
    import json

    again = decode(json.loads(json.dumps(told, allow_nan=False)), lambda path: torch.as_tensor(tensors[path]), "it")
    assert again.keys() == tree.keys() and again["a"] == tree["a"] and again[None] == tree[None]
    assert torch.equal(again[3]["t"], tree[3]["t"]) and isinstance(again[3]["n"], np.ndarray)  # type: ignore[index, call-overload]
    assert again["tensor"] == tree["tensor"] and again[True] == tree[True] and again["empty"] == {}
    assert np.isnan(decode(encode(float("nan"), "it", {}), lambda path: torch.zeros(1), "it"))


@pytest.mark.parametrize(
    "told",
    [
        {"float": "one"},
        {"tuple": 3},
        {"dict": [[1]]},
        {"dict": [[[1], 2]]},
        {"object": "os.system"},
        {},
        {"a": 1, "b": 2},
    ],
)
def test_damaged_trees_are_refused(told: Any) -> None:
    with pytest.raises(FormatDamaged, match="it is damaged"):
        decode(told, lambda path: torch.zeros(1), "it")


def test_trees_are_not_nested_without_end() -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(BadInput, match="nested too deeply"):
        encode(deep, "it", {})
    with pytest.raises(FormatDamaged, match="nested too deeply"):
        decode(deep, lambda path: torch.zeros(1), "it")
