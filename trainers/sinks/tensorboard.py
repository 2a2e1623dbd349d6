"""Curves as TensorBoard's event files: `tensorboard --logdir DIR` shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardSink:
    """Writes under `folder`/<run>. A resumed run goes on in a file of its own, and TensorBoard drops what it repeats."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    @property
    def name(self) -> str:
        """What warnings call it."""
        return f"tensorboard:{self._folder}"

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        """As Sink."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder / run), purge_step=step + 1 if step else None)
        # An indented block is code to Markdown.
        text = "\n".join("    " + line for line in json.dumps(facts, indent=2).splitlines())
        self._writer.add_text("run", text, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As Sink."""
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, status: str) -> None:
        """As Sink."""
        if self._writer is not None:
            self._writer.close()


def open_place(place: str) -> TensorBoardSink:
    """`place` is a directory, which need not exist."""
    return TensorBoardSink(Path(place).expanduser())
