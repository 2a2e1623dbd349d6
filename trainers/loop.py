"""The training loop, read top-down: fit -> one epoch -> one step.

What must hold, and where:

    resume      a run that stopped at any step and goes on computes what it would have computed (at equal world size on
                the CPU: the same bits). State is saved between steps, never inside one; `_save` and `_restore` mirror
                each other. A run that is asked to stop saves at once, and evaluates what is due when it goes on.
    a step      trainers.step: weighting, agreement of the ranks, steps that are left out.
    reporting   rank 0 alone logs, saves and calls callbacks, all through its Reporter. Nothing here prints.
    time        all of it is booked on a phase (trainers.clock): what follows a lap is told by the next one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn

from leptonstore.dataset import Dataset
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, Stopped
from leptonstore.format.framed import canonical_json
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers import failures, parallel, provenance, setup, wrap
from trainers.allocator import freed_memory_kept
from trainers.clock import StepClock
from trainers.config import TrainConfig, identity, last_bits_warnings, to_dict
from trainers.early_stop import EarlyStop
from trainers.evaluate import evaluate_loader
from trainers.evaluation import Evaluation
from trainers.failures import BadStep
from trainers.optimizer import build_optimizer
from trainers.parallel import World
from trainers.profiling import Profile
from trainers.progress import EVALUATIONS_MAX, Progress, finite
from trainers.provenance import Provenance
from trainers.reporting import Reporter
from trainers.result import CheckpointEvent, EpochEvent, EvaluateEvent, StepEvent, TrainResult
from trainers.schedule import build_schedule
from trainers.sinks import Sink, open_sink
from trainers.step import StepOutcome, TrainStep
from trainers.stop import StopRequest
from trainers.subnormal import EVERY_STEPS, flush_subnormals
from trainers.tasks import split_dataset, task_of
from trainers.usage import Moved, read_since, usage_of


class Trainer:
    """Trains a model on a dataset version, with checkpoints in the store.

    config:     what to compute (trainers.config); trainers.recipe has defaults that suit a size.
    store:      where checkpoints go.
    dataset:    the training rows when `validation` is given; else a dataset to be split by `config.data`.
    run:        name of the run; by default it follows from the dataset and the configuration.
    metrics:    path of the JSONL log (trainers.metrics); None: its default place.
    log:        where curves go too: sinks, or "tensorboard:DIR" and the like (trainers.sinks).
    profile:    a directory: profile some steps and write there what took their time (trainers.profiling).
    on_step, on_epoch, on_evaluate, on_checkpoint: functions that are called on rank 0 after each of these, with what is said in
                trainers.result. They may raise; that ends the run. `stop.request()` ends it after the next step.
    world:      the ranks, if the caller has joined them already; else `fit` joins and leaves.

    After `fit`, `model` is the trained model of the task (on the device of this rank). One thread; not reusable.
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
        log: Iterable[str | Sink] = (),
        profile: str | Path | None = None,
        on_step: Iterable[Callable[[StepEvent], None]] = (),
        on_epoch: Iterable[Callable[[EpochEvent], None]] = (),
        on_evaluate: Iterable[Callable[[EvaluateEvent], None]] = (),
        on_checkpoint: Iterable[Callable[[CheckpointEvent], None]] = (),
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
        self.data = {"training": setup.described(train), "validation": setup.described(validation)}
        self.run = run or self._default_run()
        self.stop = StopRequest()
        self.progress = Progress()
        self.warnings: list[str] = []
        self._told = {
            "on_step": tuple(on_step),
            "on_epoch": tuple(on_epoch),
            "on_evaluate": tuple(on_evaluate),
            "on_checkpoint": tuple(on_checkpoint),
        }
        self._early_stop = EarlyStop(config.early_stop) if config.early_stop else None
        self._metrics, self._profile = metrics, profile
        self._sinks = [open_sink(sink) if isinstance(sink, str) else sink for sink in log]
        self._given_world = world
        self._evaluation: Evaluation | None = None
        # Where the run stood at its last checkpoint, and its commit ("" while it is being written).
        self._saved: tuple[Any, str] = ((), "")
        self._trained = 0  # rows, by this process

    def fit(
        self,
        resume: bool | Literal["auto"] = False,
        max_steps: int | None = None,
        fallback: bool = False,
        replace: bool = True,
    ) -> TrainResult:
        """Train until the epochs are done; with `resume`, from the newest checkpoint of the run.

        resume: "auto" starts when there is no checkpoint yet. max_steps: save and return once this many steps of the run are done.
        fallback: resume from the newest checkpoint that is whole, with a warning about each that is not; all of it is read first.
        replace: without `resume`, the same training may begin anew and put its checkpoints in the place of those that are there, which
        go as retention says; False refuses that.
        Raises Stopped after SIGINT or SIGTERM (the step is finished and saved), RefMissing (nothing to resume),
        BadInput (a checkpoint of another training, or of this one and it shall stay; out of memory; torch.compile failed), LossNotFinite,
        RankLost.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(setup.threads(self.config.threads))
            stack.enter_context(freed_memory_kept())
            stack.enter_context(self.stop.listening())
            self._world = self._given_world or stack.enter_context(self._join())
            stack.callback(self._release)
            self._clock, self._stored, self._read = StepClock(), self.store.new_bytes, self.store.bytes_read
            self._checkpointer = stack.enter_context(
                checkpoints.checkpointer_of(self.store, self.run, self._world, self.config.checkpoint)
            )
            if resume == "auto":
                resume = self._world.agreed(self._world.is_main and checkpoints.exists(self.store, self.run)) > 0
            self._prepare(resume, fallback, replace)
            self._reporter = stack.enter_context(self._open_reporter(resume))
            self._begin(resume)
            while self.progress.epoch < self.config.epochs and not self._stopped_early:
                if not self._train_epoch(max_steps):
                    return self._result(finished=False)
                if not self._stopped_early:
                    self._end_epoch()
            if self._evaluation is None:  # resumed after the last step
                self._evaluation = self._evaluated()
                self._clock.lap("evaluation")
            return self._result(finished=True)

    # -- set-up ------------------------------------------------------------------------------------------------

    def _prepare(self, resume: bool, fallback: bool, replace: bool) -> None:
        """Model, optimizer, loaders; then the state of the checkpoint, if there is one to resume from."""
        config, task, world = self.config, self.task, self._world
        self._loader = task.loader(self.train_rows, config.data, config.seed, world, train=True)
        self._loader.warm()  # the arena is decoded while the model is built
        self.model, self._origin = setup.build_model(config, task, self.store, world, resume)
        setup.seed_generators(config.seed, world.data_rank)
        self._wrapped = wrap.wrap(self.model, world, config.parallel.kind, config.precision)
        wrap.settle(self._wrapped, task.example, world)
        self._optimizer = build_optimizer(config.optimizer, self.model)
        self._validation_loader = task.loader(self.validation_rows, config.data, config.seed, world, train=False)
        self._samples: int = len(self._loader.dataset)  # rows, or windows of them
        self._steps_per_epoch = -(-self._samples // config.data.global_batch_size)
        self._steps = self._steps_per_epoch * config.epochs
        self._step = TrainStep(self._wrapped, task, self._optimizer, config, world, self._clock)
        self._factor = build_schedule(config.schedule, self._steps)
        self._provenance = Provenance(to_dict(config), world, config.not_reproducible)
        if resume:
            self._restore(self._newest(fallback))
        elif checkpoints.exists(self.store, self.run):
            # The same training again is deterministic and may replace itself; another one must not.
            earlier = checkpoints.load(self.store, self.run)
            checkpoints.require_same_run(earlier, config, task, self.data)
            if not replace:  # it may stop long before the step of these, which retention would have removed by then
                raise BadInput(
                    f"run {self.run!r} has checkpoints already, the newest of step {earlier.step:,}: go on with --resume or --auto-resume, "
                    f"take another --run-name, or remove them first (lepton checkpoint rm {self.run})"
                )

    def _join(self) -> contextlib.AbstractContextManager[World]:
        return parallel.joined(self.config.device, self.config.parallel.mesh)

    def _newest(self, fallback: bool) -> checkpoints.Checkpoint:
        """The newest checkpoint that rank 0 sees, on every rank."""
        found = checkpoints.load(self.store, self.run, fallback=fallback)
        step = self._world.agreed(found.manifest["step"])
        return found if found.manifest["step"] == step else checkpoints.load(self.store, self.run, step)

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
        # By other ranks, each has generators of its own anew: those of tensor ranks that see equal batches must be equal.
        same = saved.manifest["environment"].get("world_size") == self._world.size
        same = same and saved.config.parallel.mesh == self.config.parallel.mesh
        if not (same and checkpoints.restore_rng(saved, self._world.rank, self._world.device)):
            setup.seed_generators(self.config.seed + saved.manifest["step"], self._world.data_rank)
        self.warnings += last_bits_warnings(saved.config, self.config)
        body = saved.manifest
        self.progress = Progress.from_manifest(body)
        self._origin = dict(body.get("init", {}))
        self._step.load_state_dict(body.get("scaler", {}))
        if self._early_stop is not None:
            self._early_stop.load_state_dict(body.get("early_stop", {}))
        self._loader.load_state_dict(body["loader"])
        self._provenance.resume(body)
        self._saved = (self.progress.place, saved.commit)

    def _open_reporter(self, append: bool) -> Reporter:
        """On rank 0; what the others have says nothing."""
        if not self._world.is_main:
            return Reporter()
        profile = None if self._profile is None else Profile(self._profile, self._world.device.type)
        options = {**self._told, "profile": profile}
        return Reporter.of_run(self.store, self.run, metrics=self._metrics, sinks=self._sinks, append=append, **options)

    def _begin(self, resume: bool) -> None:
        progress, resumed = self.progress, None
        if resume:
            resumed = {"step": progress.step, "epoch": progress.epoch, "warnings": self.warnings}
        else:
            self._loader.set_epoch(0)
        self._reporter.begin(self.run, to_dict(self.config), self.data, provenance.environment(self._world), resumed)
        self._clock.lap("setup")

    # -- training ----------------------------------------------------------------------------------------------

    def _train_epoch(self, max_steps: int | None) -> bool:
        """The remaining steps of the epoch. False when `max_steps` was reached before its end."""
        progress, clock, steps = self.progress, self._clock, self._steps_per_epoch
        if progress.step_in_epoch < steps:
            self._evaluate_if_due()  # of a run that was stopped before it could
            batches = iter(self._loader)
        while progress.step_in_epoch < steps and not self._stopped_early:
            if max_steps is not None and progress.step >= max_steps:
                self._save()
                return False
            batch = next(batches)
            clock.lap("data_wait")
            rows = self._rows_of_step()
            if progress.step % EVERY_STEPS == 0:
                flush_subnormals(self._optimizer)
            try:
                outcome = self._step(batch, rows, self._factor(progress.step), self._asked)
            except Exception as error:
                self._raise_told(error, self._where())
            if not outcome.taken:
                self._leave_out(outcome)
            self._after_step(outcome, rows)
            clock.lap("other")  # the log and the callbacks must not pass for waiting
        return True

    def _raise_told(self, error: Exception, where: str, training: bool = True) -> NoReturn:
        """Raise what was raised, as a line that can be acted on where it is of the known kinds."""
        failure = failures.told(error, self.config, where, training)
        if failure is None:
            raise error
        raise failure from error

    def _leave_out(self, outcome: StepOutcome) -> None:
        """Record a step that changed nothing, by the rows of its batch. Raises LossNotFinite when the run shall not go on."""
        progress = self.progress
        rows = self._rows_at(progress.epoch, progress.step_in_epoch)
        bad = BadStep(self._where(), outcome.loss, self._row_name, rows, self.train_rows.name)
        if self.config.on_bad_loss == "stop":
            raise bad.error(progress.step + 1)
        why = progress.leave_out(outcome.loss, rows)
        if why:
            raise bad.error(progress.step + 1, f"; {why}")
        self._reporter.skipped(progress.skipped[-1])

    def _after_step(self, outcome: StepOutcome, rows: int) -> None:
        """Count, evaluate, save, log and call back; raises Stopped when a rank was asked to stop."""
        progress, config = self.progress, self.config
        progress.step += 1
        progress.step_in_epoch += 1
        if outcome.taken:
            progress.loss_sum += outcome.loss * outcome.counted
            progress.count += outcome.counted
        self._trained += rows
        self._reporter.step(self._step_event(outcome, rows))  # first: the log has each step that a checkpoint has
        self._clock.lap("other")
        stop, every = outcome.stop, config.checkpoint.every_steps
        if not stop and progress.step_in_epoch < self._steps_per_epoch:  # at the end of an epoch, `_end_epoch` does it
            stop = self._evaluate_if_due() is not None and self._stop_asked()
            if self._stopped_early or (every is not None and progress.step % every == 0):
                self._save()
        if stop:
            self._save()
            self._stop_now()

    def _step_event(self, outcome: StepOutcome, rows: int) -> StepEvent:
        return StepEvent(
            self.progress.step,
            self._steps,
            self.progress.epoch + 1,
            self.config.epochs,
            outcome.loss,
            self._step.lr,
            rows,
            self._clock.step(),
            outcome.taken,
            outcome.norm,
        )

    def _end_epoch(self) -> None:
        """Evaluate, record, save; then stop if that was asked for meanwhile."""
        progress, config = self.progress, self.config
        metrics = self._evaluate_if_due() or {}
        stop = bool(metrics) and self._stop_asked()
        record: dict[str, Any] = {"epoch": progress.epoch + 1, "train_loss": progress.train_loss, **metrics}
        progress.history.append(finite(record))
        progress.epoch += 1
        progress.step_in_epoch, progress.loss_sum, progress.count = 0, 0.0, 0
        self._loader.set_epoch(progress.epoch)
        evaluation = self._evaluation if metrics else None
        event = EpochEvent(progress.epoch, config.epochs, record["train_loss"], evaluation)
        self._reporter.epoch(event, record, self._clock.between())
        self._save()
        if stop and progress.epoch < config.epochs:
            self._stop_now()

    # -- evaluation --------------------------------------------------------------------------------------------

    def _evaluate_if_due(self) -> dict[str, float] | None:
        """The metrics after the last step, {"val_loss": …}, when they are asked for there and not known yet. Collective."""
        progress, config = self.progress, self.config
        epoch, ended = progress.epoch + 1, progress.step_in_epoch == self._steps_per_epoch
        if not progress.evaluation_due(config, ended):
            return None
        self._evaluation = self._evaluated()
        progress.evaluated, took_s = progress.step, self._clock.lap("evaluation")
        metrics = {f"val_{name}": value for name, value in self._evaluation.metrics().items()}
        best = self._early_stop.see(metrics) if self._early_stop else None
        if not ended:
            progress.evaluations.append(finite({"step": progress.step, **metrics}))
            del progress.evaluations[:-EVALUATIONS_MAX]
        self._reporter.evaluation(EvaluateEvent(progress.step, epoch, metrics, self._evaluation, best), took_s)
        return metrics

    def _evaluated(self) -> Evaluation:
        self._clock.lap("other")
        wrap.share_buffers(self.model, self._world)
        try:
            with wrap.in_gathered_precision(self.model, self._world, self.config.precision):
                found = evaluate_loader(self.model, self._validation_loader, self.task, self._world)
        except Exception as error:
            self._raise_told(
                error, f"the evaluation after step {self.progress.step} of run {self.run!r}", training=False
            )
        wrap.reshard(self.model)
        return found

    def _asked(self) -> bool:
        return self.stop.requested

    def _stop_asked(self) -> bool:
        """Whether a rank was asked to stop during an evaluation. Collective."""
        return self._world.sum([], votes=[self.stop.requested])[0] > 0

    @property
    def _stopped_early(self) -> bool:
        return self._early_stop is not None and self._early_stop.due

    # -- state -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Save the state between two steps. Collective; returns when it is durable, or may change (asynchronous)."""
        progress = self.progress
        if self._saved[0] == self.progress.place:
            return
        self._clock.lap("other")
        self._reporter.flush()  # whoever resumes from this checkpoint finds every step up to it in the log
        wrap.share_buffers(self.model, self._world)
        receipt = self._provenance.receipt(self._loader)
        manifest: dict[str, Any] = {}
        if self._world.is_main:
            manifest = {
                **progress.to_manifest(),
                "config": to_dict(self.config),
                "task": self.task.to_dict(),
                "data": self.data,
                "init": self._origin,
                "loader": self._loader.state_dict(),
                "scaler": self._step.state_dict(),
                "early_stop": self._early_stop.state_dict() if self._early_stop else {},
                "environment": provenance.environment(self._world),
                "provenance": self._provenance.to_dict(),
                "receipt": receipt,
            }
        state = checkpoints.state_of(self.model, self._optimizer, self._world.rank, self._world.device)
        self._settle_save()  # tell of the last one, which this one waits for
        self._checkpointer.save(progress.step, state, manifest, self.progress.metrics_here())
        self._saved = (self.progress.place, "")
        if not self.config.checkpoint.asynchronous:
            self._settle_save()
        self._clock.lap("checkpoint")

    def _settle_save(self) -> None:
        """Wait until the last checkpoint is durable, and tell of it. Raises what a save in the background met, on every rank."""
        saved = self._checkpointer.wait()
        if saved is None or self._saved[1]:
            return
        step, commit = saved
        self._saved = (self._saved[0], commit)
        self._reporter.checkpoint(CheckpointEvent(self.run, checkpoints.branch_of(step), step, commit))

    def _stop_now(self) -> None:
        self._settle_save()
        progress = self.progress
        raise Stopped(
            f"stopped after step {progress.step} of {self._steps} (epoch {progress.epoch + 1}); checkpoint "
            f"{checkpoints.branch_of(progress.step)} of run {self.run!r} is saved: resume with --run-name {self.run} --resume"
        )

    def _result(self, finished: bool) -> TrainResult:
        self._settle_save()
        rest = self._clock.between()  # since the last line of the log that has times: the last checkpoint
        time, evaluation, stats = self._clock.total, self._evaluation, self._loader.stats
        moved = Moved(stats["bytes"], self.store.new_bytes - self._stored, read_since(self.store, self._read))
        usage = usage_of(self._world, self._wrapped, time, self._clock.steps, moved)
        self._reporter.end(finished, **time.rounded(), rest=rest.rounded(), usage=usage.to_dict())
        return TrainResult(
            run=self.run,
            val_accuracy=evaluation.metrics().get("accuracy", math.nan) if evaluation else math.nan,
            val_loss=evaluation.loss if evaluation else math.nan,
            us_per_sample=time.training * 1e6 / self._trained if self._trained else 0.0,
            data_wait_fraction=time.data_wait_fraction,
            steps=self.progress.step,
            epochs=self.progress.epoch,
            train_samples=self._samples,
            val_samples=len(self.validation_rows),
            checkpoint=self._saved[1],
            finished=finished,
            history=self.progress.history,
            time=time,
            warnings=self.warnings,
            usage=usage,
            log=str(self._reporter.log_path or ""),
            profile=self._reporter.profiled(stats.to_dict(), self._facts()),
            stopped_early=self._stopped_early,
            skipped=self.progress.skipped,
            not_reproducible=self.config.not_reproducible,
        )

    # -- small facts -------------------------------------------------------------------------------------------

    def _rows_of_step(self) -> int:
        """Rows of the global batch of the step at hand: the last one of an epoch may be smaller."""
        size = self.config.data.global_batch_size
        return min(size, self._samples - self.progress.step_in_epoch * size)

    def _facts(self) -> dict[str, Any]:
        """What the advice of a profile goes by."""
        config = self.config
        batch = {"dataset": self.train_rows.name, "rows": config.data.global_batch_size}
        return {
            **batch,
            "precision": config.precision,
            "compile": config.compile,
            "asynchronous": config.checkpoint.asynchronous,
        }

    def _where(self) -> str:
        """The step at hand, for messages."""
        return f"step {self.progress.step + 1} of {self._steps} of run {self.run!r} (epoch {self.progress.epoch + 1})"

    @property
    def _row_name(self) -> str:
        return "rows" if self._loader.dataset is self.train_rows else "windows"

    def _rows_at(self, epoch: int, step: int) -> list[int]:
        """Row numbers of a global batch in the dataset, whose training rows are a selection; windows stay what they are."""
        rows = self._loader.rows_at(epoch, step, all_ranks=True)
        selection = self.train_rows.selection
        return [int(row) for row in (rows if selection is None or self._row_name != "rows" else selection[rows])]

    def _default_run(self) -> str:
        """The same data and configuration give the same name, so that doing it again replaces it and nothing else."""
        told = canonical_json({"config": identity(self.config), "data": self.data})
        return f"{self.train_rows.name}-{digest_of(told).hex()[:8]}"
