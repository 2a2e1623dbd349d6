"""Lightning's Trainer with its checkpoints in the store.

    from trainers.lightning import StoreCheckpoint

    saved = StoreCheckpoint(store, "my-run", every_n_steps=500)
    trainer = lightning.Trainer(callbacks=[saved])
    trainer.fit(module, loader, ckpt_path=saved.ckpt_path)     # None at first; then the newest checkpoint

What Lightning puts into a checkpoint is kept, without pickling it: weights as "model/<name>", other tensors as "lightning/…", the rest as
JSON in the manifest (trainers.trees); hyper-parameters that are no plain values are refused by name. Beside it the random generators of
every rank, which Lightning leaves out: a run that is resumed in mid-epoch draws the numbers that it would have drawn.

`StoreCheckpointIO` is the plugin below it, for `trainer.save_checkpoint("lepton:my-run")` and other callbacks; paths that do not begin so
go where they would have gone. Needs lightning 2 (pip install lightning), which is imported with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leptonstore.dataset import delete_ref, list_refs
from leptonstore.dataset.lineage import checkpoint_spec
from leptonstore.errors import BadInput, FormatDamaged, MissingExtra
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.store import Store
from trainers.checkpoint import Checkpointer, Retention, exists, open_checkpoint
from trainers.checkpoint.objects import generators, set_generators, world_here
from trainers.checkpoint.ranks import Ranks
from trainers.provenance import Provenance, environment
from trainers.trees import decode, encode

try:
    from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
    from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
except ModuleNotFoundError as error:
    raise MissingExtra("checkpoints of Lightning", "lightning", error.name or "lightning") from error

SCHEME = "lepton:"
SECTION = "lightning"  # of tensors, and of the manifest


class StoreCheckpointIO(CheckpointIO):  # type: ignore[misc, unused-ignore]
    """Paths are "lepton:RUN" (to read: its newest checkpoint) and "lepton:RUN@REF"; all others are `other`'s. Lightning calls it on rank 0
    to save, and on all ranks to load."""

    def __init__(self, store: Store, retention: Retention | None = None, other: CheckpointIO | None = None) -> None:
        self.store, self.retention = store, retention
        self.other = TorchCheckpointIO() if other is None else other
        self._provenance: dict[str, Provenance] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save what Lightning made, under its step; storage_options: {"metrics": {name: number}}. Raises BadInput, naming the path of
        what is neither a tensor nor a plain value."""
        run = _run_of(path)
        if run is None:
            self.other.save_checkpoint(checkpoint, path, storage_options)
            return
        run = run.partition("@")[0]
        rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        tensors: dict[str, Any] = {}
        told = encode(rest, SECTION, tensors)
        state = {
            "model": checkpoint.get("state_dict", {}),
            SECTION: {place.removeprefix(f"{SECTION}/"): tensor for place, tensor in tensors.items()},
        }
        world = world_here()
        provenance = self._provenance.setdefault(run, Provenance({}, world))
        body = {SECTION: told, "environment": environment(world), "provenance": provenance.to_dict()}
        metrics = dict((storage_options or {}).get("metrics", {}))
        with Checkpointer(self.store, run, retention=self.retention) as checkpointer:
            checkpointer.save(
                int(checkpoint.get("global_step", 0)), {key: one for key, one in state.items() if one}, body, metrics
            )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """What was saved, on the CPU. Raises RefMissing, BadInput (not of Lightning), FormatDamaged."""
        spec = _run_of(path)
        if spec is None:
            return dict(self.other.load_checkpoint(path, map_location, weights_only))
        self.store.refresh()
        run, _, label = checkpoint_spec(self.store, spec).partition("@")
        found = open_checkpoint(self.store, run, label)
        if SECTION not in found.manifest:
            raise BadInput(f"{found.whose} was not saved by Lightning; open it with trainers.checkpoint.load")
        tree = decode(found.manifest[SECTION], found.tensor, found.whose)
        if not isinstance(tree, dict):
            raise FormatDamaged(f"{found.whose} is damaged: {tree!r:.100}")
        weights = {
            place.removeprefix("model/"): found.tensor(place) for place in found.paths if place.startswith("model/")
        }
        return {**tree, "state_dict": weights}

    def remove_checkpoint(self, path: Any) -> None:
        """Let go of its name; `lepton gc` frees its space."""
        spec = _run_of(path)
        if spec is None:
            self.other.remove_checkpoint(path)
            return
        run, _, label = checkpoint_spec(self.store, spec).partition("@")
        if any(ref.branch == label for ref in list_refs(self.store, "checkpoint", run)):
            delete_ref(self.store, "checkpoint", run, label)

    def teardown(self) -> None:
        """Nothing of its own."""
        self.other.teardown()


class StoreCheckpoint(CheckpointCallback):  # type: ignore[misc, unused-ignore]
    """Saves every so many optimizer steps, and (by default each) epoch; keeps what `retention` says, all without one."""

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = 1,
        retention: Retention | None = None,
    ) -> None:
        super().__init__()
        self.store, self.run = store, run
        self.every_n_steps, self.every_n_epochs, self.retention = every_n_steps, every_n_epochs, retention
        self._saved = -1  # step of the last one
        self._ranks: Ranks | None = None
        self._generators: list[Mapping[str, Tensor]] | None = None  # to be set before the next batch

    @property
    def ckpt_path(self) -> str | None:
        """For `trainer.fit`: the newest checkpoint of the run; None when there is none yet."""
        return f"{SCHEME}{self.run}" if exists(self.store, self.run) else None

    @property
    def state_key(self) -> str:
        """Under which Lightning keeps this callback's state."""
        return f"StoreCheckpoint({self.run})"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the plugin in place, before Lightning looks for a checkpoint to resume from."""
        here = trainer.strategy.checkpoint_io
        if not isinstance(here, StoreCheckpointIO):
            trainer.strategy.checkpoint_io = StoreCheckpointIO(self.store, self.retention, here)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The generators of a resumed run, as late as that: what prepares the first batch draws from them, too."""
        states, self._generators = self._generators, None
        if states is not None and trainer.global_rank < len(states):
            set_generators(states[trainer.global_rank], trainer.strategy.root_device, f"rank {trainer.global_rank}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, when it is time."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save, when it is time, and the epoch is over: it is called, too, where `max_steps` ends one early."""
        over = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if over and self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._saved = -1  # of this very step there may be one from before the epoch's end, which this one replaces
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The generators of all ranks; a collective, as Lightning's saving is."""
        world = world_here()
        if self._ranks is None:
            self._ranks = Ranks(world.rank, world.size)
        mine = {name: state.numpy().tobytes().hex() for name, state in generators(world.device).items()}
        told = self._ranks.gather(canonical_json(mine))
        return {"generators": [_states(parse_json(one, f"rank {rank}")) for rank, one in enumerate(told)]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the first batch."""
        self._generators = list(state_dict["generators"])

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the group of the ranks."""
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None

    def _save(self, trainer: Any) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.global_step == self._saved:
            return
        self._saved = trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_number(value)}
        trainer.save_checkpoint(f"{SCHEME}{self.run}", False, storage_options={"metrics": metrics})


def _run_of(path: Any) -> str | None:
    text = str(path)
    return text.removeprefix(SCHEME) if text.startswith(SCHEME) else None


def _states(told: Any) -> dict[str, Tensor]:
    return {name: torch.frombuffer(bytearray.fromhex(value), dtype=torch.uint8) for name, value in told.items()}


def _is_number(value: Any) -> bool:
    number = float(value) if not isinstance(value, Tensor) or value.numel() == 1 else float("nan")
    return number == number and abs(number) != float("inf")
