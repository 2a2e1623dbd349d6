"""The Hugging Face Trainer with its checkpoints in the store.

    from trainers.huggingface import StoreCallback, checkpoint_directory

    trainer = transformers.Trainer(..., callbacks=[StoreCallback(store, "my-run")])      # with save_strategy="steps", save_total_limit=1
    trainer.train(resume_from_checkpoint=checkpoint_directory(store, "my-run", args.output_dir))      # None at first

The Trainer writes a directory at each save, and reads one to resume; the callback puts what it wrote into the store, in a form that
deduplicates (weights as "model/<name>", other tensors as "huggingface/…", the rest as JSON; trainers.trees), and `checkpoint_directory`
writes it out again on any machine. training_args.bin, a pickle that resuming does not read, is left out. Directories inside of it (FSDP's
and DeepSpeed's own formats) are refused.

Needs transformers 5 (pip install transformers), which is imported with this module.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from leptonstore.dataset.lineage import checkpoint_spec
from leptonstore.errors import BadInput, FormatDamaged, MissingExtra, SourceError
from leptonstore.store import Store
from trainers.checkpoint import Checkpoint, Checkpointer, Retention, exists, open_checkpoint
from trainers.checkpoint.objects import world_here
from trainers.dcp_directory import load_restricted
from trainers.provenance import Provenance, environment
from trainers.trees import decode, encode

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise MissingExtra(
        "checkpoints of the Hugging Face Trainer", "huggingface", error.name or "transformers"
    ) from error

SECTION = "huggingface"  # of tensors, and of the manifest
LEFT_OUT = ("training_args.bin",)
FILE_BYTES_MAX = 256 << 20  # of one that is kept as it is: a tokenizer's vocabulary has some MB
_TORCH = (".pt", ".pth", ".bin")


class StoreCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Puts every checkpoint that the Trainer writes into the store. retention: of the run's; None keeps all.

    remove_local: take the directory away when it is in the store; not with load_best_model_at_end, which reads it.
    """

    def __init__(self, store: Store, run: str, retention: Retention | None = None, remove_local: bool = False) -> None:
        self.store, self.run, self.retention, self.remove_local = store, run, retention, remove_local
        self._provenance: Provenance | None = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer on every rank, when its directory is written. Raises BadInput, SourceError, StoreFull."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _meet()  # each rank writes a file of its own
        if args.should_save:
            if self._provenance is None:
                self._provenance = Provenance({}, world_here())
            metrics = _numbers(state.log_history[-1]) if state.log_history else {}
            provenance = self._provenance.to_dict()
            save_directory(self.store, self.run, state.global_step, folder, metrics, provenance, self.retention)
            if self.remove_local:
                shutil.rmtree(folder)
        _meet()


def save_directory(
    store: Store,
    run: str,
    step: int,
    folder: Path,
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    retention: Retention | None = None,
) -> None:
    """Put a directory that the Trainer wrote into the store. Raises BadInput for what it cannot keep, naming the file; SourceError."""
    weights: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    files: dict[str, Any] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"cannot read {folder}: {error.strerror}", str(folder)) from None
    for path in entries:
        if path.name in LEFT_OUT:
            continue
        if not path.is_file():
            raise BadInput(
                f"{path} is a directory: checkpoints of FSDP and DeepSpeed in the Trainer cannot be kept; save full state dicts"
            )
        if path.suffix == ".safetensors":
            found, told = _read_safetensors(path)
            weights.update(found)
            files[path.name] = {"safetensors": sorted(found), "metadata": told}
        elif path.suffix in _TORCH:
            with _numpy_arrays():
                tree = load_restricted(path, str(path))
            files[path.name] = {"torch": encode(tree, f"{SECTION}/{path.name}", others)}
        else:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise BadInput(f"{path} has over {FILE_BYTES_MAX >> 20} MiB and is none of the files that are known")
            others[f"{SECTION}/{path.name}"] = np.frombuffer(path.read_bytes(), np.uint8)
            files[path.name] = {"bytes": f"{SECTION}/{path.name}"}
    body = {SECTION: files, "environment": environment(world_here()), "provenance": dict(provenance or {})}
    state = {"model": weights, SECTION: {name.removeprefix(f"{SECTION}/"): value for name, value in others.items()}}
    with Checkpointer(store, run, retention=retention) as checkpointer:
        checkpointer.save(step, {key: one for key, one in state.items() if one}, body, dict(metrics or {}))


def checkpoint_directory(store: Store, run: str, output_dir: str | Path, step: int | None = None) -> str | None:
    """Write the newest checkpoint of `run` (or that of `step`) as a directory below `output_dir`, and return its path, for
    `resume_from_checkpoint`; None when there is none yet. On one machine rank 0 writes, and the others wait.

    Raises RefMissing, BadInput (not of a Trainer), FormatDamaged, SourceError.
    """
    if step is None and not exists(store, run):
        return None
    store.refresh()
    _, _, label = checkpoint_spec(store, run if step is None else f"{run}@{step}").partition("@")
    found = open_checkpoint(store, run, label)
    files = found.manifest.get(SECTION)
    if not isinstance(files, dict):
        raise BadInput(f"{found.whose} was not saved by a Hugging Face Trainer; open it with trainers.checkpoint.load")
    folder = Path(output_dir) / f"checkpoint-{found.step}"
    world = world_here()
    if world.is_main:
        part = folder.with_name(f".{folder.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, told in files.items():
                _write(found, part, name, told)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            raise SourceError(f"cannot write {folder}: {error.strerror}", str(folder)) from None
    _meet()
    return str(folder)


def _write(found: Checkpoint, folder: Path, name: str, told: Any) -> None:
    if not isinstance(told, dict) or "/" in name or "\0" in name or name in ("", ".", ".."):
        raise FormatDamaged(f"{found.whose} is damaged: file {name!r:.80}")
    path = folder / name
    if "safetensors" in told:
        from safetensors.torch import save_file

        save_file({key: found.tensor(f"model/{key}") for key in told["safetensors"]}, path, told.get("metadata"))
    elif "torch" in told:
        torch.save(decode(told["torch"], found.tensor, f"{name} of {found.whose}"), path)
    elif isinstance(told.get("bytes"), str):
        path.write_bytes(found.tensor(told["bytes"]).numpy().tobytes())
    else:
        raise FormatDamaged(f"{found.whose} is damaged: file {name!r:.80}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise FormatDamaged(f"{path} is damaged: {error}") from None


def _numpy_arrays() -> AbstractContextManager[None]:
    """Arrays, too, may be read: the Trainer's file of random generators has one. Constructors of numpy, which execute nothing."""
    from numpy._core import multiarray

    kinds = [type(np.dtype(kind)) for kind in ("uint32", "int64", "float64")]
    allowed: list[Any] = [multiarray._reconstruct, np.ndarray, np.dtype, *kinds]  # type: ignore[attr-defined, unused-ignore]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(allowed)
    return context


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value) and name not in ("epoch", "step")
    }


def _meet() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
