"""Checkpoints that others wrote, as commits of the store. Nothing of them is executed: tensors and plain values are read, or it is refused.

    FILE.safetensors            names -> weights
    FILE (torch.save)           a state_dict, or a dict with one ("model", "state_dict", "model_state_dict", "module"): weights_only
    a directory of DCP          trainers.dcp_directory

Weights become "model/<name>", an optimizer's state that is keyed by their names "optimizer/<key>/<name>", everything else
"imported/<keys>"; values that neither a tensor nor JSON can hold are left out and named.
The commit's lineage names the files with their digests. It is no run that could be resumed: it is exported, compared, and what training can
start from (`model.init`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leptonstore.digest import digest_of_parts
from leptonstore.errors import BadInput, FormatDamaged, MissingExtra, SourceError
from leptonstore.store import Store
from trainers.checkpoint import Checkpoint, Checkpointer, branch_of, by_age, open_checkpoint
from trainers.dcp_directory import DcpDirectory, is_dcp, load_restricted

# Where the weights are, in files that hold more: of torch's tutorials, Lightning, timm, DDP scripts.
WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "module", "net", "weights")
STEP_KEYS = ("step", "global_step", "iteration", "iter_num")
OTHERS = "imported"
STEP_MAX = 10**9 - 1
_READ_BYTES = 4 << 20
_DEPTH_MAX = 32  # of objects in a file: optimizer states nest three deep


@dataclass
class Foreign:
    """What a file or directory holds. weights: by name; optimizer: by name and key. others, scalars: by their keys. left_out: keys of
    values that cannot be kept."""

    format: str
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    step: int | None = None


def read_foreign(path: Path, weights: str | None = None) -> Foreign:
    """weights: the key of the weights in a file that holds more, where it is none of the usual ones; dots for deeper ones.

    Raises SourceError, BadInput, FormatDamaged, MissingExtra.
    """
    if path.is_dir():
        if not is_dcp(path):
            raise SourceError(
                f"{path} is a directory without the .metadata of torch.distributed.checkpoint; give a file", str(path)
            )
        return _sorted_out("torch.distributed.checkpoint", _nested(DcpDirectory(path)), weights, path)
    if not path.is_file():
        raise SourceError(f"there is no file {path}; check the path", str(path))
    if path.suffix.lower() == ".safetensors":
        return Foreign("safetensors", _safetensors(path))
    packed = zipfile.is_zipfile(path)
    tree = load_restricted(path, str(path), **({"mmap": True} if packed else {}))
    if not isinstance(tree, Mapping):
        raise BadInput(f"{path} holds a {type(tree).__name__}, not the state of a model by names")
    return _sorted_out("torch", tree, weights, path)


def import_checkpoint(
    store: Store, path: Path, run: str, step: int | None = None, prefix: str = "", weights: str | None = None
) -> tuple[Checkpoint, Foreign]:
    """Put what `path` holds into the store as the checkpoint of `step` of `run` (default: the step that it says, else 0).

    prefix: put before the name of each weight ("network." makes them fit an image classifier of trainers.models).
    Raises as `read_foreign`; BadInput when the run has checkpoints that were not imported; StoreFull.
    """
    found = read_foreign(path, weights)
    number = found.step if step is None else step
    number = 0 if number is None else number
    if not 0 <= number <= STEP_MAX:
        raise BadInput(f"{path} says step {number}, which no checkpoint can have: give --step")
    _require_own_run(store, run)
    state: dict[str, Any] = {"model": {prefix + name: tensor for name, tensor in found.weights.items()}}
    if found.optimizer:
        state["optimizer"] = {prefix + name: values for name, values in found.optimizer.items()}
    if found.others or found.scalars:
        state[OTHERS] = {**found.others, **found.scalars}
    manifest = {"operation": "import", "imported": {"format": found.format, "files": _files(path)}}
    with Checkpointer(store, run) as checkpointer:
        checkpointer.save(number, state, manifest)
    return open_checkpoint(store, run, branch_of(number)), found


def _require_own_run(store: Store, run: str) -> None:
    store.refresh()
    for ref in by_age(store, run):
        if "imported" not in open_checkpoint(store, run, ref.branch).manifest:
            raise BadInput(f"run {run!r} has checkpoints that were trained here: import under another name")


def _sorted_out(kind: str, tree: Mapping[Any, Any], key: str | None, path: Path) -> Foreign:
    found = Foreign(kind, {})
    where = _weights_at(tree, key, path)
    node: Any = tree
    for part in where:
        node = node[part]
    for name, value in node.items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"{path}: the weight {name!r} is a {type(value).__name__}, not a tensor; name the weights with --weights KEY"
            )
        found.weights[str(name)] = _plain(value, str(name), path)
    found.optimizer = _optimizer_by_name(tree, found.weights, path)
    taken = [where, *([("optimizer", "state")] if found.optimizer else [])]
    for keys, value in _leaves(tree):
        if any(keys[: len(one)] == one for one in taken):
            continue
        told = "/".join(keys)
        if isinstance(value, Tensor):
            found.others[told] = _plain(value, told, path)
        elif _is_json(value):
            found.scalars[told] = value
        else:
            found.left_out.append(told)
    for name in STEP_KEYS:
        value = tree.get(name)
        if type(value) is int:
            found.step = value
            break
    return found


def _optimizer_by_name(tree: Mapping[Any, Any], weights: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Any]]:
    """An optimizer's state that is keyed by names of weights (torch.distributed.checkpoint.state_dict); nothing where it is not: then
    nobody but the program that wrote it knows which number is which weight."""
    optimizer = tree.get("optimizer")
    states = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if not isinstance(states, Mapping) or not states or not all(name in weights for name in states):
        return {}
    out: dict[str, dict[str, Any]] = {}
    for name, values in states.items():
        if not isinstance(values, Mapping) or not all(
            isinstance(one, Tensor) or _is_json(one) for one in values.values()
        ):
            return {}
        plain = {
            str(key): _plain(one, f"{name} {key}", path) if isinstance(one, Tensor) else one
            for key, one in values.items()
        }
        if any("/" in key for key in plain):
            return {}
        out[name] = plain
    return out


def _weights_at(tree: Mapping[Any, Any], key: str | None, path: Path) -> tuple[str, ...]:
    """The keys that lead to the weights; none when the tree is they."""
    if key is not None:
        node: Any = tree
        parts = tuple(key.split("."))
        for part in parts:
            node = node.get(part) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            raise BadInput(f"{path} has no object at {key!r}; it has {_names(tree)}")
        return parts
    for name in WEIGHTS_KEYS:
        inside = tree.get(name)
        if isinstance(inside, Mapping) and any(isinstance(value, Tensor) for value in inside.values()):
            return (name,)
    if tree and all(isinstance(value, Tensor) for value in tree.values()):
        return ()
    raise BadInput(f"{path} has no weights where they usually are; it has {_names(tree)}: name them with --weights KEY")


def _names(tree: Mapping[Any, Any]) -> str:
    names = [str(name) for name in tree]
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "")


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything that is no dict and no list of more than plain values."""
    if len(keys) > _DEPTH_MAX:
        raise BadInput(f"{'/'.join(keys[:5])} … is nested too deeply")
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, (*keys, _part(name)))
    elif isinstance(tree, list | tuple) and not _is_json(list(tree)):
        for at, value in enumerate(tree):
            yield from _leaves(value, (*keys, str(at)))
    else:
        yield keys, tree


def _part(name: Any) -> str:
    """A key as a part of a path."""
    text = str(name).replace("/", "|")
    return text if text not in ("", ".", "..") else f"({text})"


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_json(one) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)


def _plain(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise BadInput(f"{path}: {name!r} is a tensor of {tensor.dtype}, {tensor.layout}, which cannot be stored")
    return tensor.detach()


def _nested(directory: DcpDirectory) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for keys, value in directory.items():
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise FormatDamaged(f"{directory.path}: two values have the keys {'/'.join(keys)}")
        node[keys[-1]] = value
    return tree


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtra("reading safetensors", "train", "safetensors") from None
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FormatDamaged(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", str(path)) from None
    return loaded


def _files(path: Path) -> list[dict[str, Any]]:
    """Name, bytes and digest of each file: what a lineage leads back to."""
    files: Sequence[Path] = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    return [{"name": one.name, "bytes": one.stat().st_size, "digest": _digest(one)} for one in files]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return digest_of_parts(iter(lambda: file.read(_READ_BYTES), b"")).hex()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", str(path)) from None
