"""Where a run comes from: what each of its checkpoints and models says of code, environment, data and order.

In the manifest of a checkpoint:

    "provenance": {"stretches": [{"step": steps done when it began, "code": trainers.revision, "environment": see below}, …],
                   "not_reproducible": [what of the run cannot be written down, …]}
    "receipt":    what all ranks were handed since the run began (loaders.receipt), null for a loader that keeps none

A stretch is what was computed by the same code in the same environment: a run that was resumed where it had been adds none, so its
checkpoints are, digest for digest, those of a run that never stopped. The receipt joins those of all processes of the run; its marks
are left out, which depend on where it was interrupted (a difference is then found to the epoch). The manifest stands in the lineage of
the checkpoint's commit; a model's lineage repeats `source_of` it.

Time, host, author and metrics stand beside the commit, in its log entry: they would make equal trainings different commits.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from loaders.receipt import Receipt
from loaders.receipt_ranks import merged_receipt
from trainers.parallel import World
from trainers.revision import code_revision

STRETCHES_MAX = 1_000  # in one manifest, some 600 bytes each: the first, and the last ones
# Of the environment: what changes no bit of a result that is computed on the CPU, and is said for people.
NOT_DECISIVE = ("python",)


class Provenance:
    """The record of one run as it goes on. Used by the thread that trains.

    config: the configuration as JSON (trainers.config.to_dict). not_reproducible: names of what it leaves out.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        world: World,
        not_reproducible: Iterable[str] = (),
        directory: Path | None = None,
    ) -> None:
        self._config, self._world, self._directory = config, world, directory
        self._not_reproducible = sorted(set(not_reproducible))
        self._stretches: list[dict[str, Any]] = []
        self._step = 0  # of the run, when this process took it over
        self._earlier: Receipt | None = None
        self._begun = False

    def resume(self, manifest: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. A manifest of before there were receipts begins a new one. Raises BadInput, FormatDamaged."""
        told = manifest.get("provenance") or {}
        self._stretches = list(told.get("stretches", ()))
        self._not_reproducible = sorted({*self._not_reproducible, *told.get("not_reproducible", ())})
        self._step = int(manifest["step"])
        self._earlier = Receipt.from_dict(manifest["receipt"]) if manifest.get("receipt") else None

    def to_dict(self) -> dict[str, Any]:
        """ "provenance" of a manifest. The first call finds the code out, which takes some 30 ms."""
        if not self._begun:
            self._begun = True
            here = {
                "code": code_revision(self._config, self._directory),
                "environment": environment(self._world),
            }
            last = self._stretches[-1] if self._stretches else {}
            if {"code": last.get("code"), "environment": last.get("environment")} != here:
                self._stretches.append({"step": self._step, **here})
                self._stretches[1:] = self._stretches[1:][-(STRETCHES_MAX - 1) :]
        return {"stretches": self._stretches, "not_reproducible": self._not_reproducible}

    def receipt(self, loader: Any) -> dict[str, Any] | None:
        """ "receipt" of a manifest: with the notes of all ranks, and what came before when the loader goes on from there. Collective.
        None for a loader without one.

        Raises BadInput, on every rank, when the ranks did not read shares of the same batches.
        """
        if getattr(loader, "receipt", None) is None or not getattr(loader, "receipts", True):
            return None
        here = merged_receipt(loader.receipt())
        earlier = self._earlier
        if earlier is not None and (earlier.head, earlier.steps) == (here.base_head, here.base_steps):
            here = earlier.then(here)
        return without_marks(here).to_dict()


def without_marks(receipt: Receipt) -> Receipt:
    """The same receipt with heads at the ends of epochs alone."""
    return replace(receipt, segments=tuple(replace(segment, marks=()) for segment in receipt.segments))


def environment(world: World) -> dict[str, Any]:
    """What else decides the last bits of a result: versions, threads, instruction set, ranks, device."""
    found = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": world.device.type,
        "machine": platform.machine(),
        "numpy": str(numpy.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "world_size": world.size,
    }
    if world.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(world.device)
    return found


def differences(
    stored: Mapping[str, Any], here: Mapping[str, Any], leave_out: Sequence[str] = NOT_DECISIVE
) -> list[str]:
    """ "threads was 2 and is 1", one for each key of two environments that differs and may change bits."""
    return [
        f"{key} was {stored.get(key)!r} and is {here.get(key)!r}"
        for key in sorted({*stored, *here})
        if key not in leave_out and stored.get(key) != here.get(key)
    ]


def last_stretch(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The code and environment that a checkpoint was saved by; those of before there were stretches have only the environment."""
    stretches = (manifest.get("provenance") or {}).get("stretches") or ()
    if stretches:
        return dict(stretches[-1])
    return {"step": 0, "code": {"leptonstore": None}, "environment": manifest.get("environment") or {}}


def source_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of this a model's lineage repeats, so that it outlives the checkpoint: the provenance, the head of the receipt, and the
    checkpoint that the first weights were of, if there was one."""
    told, receipt = manifest.get("provenance"), manifest.get("receipt")
    return {
        **({"provenance": told} if told else {}),
        **({"receipt": {"head": receipt["head"], "steps": receipt["steps"]}} if receipt else {}),
        **({"init": manifest["init"]} if manifest.get("init") else {}),
    }
