"""Checkpointer: saves states of one run, at once or in the background, from any number of ranks, as one commit each.

asynchronous: `save` returns when everything is staged; what follows (saving.py) runs in a thread, over a gloo group of its own. One save
is in flight: the next one waits for it. An error of it is raised by the next `save` or `wait`.

Atomic: the commit is published when every rank's cells are durable, in one log entry. A rank or a host that dies before, a disk that
fills: the run has the checkpoints that it had; what was written is garbage that gc removes. A failure of one rank is an error on all.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from leptonstore.errors import BadInput
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.store import Store
from trainers.checkpoint.leaves import State, flatten
from trainers.checkpoint.put import put_threads
from trainers.checkpoint.retention import Retention
from trainers.checkpoint.saving import Described, RankOf, Ready, Saving


class Checkpointer:
    """Made, used and closed by every rank (each of them a collective), by one thread of it.

    store: each rank's own Store object, all of the same store. run: its name; checkpoints are the refs checkpoint/<run>/step-<9 digits>.
    world: the ranks; None: this process alone, without torch.distributed. retention: applied after each save; None keeps all.
    Closed with the process group that it was made in still there.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        world: RankOf | None = None,
        retention: Retention | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.run, self.asynchronous = run, asynchronous
        self._saving = Saving(store, run, world, retention)
        if asynchronous and not self._saving.background:
            raise BadInput("these ranks cannot save in the background: their messages go the way of the training's own")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last: tuple[int, str] | None = None

    def save(
        self, step: int, state: State, manifest: Mapping[str, Any], metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Save `state` as the checkpoint of `step`. Asynchronous: returns when the state may change; else when it is durable.

        manifest: JSON; kept in the commit's lineage, with "run", "step" and the state's scalars. metrics: beside the commit, in the log:
        JSON, numpy scalars, tensors of one element; numbers that are not finite are left out. Of both, those of rank 0 count.
        Raises BadInput (a state or a metric that cannot be saved), StoreFull, or what the last save in the background met.
        """
        self.wait()
        told: dict[str, Any] = {}

        def describe() -> Described:
            told.update(_plain_metrics(metrics or {}))
            flat = flatten(state)
            canonical_json(dict(manifest))  # says now what cannot be kept
            return flat.leaves, flat.scalars

        ready = self._saving.stage(describe, in_place=not self.asynchronous)
        # A copy: the caller's lists go on growing.
        body = parse_json(
            canonical_json({**manifest, "run": self.run, "step": step, "scalars": ready.scalars}), "manifest"
        )
        if not self.asynchronous:
            self._last = step, self._finish(step, ready, body, told)
            return

        def work() -> None:
            try:
                self._last = step, self._finish(step, ready, body, told)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="lepton-checkpoint")
        self._thread.start()

    def _finish(self, step: int, ready: Ready, manifest: dict[str, Any], metrics: dict[str, Any]) -> str:
        """Everything after staging; the commit (hex), on every rank."""
        saving = self._saving
        # In the background the other cores compute.
        digests = saving.put(ready, 1 if self.asynchronous else put_threads(), flush=False)

        def publish() -> bytes:
            return saving.publish(step, ready.plan, digests, manifest, metrics).encode() if saving.is_main else b""

        commit = saving.together(publish)[0].decode()
        if not saving.is_main:
            saving.store.hand_over()
        return commit

    def wait(self) -> tuple[int, str] | None:
        """(step, commit) of the last save, which is durable now; None before the first. Raises what a save in the background met."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._last

    def close(self) -> None:
        """Wait for what is in flight, and leave the group. Raises what that save met."""
        try:
            self.wait()
        finally:
            self._saving.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # what ended the run says why
            self.close()


def _plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them, without what is not finite: the loss of a model that overflows is no reason to lose the checkpoint.

    Raises BadInput, naming the metric, for what JSON cannot have.
    """
    plain: dict[str, Any] = {}
    for key, value in metrics.items():
        if not isinstance(key, str):
            raise BadInput(f"the metric {key!r} is named by a {type(key).__name__}: name it by text")
        try:
            one = value.item() if hasattr(value, "item") else value  # of numpy scalars and tensors
            if isinstance(one, float) and not math.isfinite(one):
                continue
            plain[key] = parse_json(canonical_json(one), f"metric {key!r}")  # a copy: the caller's lists go on growing
        except (TypeError, ValueError, RuntimeError) as error:  # torch and numpy, of more than one element
            told = " ".join(str(error).split())
            raise BadInput(f"the metric {key!r} cannot be kept, give a number, text or JSON: {told}") from None
    return plain
