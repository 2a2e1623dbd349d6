"""Modules whose state is more than weights and buffers, optimizers whose settings are tensors: all of it comes back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers.checkpoint import Checkpointer, load, restore_model, restore_objects, save_objects, state_of
from trainers.checkpoint.dcp import StoreReader, StoreWriter


class Scaled(nn.Linear):
    """Keeps a history beside its weights, as layers of FP8 do."""

    def __init__(self, amax: Any = None) -> None:
        super().__init__(2, 2)
        self.state: Any = amax

    def get_extra_state(self) -> Any:
        return copy.deepcopy(self.state)

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Cloning(nn.Linear):
    """Its state_dict has copies of the weights, in another scale; load_state_dict takes them back."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_state_dict_post_hook(self._out)
        self.register_load_state_dict_pre_hook(self._in)

    @staticmethod
    def _out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2

    @staticmethod
    def _in(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2


def plain(state: Any) -> Any:
    """With arrays for tensors, which numpy compares."""
    if isinstance(state, dict):
        return {key: plain(one) for key, one in state.items()}
    return state.numpy() if isinstance(state, torch.Tensor) else state


def save_model(store: Store, model: nn.Module) -> None:
    """As the project's own loop does."""
    optimizer = torch.optim.SGD(model.parameters())
    with Checkpointer(store, "run") as checkpointer:
        checkpointer.save(1, state_of(model, optimizer, 0, torch.device("cpu")), {})


EXTRA_STATES = {
    "dict": ({"amax": torch.full((3,), 7.0), "calls": 5}, {"amax": torch.zeros(3), "calls": 0}),
    "tensor": (torch.arange(3), torch.zeros(3, dtype=torch.int64)),
    "grown": (torch.arange(300, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)),
    "begun": ({"amax": torch.ones(2), "scale": 0.5}, {"amax": None, "scale": None}),
    "array": ({"seen": np.arange(4)}, {"seen": np.zeros(4, np.int64)}),
    "number": (5, 0),
    "list": ([1, (2.5, "x")], []),
}


@pytest.mark.parametrize("kind", EXTRA_STATES)
@pytest.mark.parametrize("own_loop", [False, True])
def test_extra_state_comes_back(store: Store, kind: str, own_loop: bool) -> None:
    then, now = (copy.deepcopy(one) for one in EXTRA_STATES[kind])
    model = nn.Sequential(Scaled(then), nn.BatchNorm1d(2))
    if own_loop:
        save_model(store, model)
    else:
        save_objects(store, "run", 1, {"model": model})
    again = nn.Sequential(Scaled(now), nn.BatchNorm1d(2))
    if own_loop:
        restore_model(load(store, "run"), again)
    else:
        restore_objects(store, "run", {"model": again})
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))
    assert isinstance(again[0], Scaled) and type(again[0].state) is type(then)
    np.testing.assert_equal(plain(again[0].state), plain(then))


def test_a_module_whose_state_dict_has_clones_is_filled(store: Store) -> None:
    model, again = Cloning(), Cloning()
    save_objects(store, "run", 1, {"model": model})
    restore_objects(store, "run", {"model": again})
    assert torch.equal(again.weight, model.weight) and torch.equal(again.bias, model.bias)


def test_a_module_that_does_not_take_its_extra_state_back_is_named(store: Store) -> None:
    class OneWay(nn.Linear):
        def get_extra_state(self) -> int:
            return 1

    save_objects(store, "run", 1, {"model": OneWay(2, 2)})
    with pytest.raises(BadInput, match=r"'model' does not take back '_extra_state'.*set_extra_state") as caught:
        restore_objects(store, "run", {"model": OneWay(2, 2)})
    assert "\n" not in str(caught.value)


def test_a_lazy_module_that_has_not_run_is_told_to_run(store: Store) -> None:
    model = nn.LazyLinear(3)
    with pytest.raises(BadInput, match="'model/weight' has no shape yet: run the model once"):
        save_objects(store, "run", 1, {"model": model})
    model(torch.ones(1, 2))
    save_objects(store, "run", 1, {"model": model})
    again = nn.LazyLinear(3)
    with pytest.raises(BadInput, match="'model/weight' has no shape yet: run the model once"):
        restore_objects(store, "run", {"model": again})
    again(torch.ones(1, 2))
    restore_objects(store, "run", {"model": again})
    assert torch.equal(again.weight, model.weight)


# -- tensors in the groups of an optimizer ---------------------------------------------------------------------------------


def trained(lr: float, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    betas: Any = (torch.tensor(0.5 + lr), torch.tensor(0.9 + lr))
    groups = [
        {"params": [model.weight], "lr": torch.tensor(lr)},
        {"params": [model.bias], "lr": torch.tensor(2 * lr)},
    ]
    optimizer = torch.optim.Adam(groups, foreach=False, capturable=False)
    optimizer.param_groups[0]["mine"] = betas
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", ["optimizer", "opt"])
def test_a_learning_rate_that_is_a_tensor_comes_back_in_place(store: Store, name: str) -> None:
    model, optimizer = trained(0.01, 0)
    save_objects(store, "run", 1, {"model": model, name: optimizer})
    again, other = trained(0.02, 1)
    rates = [group["lr"] for group in other.param_groups]
    betas = other.param_groups[0]["mine"]
    restore_objects(store, "run", {"model": again, name: other})
    assert [group["lr"] for group in other.param_groups] == [torch.tensor(0.01), torch.tensor(0.02)]
    assert all(group["lr"] is rate for group, rate in zip(other.param_groups, rates, strict=True))
    assert other.param_groups[0]["mine"] == optimizer.param_groups[0]["mine"]
    assert all(one is before for one, before in zip(other.param_groups[0]["mine"], betas, strict=True))
    for one, its in ((model, optimizer), (again, other)):
        one(torch.ones(1, 3)).sum().backward()
        its.step()
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def test_an_object_is_not_called_as_the_groups_of_an_optimizer(store: Store) -> None:
    model, optimizer = trained(0.01, 0)
    with pytest.raises(BadInput, match=r"'opt.param_groups' cannot name an object beside the optimizer 'opt'"):
        save_objects(store, "run", 1, {"model": model, "opt": optimizer, "opt.param_groups": nn.Linear(1, 1)})


def test_a_learning_rate_that_is_a_tensor_comes_back_through_dcp(store: Store) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer = trained(0.01, 0)
    again, other = trained(0.02, 1)
    for one in (optimizer, other):
        del one.param_groups[0]["mine"]  # tensors within a tuple are refused there, by name
    writer = StoreWriter(store, "run", 1)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, storage_writer=writer, no_dist=True)
    writer.close()
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(again, other)}
    dcp.load(state, storage_reader=StoreReader(store, "run"), no_dist=True)
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [torch.tensor(0.01), torch.tensor(0.02)]


# -- metrics -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_metrics_of_numpy_and_torch_are_kept_and_what_is_not_finite_is_left_out(
    store: Store, asynchronous: bool
) -> None:
    metrics = {
        "loss": float("nan"),
        "worst": torch.tensor(float("inf")),
        "least": np.float32("-inf"),
        "mean": np.float32(0.5),
        "rows": np.int64(3),
        "best": torch.tensor(0.25, dtype=torch.bfloat16),
        "good": np.bool_(True),
        "by_class": {"cat": [1, 2.5]},
        "none": None,
    }
    with Checkpointer(store, "run", asynchronous=asynchronous) as checkpointer:
        checkpointer.save(1, {"model": {"w": torch.ones(2)}}, {}, metrics)
    from trainers.listing import list_checkpoints

    kept = {"mean": 0.5, "rows": 3, "best": 0.25, "good": True, "by_class": {"cat": [1, 2.5]}, "none": None}
    assert [one.metrics for one in list_checkpoints(store, "run")] == [kept]


@pytest.mark.parametrize(
    "value", [torch.ones(2), np.ones(2), {1, 2}, object(), 1j, np.complex64(1), [float("nan")], {"a": torch.ones(1)}]
)
def test_a_metric_that_json_lacks_is_named_and_nothing_is_written(store: Store, value: Any) -> None:
    before = store.state.sequence
    with (
        Checkpointer(store, "run") as checkpointer,
        pytest.raises(BadInput, match="the metric 'val_loss' cannot be kept"),
    ):
        checkpointer.save(1, {"model": {"w": torch.ones(2)}}, {}, {"acc": 1.0, "val_loss": value})
    with pytest.raises(BadInput, match="the metric 3 is named by a int"):
        save_objects(store, "run", 1, {"model": nn.Linear(1, 1)}, metrics={3: 1.0})  # type: ignore[dict-item]
    store.refresh()
    assert store.state.sequence == before
