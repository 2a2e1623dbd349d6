"""Model bundles: everything that is needed to use a trained model, as one commit that names the data that made it.

A bundle is a table of files under the ref `model/<name>/main`; nothing in it is unpickled or compiled:

    bundle.json           {"format": "lepton.bundle", "version": 2}, the task, input and output schema
    program.json          the graph with its preprocessing, by torch.export (trainers.program), for any batch size
    model.safetensors     the weights, by their names in the model
    preprocessing.json    what happens to a value before the network sees it; "transforms" of these before the program
    parity.safetensors    an input batch and the outputs that the trained model gave for it
    report.html           what was trained, on which data, with which results: for people

Loading checks the bundle against its own parity pair: a bundle that does not compute what was deployed is refused. The
commit's lineage names data, checkpoint, configuration, metrics and environment. Version 1 is the same for decoded images without
transforms, and without the report; it is still read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonstore.dataset import FileTable
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, MissingExtra
from leptonstore.format.framed import parse_json
from leptonstore.process import images
from leptonstore.store import Store
from trainers.models import PIXEL_MAX
from trainers.program import Program
from trainers.signature import TensorSpec
from trainers.tasks import ImageClassification, LanguageModelling, Task, task_from_dict

FORMAT = "lepton.bundle"
VERSION = 2
BRANCH = "main"
# Another CPU adds in another order: relative to the largest output, float32 sums of 10^4 terms differ by about 1e-6.
PARITY_TOLERANCE = 1e-4
DECODE = "loaders.transforms:DecodeImage"
REQUIRED = ("bundle.json", "program.json", "model.safetensors", "parity.safetensors")


@dataclass(frozen=True)
class Bundle:
    """A deployed model, ready to run on the CPU. Immutable; safe from any thread."""

    name: str
    commit: str
    task: Task
    lineage: dict[str, Any]
    program: Program
    weights: dict[str, Tensor]
    input: TensorSpec
    output: TensorSpec
    parity: tuple[Tensor, Tensor]  # inputs, and the outputs that the trained model gave

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; () for what is no classifier."""
        return self.task.classes if isinstance(self.task, ImageClassification) else ()

    @property
    def takes_images(self) -> bool:
        """Whether `decode` makes a row of an image file."""
        return isinstance(self.task, ImageClassification)

    def decode(self, image: Buffer, name: str = "image") -> NDArray[Any]:
        """An encoded image as one row of `input`: through the transforms of validation where there are any, else made grey or RGB and
        stretched.

        Raises SourceError, naming it, when it cannot be read; BadInput when it does not fit; FormatDamaged for foreign transforms.
        """
        if not isinstance(self.task, ImageClassification):
            raise BadInput(f"model {self.name} takes no images")
        task = self.task
        if not task.transforms:
            return images.fit(images.decode(image, name), task.shape)
        if any(step.get("reference") == DECODE for step in task.transforms):
            return task.prepared([bytes(image)])[0].numpy()
        pixels = images.decode(image, name)  # the chain was for pixels of the dataset's kind
        coloured = task.sample_shape[2:] == (3,)
        return task.prepared([images.to_rgb(pixels) if coloured else images.to_grey(pixels)])[0].numpy()

    def __call__(self, inputs: Tensor | NDArray[Any]) -> Tensor:
        """`input` [b, ...], b >= 0 -> `output` [b, ...]. Raises BadInput for another dtype or shape."""
        # torch knows no read-only memory: what is mapped from the store is copied.
        batch = (
            torch.from_numpy(np.require(inputs, requirements=["C", "W"])) if isinstance(inputs, np.ndarray) else inputs
        )
        if batch.dtype != self.input.torch_dtype or tuple(batch.shape[1:]) != self.input.shape:
            wanted = ", ".join(["b", *map(str, self.input.shape)])
            raise BadInput(
                f"model {self.name} takes {self.input.dtype} [{wanted}], not {batch.dtype} {list(batch.shape)}"
            )
        return self.program(batch)


def load_bundle(store: Store, name: str) -> Bundle:
    """Open the model `name` (or name@branch, name@commit) and check it against its parity pair.

    Raises RefMissing, FormatDamaged (anything that is not a bundle of ours, or does not compute what was deployed),
    FormatTooNew, MissingExtra.
    """
    return read_bundle(FileTable.open(store, "model", name), name)


def read_bundle(files: FileTable, name: str) -> Bundle:
    """As `load_bundle`, from its files."""
    whose = f"model {name}"
    missing = set(REQUIRED) - set(files.paths())
    if missing:
        raise FormatDamaged(f"{whose} has no {', '.join(sorted(missing))}")
    about = parse_json(files.read("bundle.json"), f"bundle.json of {whose}")
    if not isinstance(about, dict) or about.get("format") != FORMAT or type(about.get("version")) is not int:
        raise FormatDamaged(f"bundle.json of {whose} does not say that it is one")
    if about["version"] > VERSION:
        raise FormatTooNew(f"{whose} has bundle version {about['version']}; this LeptonStore reads {VERSION}: upgrade")
    task = task_from_dict(about.get("task", {}))
    inputs, outputs = (TensorSpec.from_dict(about.get(side, {})) for side in ("input", "output"))
    _require_signature(task, inputs, whose)
    weights = parse_safetensors(files.read("model.safetensors"), f"model.safetensors of {whose}")
    program = Program(parse_json(files.read("program.json"), f"program.json of {whose}"), weights)
    parity = parse_safetensors(files.read("parity.safetensors"), f"parity.safetensors of {whose}")
    if set(parity) != {inputs.name, outputs.name}:
        raise FormatDamaged(f"the parity pair of {whose} does not fit its schema")
    given, expected = parity[inputs.name], parity[outputs.name]
    for found, spec in ((given, inputs), (expected, outputs)):
        if found.dtype != spec.torch_dtype or tuple(found.shape[1:]) != spec.shape or len(found) != len(given):
            raise FormatDamaged(f"the parity pair of {whose} does not fit its schema")
    require_parity(program(given), expected, whose, FormatDamaged)
    return Bundle(
        name, str(files.commit), task, dict(files.lineage), program, weights, inputs, outputs, (given, expected)
    )


def input_of(task: Task) -> TensorSpec:
    """What a model of this task takes."""
    example = task.example(1, torch.device("cpu"))
    shape, dtype = tuple(example.shape[1:]), str(example.dtype).removeprefix("torch.")
    if isinstance(task, ImageClassification):
        return TensorSpec("images", dtype, shape, *((0, PIXEL_MAX) if dtype == "uint8" else ()))
    if isinstance(task, LanguageModelling):
        return TensorSpec("tokens", dtype, shape, 0, task.vocabulary - 1)
    return TensorSpec("inputs", dtype, shape)


def require_parity(found: Tensor, expected: Tensor, whose: str, error: type[BadInput | FormatDamaged]) -> None:
    """Outputs are equal up to rounding, relative to the largest."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise error(f"{whose} gives {found.dtype} {list(found.shape)} where {list(expected.shape)} was deployed")
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    apart = float((found - expected).abs().max()) if expected.numel() else 0.0
    if not apart <= PARITY_TOLERANCE * scale:  # NaN is not
        raise error(f"{whose} does not compute what was deployed: outputs are {apart:.3g} apart; deploy it again")


def safetensors_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Raises MissingExtra."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise MissingExtra("a model bundle", "deploy", "safetensors") from None
    return bytes(save(tensors))


def parse_safetensors(data: bytes, whose: str) -> dict[str, Tensor]:
    """Raises FormatDamaged, MissingExtra."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise MissingExtra("a model bundle", "deploy", "safetensors") from None
    try:
        loaded: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise FormatDamaged(f"{whose} is damaged: {error}") from None
    return loaded


def _require_signature(task: Task, found: TensorSpec, whose: str) -> None:
    """The task says what comes in, too: rows are prepared by it, and computed by the program."""
    expected = input_of(task)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        raise FormatDamaged(f"{whose} takes {found}, which is not what its task says: {expected}")
