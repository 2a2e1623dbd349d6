"""A deployed model as an ONNX file, for runtimes without torch: checked with onnxruntime before it is kept.

The bundle's own program (trainers.program) is traced again and translated by torch.onnx, whose dynamo exporter (torch 2.13) knows every
operator of the models here; the batch stays dynamic. What comes out must agree with the program on the bundle's parity pair and on
random rows in several batch sizes. Nothing of it names the machine that made it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leptonstore.errors import BadInput, MissingExtra, SourceError
from leptonstore.limits import GIB
from trainers.bundle import PARITY_TOLERANCE, Bundle
from trainers.program import EXPORT_BATCH_MIN, Program
from trainers.signature import probe_rows

WEIGHTS_BYTES_MAX = 2 * GIB - (64 << 20)  # protobuf ends at 2 GiB; what is left is for the graph
CHECKED_ROWS = (1, 2, 3, 17)  # of random batches: one, the traced size, odd ones


class _Traced(nn.Module):
    """A program as a module."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, rows: Tensor) -> Tensor:
        return self.program(rows)


def write_onnx(bundle: Bundle, path: str | Path) -> dict[str, Any]:
    """Write `bundle` to `path`, which is replaced when it exists. Returns what was made and how far it was from the program.

    Raises MissingExtra; BadInput: an operator has no translation, the model is too large for one file, or onnxruntime computes
    something else; SourceError when the file cannot be written.
    """
    size = sum(weight.nbytes for weight in bundle.weights.values())
    if size > WEIGHTS_BYTES_MAX:
        raise BadInput(f"model {bundle.name} has {size:,} bytes of weights; an ONNX file holds {WEIGHTS_BYTES_MAX:,}")
    made = _translated(bundle)
    data: bytes = made.SerializeToString()
    apart = _require_parity(bundle, data)
    _write(Path(path), data)
    opset = max(one.version for one in made.opset_import if one.domain in ("", "ai.onnx"))
    return {"path": str(path), "bytes": len(data), "opset": opset, "relative_difference": apart}


def _translated(bundle: Bundle) -> Any:
    """The onnx.ModelProto."""
    try:
        import onnx
        import onnxruntime  # noqa: F401 - checked before the work is done
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("writing ONNX", "onnx", error.name or "") from None
    example = probe_rows(bundle.input, EXPORT_BATCH_MIN)
    with _quiet():
        try:
            exported = torch.onnx.export(
                _Traced(bundle.program).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=[bundle.input.name],
                output_names=[bundle.output.name],
                verbose=False,
            )
        except Exception as error:  # the exporter has no error type for all of its steps
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(f"model {bundle.name} cannot be translated to ONNX: {said[-1]}") from error
    assert exported is not None
    made = exported.model_proto
    _strip(made)
    made.producer_name = "leptonstore"
    about = {"lepton.model": bundle.name, "lepton.commit": bundle.commit, "lepton.classes": "\n".join(bundle.classes)}
    onnx.helper.set_model_props(made, {key: value for key, value in about.items() if value})
    onnx.checker.check_model(made)
    return made


def _strip(made: Any) -> None:
    """Drop what names source files: stack traces and documentation of every node."""
    for part in (made, made.graph, *made.functions):
        part.doc_string = ""
        del part.metadata_props[:]
        for node in getattr(part, "node", ()):
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info, *made.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _require_parity(bundle: Bundle, data: bytes) -> float:
    """The largest difference from the program, relative to the largest output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors; its advice is not for users of a finished model
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    whole = probe_rows(bundle.input, max(CHECKED_ROWS))
    for rows in (bundle.parity[0], *(whole[:count] for count in CHECKED_ROWS)):
        expected = bundle.program(rows).numpy()
        (found,) = session.run([bundle.output.name], {bundle.input.name: rows.numpy()})
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise BadInput(f"ONNX gives {found.dtype} {found.shape} where model {bundle.name} gives {expected.shape}")
        scale = max(1.0, float(np.abs(expected).max()))
        apart = float(np.abs(found - expected).max()) / scale
        if not apart <= PARITY_TOLERANCE:  # NaN is not
            raise BadInput(f"ONNX computes something else than model {bundle.name}: outputs are {apart:.3g} apart")
        worst = max(worst, apart)
    return worst


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SourceError(f"cannot write {path}: {error.strerror}", str(path)) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not there, and on its own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
