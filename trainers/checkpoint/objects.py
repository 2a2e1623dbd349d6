"""Checkpoints of anybody's loop: give the objects that train, get them back as they were.

    from trainers.checkpoint import restore_objects, save_objects

    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    saved = restore_objects(store, "my-run", objects)          # None: there is no checkpoint yet
    for step in range(saved.step if saved else 0, steps):
        ...
        save_objects(store, "my-run", step + 1, objects, metrics={"loss": loss})

    object                                       is kept as
    torch.nn.Module (in DDP, fully_shard, compiled)   <name>/<weight, buffer or extra state>
    torch.optim.Optimizer of one of the modules       <name>/<key>/<weight>, and its groups in the manifest, their tensors (lr=tensor) as
                                                      <name>.param_groups/…
    anything with state_dict and load_state_dict      tensors as <name>/…, the rest in the manifest, as JSON (trainers.trees)

and beside them torch's, numpy's and Python's random generators of each rank, the receipt of a LeptonStore loader, code and environment
(trainers.provenance). A checkpoint named so is like any other: listed, compared, exported, kept by a Retention.

With several ranks all of them call, with their own objects. What is no module and no optimizer must have the same state on all ranks, as
LeptonStore's loaders have: that of rank 0 is kept. The data order goes on at any number of ranks; bits are equal at the same number.
"""

from __future__ import annotations

import random
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from leptonstore.errors import BadInput, FormatDamaged, LeptonWarning
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.store import Store
from trainers.checkpoint.checkpointer import Checkpointer
from trainers.checkpoint.modules import restore_module
from trainers.checkpoint.restore import restore
from trainers.checkpoint.resume import environment_warnings
from trainers.checkpoint.retention import Retention
from trainers.checkpoint.saved import Checkpoint, exists, load
from trainers.parallel import World
from trainers.provenance import Provenance, environment
from trainers.trees import decode, encode

OBJECTS = "objects"  # of the manifest: {name: {"kind", "state"}}
GROUPS = ".param_groups"  # the section of the tensors in an optimizer's groups: its name and this
RNG = "rng"  # the section of generators, which no object may be called
_RECEIPTS: weakref.WeakKeyDictionary[Store, dict[str, Provenance]] = weakref.WeakKeyDictionary()


class ObjectCheckpointer:
    """Saves and restores the objects of one run. Made, used and closed by every rank (each of them a collective), by one thread of it.

    config: JSON that the checkpoints keep: what the loop was told to do. The rest as of Checkpointer.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        config: Mapping[str, Any] | None = None,
        retention: Retention | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.store, self.run = store, run
        self._world = world_here()
        self._config = dict(config or {})
        self._provenance = _RECEIPTS.setdefault(store, {}).setdefault(run, Provenance(self._config, self._world))
        self._checkpointer = Checkpointer(store, run, self._world, retention, asynchronous)

    def save(
        self,
        step: int,
        objects: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        """Save `objects` as the checkpoint of `step`. Asynchronous: returns when they may go on; else when it is durable.

        metrics: numbers, beside the commit. manifest: JSON of the caller's, which the checkpoint keeps.
        Raises BadInput, naming the path, for a state that holds more than tensors and plain values; what Checkpointer.save raises.
        """
        state, told = _taken(objects)
        state[RNG] = {f"rank-{self._world.rank}": generators(self._world.device)}
        receipts = [self._provenance.receipt(one) for one in objects.values() if _is_own_loader(one)]
        body = {
            **(manifest or {}),
            "config": self._config,
            OBJECTS: told,
            "environment": environment(self._world),
            "provenance": self._provenance.to_dict(),
            "receipt": receipts[0] if len(receipts) == 1 else None,
            **_data_of(objects),
        }
        self._checkpointer.save(step, state, body, metrics)

    def restore(self, objects: Mapping[str, Any], step: int | None = None) -> Checkpoint | None:
        """Put the newest checkpoint of the run (or that of `step`) into `objects`; None, and nothing is changed, when there is none.

        Objects that it has and that are not given are left out. Differences of the environment that may change last bits are warned of.
        Raises BadInput, naming object and tensor, for what does not fit; RefMissing for a step that there is not; FormatDamaged.
        """
        self.wait()
        if step is None and not exists(self.store, self.run):
            return None
        found = load(self.store, self.run, step)
        told = found.manifest.get(OBJECTS)
        if not isinstance(told, dict):
            raise BadInput(f"{found.whose} was not saved from objects: open it with trainers.checkpoint.load")
        for name in objects:
            if name not in told:
                raise BadInput(f"{found.whose} has no object {name!r}; it has {', '.join(sorted(told))}")
        modules = _modules(objects)
        for name, value in objects.items():
            _restore_one(found, name, value, told[name], modules)
        for line in environment_warnings(found, self._world):
            warnings.warn(line, LeptonWarning, stacklevel=2)
        _restore_generators(found, self._world)
        self._provenance.resume(found.manifest)
        return found

    def wait(self) -> tuple[int, str] | None:
        """(step, commit) of the last save, durable now. Raises what a save in the background met."""
        return self._checkpointer.wait()

    def close(self) -> None:
        """Wait for what is in flight."""
        self._checkpointer.close()

    def __enter__(self) -> ObjectCheckpointer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._checkpointer.__exit__(*error)


def save_objects(
    store: Store,
    run: str,
    step: int,
    objects: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    retention: Retention | None = None,
) -> str:
    """Save once, durable when it returns; the commit (hex). A collective. With many ranks and saves an ObjectCheckpointer is cheaper."""
    with ObjectCheckpointer(store, run, config=config, retention=retention) as checkpointer:
        checkpointer.save(step, objects, metrics, manifest)
        saved = checkpointer.wait()
    assert saved is not None
    return saved[1]


def restore_objects(store: Store, run: str, objects: Mapping[str, Any], step: int | None = None) -> Checkpoint | None:
    """Put the newest checkpoint of `run` (or that of `step`) into `objects`. A collective. As ObjectCheckpointer.restore."""
    with ObjectCheckpointer(store, run) as checkpointer:
        return checkpointer.restore(objects, step)


def world_here() -> World:
    """This process's place in torch.distributed's default group; alone without one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return World()
    cuda = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(distributed.get_rank(), distributed.get_world_size(), device)


# -- taking states -------------------------------------------------------------------------------------------------------


def _taken(objects: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, {name: {"kind", "state"}}) of the objects. Raises BadInput."""
    modules = _modules(objects)
    state: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for name, value in objects.items():
        if not name or "/" in name or name == RNG:
            raise BadInput(f"{name!r} cannot name an object of a checkpoint: take another name, without a slash")
        tensors: dict[str, Any] = {}
        if isinstance(value, nn.Module):
            state[name], told[name] = plain_module(value).state_dict(), {"kind": "module"}
        elif isinstance(value, torch.optim.Optimizer):
            state[name], groups = _optimizer_state(name, value, modules)
            section = f"{name}{GROUPS}"
            if section in objects:
                raise BadInput(f"{section!r} cannot name an object beside the optimizer {name!r}: take another name")
            told[name] = {"kind": "optimizer", "state": encode(groups, section, tensors)}
            state[section] = _within(section, tensors)
        elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            told[name] = {"kind": "state", "state": encode(value.state_dict(), name, tensors)}
            state[name] = _within(name, tensors)
        else:
            raise BadInput(f"{name!r} is a {type(value).__qualname__} without state_dict and load_state_dict")
    return {name: one for name, one in state.items() if one}, told


def _within(section: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that `encode` took out, by their paths in the section of the state whose name the paths begin with."""
    return {path.removeprefix(f"{section}/"): tensor for path, tensor in tensors.items()}


def plain_module(module: nn.Module) -> nn.Module:
    """The module inside of DistributedDataParallel and torch.compile, whose names of weights are the user's."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _modules(objects: Mapping[str, Any]) -> dict[str, nn.Module]:
    return {name: plain_module(value) for name, value in objects.items() if isinstance(value, nn.Module)}


def _weight_names(name: str, optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """The names of the weights of each group. Raises BadInput when a weight is of none of the modules."""
    several = len(modules) > 1
    names = {
        id(weight): f"{module}.{key}" if several else key
        for module, one in modules.items()
        for key, weight in one.named_parameters()
    }
    groups = [[names.get(id(weight)) for weight in group["params"]] for group in optimizer.param_groups]
    if any(key is None for group in groups for key in group):
        raise BadInput(f"the optimizer {name!r} has weights of no module that is saved with it: give the module, too")
    return [[str(key) for key in group] for group in groups]


def _optimizer_state(
    name: str, optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(state by paths, groups with names for weights)."""
    named = _weight_names(name, optimizer, modules)
    states = optimizer.state_dict()["state"]
    flat = [key for group in named for key in group]
    found = {flat[index]: dict(values) for index, values in states.items() if values}
    groups = [
        {**{key: value for key, value in group.items() if key != "params"}, "params": keys}
        for group, keys in zip(optimizer.param_groups, named, strict=True)
    ]
    return (found if name == "optimizer" else _by_key(found)), groups


def _by_key(states: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{weight: {key: value}} -> {key: {weight: value}}, which is where the section "optimizer" has them by itself."""
    out: dict[str, dict[str, Any]] = {}
    for weight, values in states.items():
        for key, value in values.items():
            out.setdefault(key, {})[weight] = value
    return out


# -- and giving them back --------------------------------------------------------------------------------------------------


def _restore_one(found: Checkpoint, name: str, value: Any, told: Any, modules: Mapping[str, nn.Module]) -> None:
    kind = told.get("kind") if isinstance(told, dict) else None
    whose = f"{name!r} of {found.whose}"
    if isinstance(value, nn.Module):
        _require_kind(whose, kind, "module")
        restore_module(found, name, plain_module(value))
    elif isinstance(value, torch.optim.Optimizer):
        _require_kind(whose, kind, "optimizer")
        _restore_optimizer(found, name, value, told["state"], modules)
    else:
        _require_kind(whose, kind, "state")
        if not hasattr(value, "load_state_dict"):
            raise BadInput(f"{name!r} is a {type(value).__qualname__} without load_state_dict")
        value.load_state_dict(decode(told["state"], found.tensor, whose))


def _require_kind(whose: str, stored: Any, here: str) -> None:
    if stored != here:
        raise BadInput(f"{whose} is a {stored} there and a {here} here")


def _restore_optimizer(
    found: Checkpoint, name: str, optimizer: torch.optim.Optimizer, told: Any, modules: Mapping[str, nn.Module]
) -> None:
    whose = f"the optimizer {name!r} of {found.whose}"
    groups = decode(told, found.tensor, whose)
    named = _weight_names(name, optimizer, modules)
    if not isinstance(groups, list) or [group.get("params") for group in groups] != named:
        raise BadInput(f"{whose} does not fit: its groups have other weights, or the same in another order")
    weights = {
        key: weight
        for keys, group in zip(named, optimizer.param_groups, strict=True)
        for key, weight in zip(keys, group["params"], strict=True)
    }
    states: dict[str, dict[str, Any]] = {}
    prefix = f"{name}/"
    for path, tensor in found.opened.tensors.items():
        if path.startswith(prefix):
            key, weight = _of_weight(path, prefix, weights, whose)
            like, dtype = weights[weight].detach(), getattr(torch, tensor.dtype)
            # In the layout of the weight, and sharded as it is: fused optimizers walk both in memory order.
            same = tensor.shape == tuple(like.shape)
            made = torch.empty_like(like, dtype=dtype) if same else torch.empty(tensor.shape, dtype=dtype)
            states.setdefault(weight, {})[key] = made
    for path in found.scalars:
        if path.startswith(prefix):
            key, weight = _of_weight(path, prefix, weights, whose)
            states.setdefault(weight, {})[key] = None
    if states:
        nested = {name: states if name == "optimizer" else _by_key(states)}
        restore(found, nested)
        if name != "optimizer":
            for key, values in nested[name].items():
                for weight, value in values.items():
                    states[weight][key] = value
    order = {key: at for at, key in enumerate(key for keys in named for key in keys)}
    numbered = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [order[key] for key in group["params"]],
        }
        for group in groups
    ]
    here = list(optimizer.param_groups)
    optimizer.load_state_dict(
        {"state": {order[key]: values for key, values in states.items()}, "param_groups": numbered}
    )
    # torch puts other tensors in place of those in the groups, where they were saved from; but compiled steps and CUDA graphs read the
    # very tensors that they were made with.
    for before, group in zip(here, optimizer.param_groups, strict=True):
        group.update({key: _into(before.get(key), value) for key, value in group.items() if key != "params"})


def _into(before: Any, value: Any) -> Any:
    """`value`, its tensors in the memory (and on the device) of those in `before` where these are alike."""
    if isinstance(value, Tensor):
        if isinstance(before, Tensor) and (before.shape, before.dtype) == (value.shape, value.dtype):
            before.detach().copy_(value)
            return before
    elif isinstance(value, list | tuple) and isinstance(before, list | tuple) and len(before) == len(value):
        return type(value)(_into(old, new) for old, new in zip(before, value, strict=True))
    return value


def _of_weight(path: str, prefix: str, weights: Mapping[str, Tensor], whose: str) -> tuple[str, str]:
    key, _, weight = path.removeprefix(prefix).partition("/")
    if weight not in weights:
        raise BadInput(f"{whose} does not fit: {path!r} belongs to no weight of it")
    return key, weight


# -- random generators, receipts -------------------------------------------------------------------------------------------


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's random generators as uint8 vectors: torch's of each device type, numpy's and Python's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    told = {
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "python": [random.getstate()[0], list(random.getstate()[1]), random.getstate()[2]],
    }
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return {
        **found,
        **{name: torch.frombuffer(bytearray(canonical_json(state)), dtype=torch.uint8) for name, state in told.items()},
    }


def set_generators(states: Mapping[str, Tensor], device: torch.device, whose: str) -> None:
    """The inverse of `generators`. Raises FormatDamaged, which calls them those of `whose`."""
    try:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], device)
        kind, keys, *rest = parse_json(states["numpy"].numpy().tobytes(), "numpy's generator")
        np.random.set_state((kind, np.array(keys, np.uint32), *rest))
        version, numbers, gauss = parse_json(states["python"].numpy().tobytes(), "Python's generator")
        random.setstate((version, tuple(numbers), gauss))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FormatDamaged(f"the random generators of {whose} are damaged: {error}") from None


def _restore_generators(found: Checkpoint, world: World) -> None:
    """As rank `world.rank` left them; untouched on a rank that the checkpoint does not know."""
    prefix = f"{RNG}/rank-{world.rank}/"
    states = {path.removeprefix(prefix): found.tensor(path) for path in found.paths if path.startswith(prefix)}
    if states:
        set_generators(states, world.device, f"rank {world.rank} in {found.whose}")


def _is_own_loader(value: Any) -> bool:
    """Whether it is a loader that keeps a receipt now."""
    return (
        hasattr(value, "receipt")
        and getattr(value, "_source", None) is not None
        and bool(getattr(value, "receipts", False))
    )


def _data_of(objects: Mapping[str, Any]) -> dict[str, Any]:
    """What the lineage says of the data: the dataset versions of LeptonStore loaders, by the names of these."""
    found = {}
    for name, value in objects.items():
        ds: Any = getattr(value, "dataset", None)
        if getattr(type(ds), "__lepton_dataset__", False):
            found[name] = {"name": ds.name, "commit": ds.commit, "fingerprint": ds.fingerprint, "rows": len(ds)}
    return {"data": found} if found else {}
