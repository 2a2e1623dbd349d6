"""Model bundles: everything that is needed to use a trained model, as one commit that names the data that made it.

A bundle is a table of files under the ref `model/<name>/main`; nothing in it is unpickled or compiled:

    bundle.json           {"format": "lepton.bundle", "version": 1}, input and output schema, class names
    program.json          the graph with its preprocessing, by torch.export (trainers.program), for any batch size
    model.safetensors     the weights, by their names in the model
    preprocessing.json    what the program does to an image before the network sees it
    parity.safetensors    an input batch and the outputs that the trained model gave for it

Loading checks the bundle against its own parity pair: a bundle that does not compute what was deployed is refused. The
commit's lineage names data, checkpoint, configuration, metrics and environment. Deploying the same checkpoint twice
gives the same commit.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonstore.dataset import FileTable, write_files
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, MissingExtra, SourceError
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.process import images
from leptonstore.store import Store
from leptonstore.version import __version__
from trainers import checkpoint as checkpoints
from trainers.checkpoint import Checkpoint
from trainers.models import PIXEL_MAX, ImageClassifier
from trainers.program import Program, export
from trainers.provenance import source_of
from trainers.signature import TensorSpec
from trainers.tasks import ImageClassification, task_from_dict
from trainers.weights import weights_digest

FORMAT = "lepton.bundle"
VERSION = 1
BRANCH = "main"
PARITY_ROWS = 4
# Another CPU adds in another order: relative to the largest output, float32 sums of 10^4 terms differ by about 1e-6.
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Bundle:
    """A deployed model, ready to run on the CPU. Immutable; safe from any thread."""

    name: str
    commit: str
    task: ImageClassification
    lineage: dict[str, Any]
    program: Program
    input: TensorSpec
    output: TensorSpec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs."""
        return self.task.classes

    def decode(self, image: Buffer, name: str = "image") -> NDArray[Any]:
        """An encoded image as one row of `input`. Raises SourceError, naming it, when it cannot be read."""
        return images.fit(images.decode(image, name), self.task.shape)

    def __call__(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        """uint8 images [b, *task.shape], b >= 0 -> logits float32 [b, classes]. Raises BadInput for anything else."""
        # torch knows no read-only memory: what is mapped from the store is copied.
        batch = (
            torch.from_numpy(np.require(images, requirements=["C", "W"])) if isinstance(images, np.ndarray) else images
        )
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != self.task.shape:
            wanted = ", ".join(["b", *map(str, self.task.shape)])
            raise BadInput(f"model {self.name} takes uint8 [{wanted}], not {batch.dtype} {list(batch.shape)}")
        return self.program(batch)


def deploy(
    store: Store,
    run: str,
    name: str | None = None,
    *,
    step: int | None = None,
    reference: str | None = None,
    pt2: str | Path | None = None,
) -> Bundle:
    """Make a bundle of the newest checkpoint of `run` (or that of `step`), and load it back.

    name: of the model; the run's name by default. reference: confirms a model outside trainers.models
    (`checkpoint.build_stored_model`). pt2: also write torch.export's standard archive to this file.
    Raises RefMissing (no such checkpoint), BadInput (a model that torch.export cannot trace), MissingExtra.
    """
    checkpoint = checkpoints.load(store, run, step)
    model, task = checkpoints.build_stored_model(checkpoint, reference).eval(), checkpoint.task
    if not isinstance(model, ImageClassifier) or not isinstance(task, ImageClassification):
        raise BadInput(f"run {run!r} trained {task.kind}; only image classifiers can be deployed")
    archive = io.BytesIO() if pt2 is not None else None
    files = bundle_files(model, task, archive)
    if pt2 is not None and archive is not None:
        _write_file(pt2, archive.getvalue())
    written = write_files(
        store,
        "model",
        name or run,
        files,
        lineage=_lineage(checkpoint, weights_digest(model.state_dict())),
        message=f"deploy {checkpoint.branch} of run {run}",
        branch=BRANCH,
        metrics=_metrics(checkpoint),
    )
    return _load(written, name or run)


def load_bundle(store: Store, name: str) -> Bundle:
    """Open the model `name` (or name@branch, name@commit) and check it against its parity pair.

    Raises RefMissing, FormatDamaged (anything that is not a bundle of ours, or does not compute what was deployed),
    FormatTooNew, MissingExtra.
    """
    return _load(FileTable.open(store, "model", name), name)


def bundle_files(
    model: ImageClassifier, task: ImageClassification, pt2: io.BytesIO | None = None
) -> list[tuple[str, Buffer]]:
    """The files of a bundle, deterministic. Raises BadInput when the exported program computes something else."""
    program, weights = export(model, task.shape, pt2)
    images = parity_images(task.shape)
    with torch.no_grad():
        logits = model(images).to(torch.float32)
    _require_parity(Program(program, weights)(images), logits, "the exported program", BadInput)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "task": task.to_dict(),
        "input": TensorSpec("images", "uint8", task.shape, 0, PIXEL_MAX).to_dict(),
        "output": TensorSpec("logits", "float32", (len(task.classes),)).to_dict(),
    }
    return [
        ("bundle.json", canonical_json(about)),
        ("program.json", canonical_json(program)),
        ("model.safetensors", _safetensors_bytes(weights)),
        ("preprocessing.json", canonical_json(model.preprocess.describe())),
        ("parity.safetensors", _safetensors_bytes({"images": images, "logits": logits.contiguous()})),
    ]


def parity_images(shape: tuple[int, ...]) -> Tensor:
    """The fixed batch that a bundle is checked with: every pixel value occurs. Made up, so that a bundle that is handed
    on shows nobody's data."""
    count = PARITY_ROWS * int(np.prod(shape))
    values = (np.arange(count, dtype=np.uint64) * 2_654_435_761 >> 16).astype(np.uint8)  # Knuth's multiplicative hash
    return torch.from_numpy(values.reshape(PARITY_ROWS, *shape))


def _load(files: FileTable, name: str) -> Bundle:
    whose = f"model {name}"
    missing = {"bundle.json", "program.json", "model.safetensors", "parity.safetensors"} - set(files.paths())
    if missing:
        raise FormatDamaged(f"{whose} has no {', '.join(sorted(missing))}")
    about = parse_json(files.read("bundle.json"), f"bundle.json of {whose}")
    if not isinstance(about, dict) or about.get("format") != FORMAT or type(about.get("version")) is not int:
        raise FormatDamaged(f"bundle.json of {whose} does not say that it is one")
    if about["version"] > VERSION:
        raise FormatTooNew(f"{whose} has bundle version {about['version']}; this LeptonStore reads {VERSION}: upgrade")
    task = task_from_dict(about.get("task", {}))
    if not isinstance(task, ImageClassification):
        raise FormatDamaged(f"{whose} is of a kind that bundles do not hold: {task.kind}")
    weights = _parse_safetensors(files.read("model.safetensors"), f"model.safetensors of {whose}")
    program = Program(parse_json(files.read("program.json"), f"program.json of {whose}"), weights)
    parity = _parse_safetensors(files.read("parity.safetensors"), f"parity.safetensors of {whose}")
    if set(parity) != {"images", "logits"} or tuple(parity["images"].shape[1:]) != task.shape:
        raise FormatDamaged(f"the parity pair of {whose} does not fit its schema")
    if parity["logits"].shape != (len(parity["images"]), len(task.classes)):
        raise FormatDamaged(f"the parity pair of {whose} does not fit its classes")
    _require_parity(program(parity["images"]), parity["logits"], whose, FormatDamaged)
    specs = [TensorSpec.from_dict(about.get(side, {})) for side in ("input", "output")]
    return Bundle(name, str(files.commit), task, dict(files.lineage), program, *specs)


def _require_parity(found: Tensor, expected: Tensor, whose: str, error: type[BadInput | FormatDamaged]) -> None:
    """Outputs are equal up to rounding, relative to the largest."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise error(f"{whose} gives {found.dtype} {list(found.shape)} where {list(expected.shape)} was deployed")
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    apart = float((found - expected).abs().max()) if expected.numel() else 0.0
    if not apart <= PARITY_TOLERANCE * scale:  # NaN is not
        raise error(f"{whose} does not compute what was deployed: outputs are {apart:.3g} apart; deploy it again")


def _lineage(checkpoint: Checkpoint, weights: str) -> dict[str, Any]:
    body = checkpoint.manifest
    return {
        "operation": "deploy",
        "checkpoint": {"run": checkpoint.run, "branch": checkpoint.branch, "commit": checkpoint.commit},
        "data": body["data"],
        "config": body["config"],
        "metrics": _metrics(checkpoint),
        "environment": body["environment"],
        "code": {"leptonstore": __version__},
        "step": body["step"],
        "loader": body["loader"],
        "weights": weights,
        **source_of(body),
    }


def _metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of the last finished epoch; empty before the first."""
    return dict(checkpoint.manifest["history"][-1]) if checkpoint.manifest["history"] else {}


def _safetensors_bytes(tensors: dict[str, Tensor]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise MissingExtra("a model bundle", "deploy", "safetensors") from None
    return bytes(save(tensors))


def _parse_safetensors(data: bytes, whose: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise MissingExtra("a model bundle", "deploy", "safetensors") from None
    try:
        loaded: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FormatDamaged(f"{whose} is damaged: {error}") from None
    return loaded


def _write_file(path: str | Path, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error.strerror}", str(path)) from None
