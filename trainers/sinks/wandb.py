"""Curves in Weights & Biases. WANDB_MODE=offline writes them to ./wandb, to be sent later by `wandb sync`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from leptonstore.errors import BadInput


class WandbSink:
    """A run of `project` (ENTITY/PROJECT for a team's). Its id is the name of our run, so a resumed run goes on in it."""

    def __init__(self, project: str) -> None:
        self._entity, _, self._project = project.rpartition("/")
        self._run: Any = None

    @property
    def name(self) -> str:
        """What warnings call it."""
        return f"wandb:{self._entity}/{self._project}" if self._entity else f"wandb:{self._project}"

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        """As Sink."""
        import wandb

        self._run = wandb.init(
            project=self._project,
            entity=self._entity or None,
            name=run,
            id=re.sub(r"[^A-Za-z0-9._-]", "-", run)[:128],
            resume="allow" if step else None,
            config=dict(facts),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As Sink."""
        self._run.log(dict(values), step=step)

    def end(self, status: str) -> None:
        """As Sink."""
        if self._run is not None:
            self._run.finish(exit_code=1 if status == "failed" else 0)


def open_place(place: str) -> WandbSink:
    """Raises BadInput when W&B is to be online and has no key: it would ask for one, in the midst of a training."""
    import wandb

    if wandb.setup().settings.mode in ("online", "run", "shared") and not wandb.login(prompt=False, verify=False):
        raise BadInput("Weights & Biases has no API key here: run `wandb login`, or set WANDB_MODE=offline")
    return WandbSink(place)
