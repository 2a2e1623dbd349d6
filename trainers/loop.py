"""The training loop, read top-down: fit -> one epoch -> one step.

What must hold, and where:

    resume      a run that stopped at any step and goes on computes what it would have computed (at equal world size on
                the CPU: the same bits). State is saved between steps, never inside one; `_save` and `_restore` mirror
                each other.
    step        what one step does, and how ranks agree: trainers.step.
    reporting   rank 0 alone logs, saves and calls callbacks. Nothing here prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leptonstore.dataset import Dataset
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, Stopped
from leptonstore.format.framed import canonical_json
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers import parallel, provenance, wrap
from trainers.config import ModelConfig, TrainConfig, identity, to_dict
from trainers.evaluate import evaluate_loader
from trainers.evaluation import Evaluation
from trainers.metrics import MetricLog, StepClock
from trainers.optimizer import build_optimizer
from trainers.parallel import World
from trainers.pretrained import prepare_weights
from trainers.provenance import Provenance
from trainers.result import EpochEvent, StepEvent, TrainResult
from trainers.schedule import build_schedule
from trainers.step import TrainStep, build_loss
from trainers.stop import StopRequest
from trainers.tasks import split_dataset, task_of


@dataclass
class Progress:
    """Where a run is, between two steps. `epoch` and `step_in_epoch` count finished ones, so they name the next."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0  # over the rows of the unfinished epoch
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a model on a dataset version, with checkpoints in the store.

    config:     what to compute (trainers.config); trainers.recipe has defaults that suit a size.
    store:      where checkpoints go.
    dataset:    the training rows when `validation` is given; else a dataset to be split by `config.data`.
    run:        name of the run; by default it follows from the dataset and the configuration.
    metrics:    path of a JSONL log (trainers.metrics), or None.
    on_step, on_epoch: functions called on rank 0 after every step and epoch. They may raise; that ends the run.
    world:      the ranks, if the caller has joined them already; else `fit` joins and leaves.

    After `fit`, `model` is the trained ImageClassifier (on the device of this rank). One thread; not reusable.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: Store,
        dataset: Dataset,
        validation: Dataset | None = None,
        *,
        run: str | None = None,
        metrics: str | Path | None = None,
        on_step: Iterable[Callable[[StepEvent], None]] = (),
        on_epoch: Iterable[Callable[[EpochEvent], None]] = (),
        world: World | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self.task = task_of(dataset, config.data)
        train = dataset
        if validation is None:
            train, validation = split_dataset(dataset, config.data)
        if not len(train) or not len(validation):
            raise BadInput(f"{dataset.name} has {len(train)} training and {len(validation)} validation rows")
        self.train_rows, self.validation_rows = train, validation
        self.data = {"training": _describe(train), "validation": _describe(validation)}
        self.run = run or self._default_run()
        self.stop = StopRequest()
        self.progress = Progress()
        self.warnings: list[str] = []
        self._on_step, self._on_epoch = tuple(on_step), tuple(on_epoch)
        self._metrics = metrics
        self._given_world = world
        self._evaluation: Evaluation | None = None
        self._stopping = False
        self._saved: tuple[int, str] = (-1, "")  # step and commit of the last checkpoint
        self._trained = 0  # rows, by this process

    def fit(self, resume: bool = False, max_steps: int | None = None) -> TrainResult:
        """Train until the epochs are done; with `resume`, from the newest checkpoint of the run.

        max_steps: save and return once this many steps of the run are done.
        Raises Stopped after SIGINT or SIGTERM (the step is finished and saved), RefMissing (nothing to resume),
        BadInput (a checkpoint of another training; a loss that is not finite).
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(_threads(self.config.threads))
            stack.enter_context(self.stop.listening())
            self._world = self._given_world or stack.enter_context(parallel.joined(self.config.device))
            stack.callback(self._release)
            self._prepare(resume)
            log_path = self._metrics if self._world.is_main else None
            self._log = MetricLog(log_path, append=resume)
            stack.callback(self._log.close)
            self._begin(resume)
            while self.progress.epoch < self.config.epochs:
                if not self._train_epoch(max_steps):
                    return self._result(finished=False)
                self._end_epoch()
            if self._evaluation is None:  # resumed after the last step, or the last epoch was not evaluated
                self._evaluation = self._evaluate()
            return self._result(finished=True)

    # -- set-up ------------------------------------------------------------------------------------------------

    def _prepare(self, resume: bool) -> None:
        """Model, optimizer, loaders; then the state of the checkpoint, if there is one to resume from."""
        config, task, world = self.config, self.task, self._world
        self._loader = task.loader(self.train_rows, config.data, config.seed, world, train=True)
        self._loader.warm()  # the arena is decoded while the model is built
        self.model = task.build(_made(config.model), config.seed)
        initialised = prepare_weights(self.model, config.model, self.store, fresh=not resume)
        self._init = initialised.to_dict() if initialised else None
        self.model.to(world.device).train()
        torch.manual_seed(_rank_seed(config.seed, world.data_rank))
        self._wrapped = wrap.wrap(self.model, world)
        wrap.settle(self._wrapped, task.example, world)
        self._optimizer = build_optimizer(config.optimizer, self.model)
        self._validation_loader = task.loader(self.validation_rows, config.data, config.seed, world, train=False)
        self._rows = len(self._loader.dataset)  # of an epoch: windows, where a text is cut into them
        self._steps_per_epoch = -(-self._rows // config.data.global_batch_size)
        self._steps = self._steps_per_epoch * config.epochs
        self._clock = StepClock()
        loss = build_loss(config.loss)
        self._step = TrainStep(self._wrapped, task, loss, self._optimizer, world, self._clock)
        self._factor = build_schedule(config.schedule, self._steps)
        self._provenance = Provenance(to_dict(config), world)
        if resume:
            self._restore(checkpoints.load(self.store, self.run))
        elif checkpoints.exists(self.store, self.run):
            # The same training again is deterministic and may replace itself; another one must not.
            earlier = checkpoints.load(self.store, self.run)
            checkpoints.require_same_run(earlier, config, task, self.data)

    def _release(self) -> None:
        """Let go of DDP, which holds on to the process group, before the group is left."""
        vars(self).pop("_wrapped", None)
        vars(self).pop("_step", None)

    def _restore(self, saved: checkpoints.Checkpoint) -> None:
        """The mirror image of `_save`."""
        checkpoints.require_same_run(saved, self.config, self.task, self.data)
        checkpoints.restore_model(saved, self.model)
        checkpoints.restore_optimizer(saved, self.model, self._optimizer)
        self.warnings = checkpoints.environment_warnings(saved, self._world)
        self._init = saved.manifest.get("init")
        if not checkpoints.restore_rng(saved, self._world.rank, self._world.device):
            torch.manual_seed(_rank_seed(self.config.seed + saved.manifest["step"], self._world.data_rank))
        body = saved.manifest
        self.progress = Progress(
            step=body["step"],
            epoch=body["epoch"],
            step_in_epoch=body["step_in_epoch"],
            loss_sum=float(body["progress"]["loss_sum"]),
            history=list(body["history"]),
        )
        self._loader.load_state_dict(body["loader"])
        self._provenance.resume(body)
        self._saved = (self.progress.step, saved.commit)

    def _begin(self, resume: bool) -> None:
        environment = provenance.environment(self._world)
        told = {"config": to_dict(self.config), "task": self.task.describe(), "data": self.data, "init": self._init}
        self._log.write("config", run=self.run, **told, environment=environment)
        if resume:
            self._log.write("resume", step=self.progress.step, epoch=self.progress.epoch, warnings=self.warnings)
        else:
            self._loader.set_epoch(0)

    # -- training ----------------------------------------------------------------------------------------------

    def _train_epoch(self, max_steps: int | None) -> bool:
        """The remaining steps of the epoch. False when `max_steps` was reached before its end."""
        self._clock.restart()
        batches = iter(self._loader)
        while self.progress.step_in_epoch < self._steps_per_epoch:
            if max_steps is not None and self.progress.step >= max_steps:
                self._save()
                return False
            batch = next(batches)
            self._clock.lap("data_wait")
            loss, stop = self._step(batch, self._rows_of_step(), self._lr(), self.stop.requested)
            self._require_finite(loss)
            self._after_step(loss, stop)
            self._clock.lap("other")  # the log and the callbacks must not pass for waiting
        return True

    def _require_finite(self, loss: float) -> None:
        """Raises BadInput, naming the rows of the batch at hand, when the loss is not finite. Every rank has the same loss."""
        if not math.isfinite(loss):
            first = self.progress.step_in_epoch * self.config.data.global_batch_size
            raise BadInput(
                f"the loss is {loss} at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}, positions "
                f"{first} to {first + self._rows_of_step() - 1} of its order): lower optimizer.lr, or look at these rows"
            )

    def _after_step(self, loss: float, stop: bool) -> None:
        """Count, save, log and call back; raises Stopped when a rank was asked to stop."""
        progress, rows, lr = self.progress, self._rows_of_step(), self._lr()
        progress.step += 1
        progress.step_in_epoch += 1
        progress.loss_sum += loss * rows
        self._trained += rows
        every, epoch_done = self.config.checkpoint.every_steps, progress.step_in_epoch == self._steps_per_epoch
        if not epoch_done and (stop or (every is not None and progress.step % every == 0)):
            self._clock.lap("other")
            self._save()
            self._clock.lap("checkpoint")
        took = self._clock.step()
        if self._world.is_main:
            epoch, epochs = progress.epoch + 1, self.config.epochs
            self._log.write("step", step=progress.step, epoch=epoch, loss=loss, lr=lr, rows=rows, **took.seconds())
            event = StepEvent(progress.step, self._steps, epoch, epochs, loss, lr, rows, took)
            for callback in self._on_step:
                callback(event)
        if stop and not epoch_done:
            self._stop_now()
        self._stopping = stop

    def _end_epoch(self) -> None:
        """Evaluate, record, save; then stop if that was asked for during the last step."""
        progress, config = self.progress, self.config
        progress.epoch += 1
        last = progress.epoch == config.epochs
        due = last or progress.epoch % config.evaluate_every_epochs == 0
        self._evaluation = self._evaluate() if due else None
        train_loss = progress.loss_sum / self._rows
        record: dict[str, Any] = {"epoch": progress.epoch, "train_loss": train_loss}
        if self._evaluation is not None:
            record |= {f"val_{name}": value for name, value in self._evaluation.metrics().items()}
        progress.history.append(record)
        progress.step_in_epoch, progress.loss_sum = 0, 0.0
        self._loader.set_epoch(progress.epoch)
        self._clock.restart()
        self._save()
        self._clock.lap("checkpoint")
        self._clock.step()
        if self._world.is_main:
            self._log.write("epoch", step=progress.step, **record)
            self._log.flush()
            for callback in self._on_epoch:
                callback(EpochEvent(progress.epoch, config.epochs, train_loss, self._evaluation))
        if self._stopping and not last:
            self._stop_now()

    def _evaluate(self) -> Evaluation:
        wrap.share_buffers(self.model, self._world)
        return evaluate_loader(self.model, self._validation_loader, self.task, self._world)

    # -- state -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Publish a checkpoint of the state between two steps. Collective; returns when it is durable."""
        progress = self.progress
        if self._saved[0] == progress.step:
            return
        wrap.share_buffers(self.model, self._world)
        ranks = self._gather_rng()
        receipt = self._provenance.receipt(self._loader)
        if self._world.is_main:
            manifest = {
                "run": self.run,
                "step": progress.step,
                "epoch": progress.epoch,
                "step_in_epoch": progress.step_in_epoch,
                "config": to_dict(self.config),
                "not_reproducible": self.config.not_reproducible,
                "task": self.task.to_dict(),
                "data": self.data,
                "loader": self._loader.state_dict(),
                "progress": {"loss_sum": progress.loss_sum},
                "history": progress.history,
                "environment": provenance.environment(self._world),
                "provenance": self._provenance.to_dict(),
                "receipt": receipt,
                **({"init": self._init} if self._init else {}),
            }
            metrics = {key: value for key, value in (progress.history or [{}])[-1].items() if key != "epoch"}
            keep = self.config.checkpoint.keep_last
            commit = checkpoints.save(self.store, self.run, manifest, self.model, self._optimizer, ranks, metrics, keep)
            self._log.write("checkpoint", step=progress.step, commit=commit)
            self._log.flush()
            self._saved = (progress.step, commit)
        else:
            self._saved = (progress.step, "")
        self._world.barrier()

    def _gather_rng(self) -> list[dict[str, Tensor]]:
        mine = checkpoints.rng_state(self._world.device)
        gathered = {device: self._world.gather_bytes(state) for device, state in mine.items()}
        return [{device: states[rank] for device, states in gathered.items()} for rank in range(self._world.size)]

    def _stop_now(self) -> None:
        progress = self.progress
        raise Stopped(
            f"stopped after step {progress.step} of {self._steps} (epoch {progress.epoch + 1}); checkpoint "
            f"{checkpoints.branch_of(progress.step)} of run {self.run!r} is saved: resume with --run-name {self.run} --resume"
        )

    def _result(self, finished: bool) -> TrainResult:
        time, evaluation = self._clock.total, self._evaluation
        self._log.flush()
        seconds = time.wall - time.checkpoint
        return TrainResult(
            run=self.run,
            val_accuracy=evaluation.metrics().get("accuracy", math.nan) if evaluation else math.nan,
            val_loss=evaluation.loss if evaluation else math.nan,
            us_per_sample=seconds * 1e6 / self._trained if self._trained else 0.0,
            data_wait_fraction=time.data_wait_fraction,
            steps=self.progress.step,
            epochs=self.progress.epoch,
            train_samples=self._rows,
            val_samples=len(self.validation_rows),
            checkpoint=self._saved[1],
            finished=finished,
            history=self.progress.history,
            time=time,
            warnings=self.warnings,
        )

    # -- small facts -------------------------------------------------------------------------------------------

    def _rows_of_step(self) -> int:
        """Rows of the global batch of the step at hand: the last one of an epoch may be smaller."""
        size = self.config.data.global_batch_size
        return min(size, self._rows - self.progress.step_in_epoch * size)

    def _lr(self) -> float:
        return self.config.optimizer.lr * self._factor(self.progress.step)

    def _default_run(self) -> str:
        """The same data and configuration give the same name, so that doing it again replaces it and nothing else."""
        told = canonical_json({"config": identity(self.config), "data": self.data})
        return f"{self.train_rows.name}-{digest_of(told).hex()[:8]}"


def _describe(ds: Dataset) -> dict[str, Any]:
    return {"name": ds.name, "commit": ds.commit, "fingerprint": ds.fingerprint, "rows": len(ds)}


def _made(config: ModelConfig) -> ModelConfig:
    """A module that was given in Python, in the form of a factory that gives it."""
    given = config.reference
    return dataclasses.replace(config, reference=lambda *sizes: given) if isinstance(given, nn.Module) else config


def _rank_seed(seed: int, rank: int) -> int:
    """A seed of torch's generators per rank (dropout must differ between ranks); far apart for near seeds."""
    return int.from_bytes(digest_of(f"lepton.rng {seed} {rank}".encode())[:7], "little")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set torch's CPU threads while the context lasts; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)
