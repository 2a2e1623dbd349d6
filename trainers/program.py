"""A model as data: the graph that torch.export makes of it, as JSON, and a small interpreter that runs it.

Why not torch.export.load (2.13, read in its source): it unpickles (sample inputs fall back to weights_only=False, any
tensor may say "use_pickle", custom objects, legacy files), calls `exec` on the archive's guards, `eval` on its shape
expressions (through sympy.sympify), and compiles Python source that contains its node names. A model that somebody else
stored would be a program that somebody else runs. So the store holds the graph alone, in torch.export's own JSON schema:

    {"format": "lepton.program", "version": 1, "program": <ExportedProgram of torch._export.serde.schema, major 8>}

without weights (safetensors beside it), sample inputs, and traces (which would name files of the machine). Running it
is a walk over its nodes: each calls one functional ATen operator, found by name under rules that leave out whatever
touches files, memory or state. Parameters are plain values. Nothing is compiled, evaluated or unpickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew

FORMAT = "lepton.program"
VERSION = 1
SCHEMA_MAJOR = 8  # of torch._export.serde.schema; torch changes it when old readers would misread
NODES_MAX = 1_000_000  # far above any network: GPT-like models export to about 30 nodes a layer
EXPORT_BATCH_MIN = 2  # rows of the example; torch.export takes 0 and 1 for constants

# Codes of torch's schema.
SCALAR_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
STRIDED = 7

# Whether a view is possible depends on strides, which torch.export foretells wrongly for some layouts; reshape copies then.
_INSTEAD = {"torch.ops.aten.view.default": torch.ops.aten.reshape.default}
_OPERATOR = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
# Functional operators that read or write files.
_REFUSED = {"from_file", "save"}
# Operators that begin with "_" are internal; some check nothing. These are what torch.export writes for sound models.
_INTERNAL = {
    "_adaptive_avg_pool2d",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_log_softmax",
    "_native_batch_norm_legit_no_training",
    "_softmax",
    "_to_copy",
}
# Arithmetic on sizes.
_SIZE_OPERATORS: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod,
    "_operator.neg": operator.neg,
    "_operator.eq": operator.eq,
    "_operator.ne": operator.ne,
    "_operator.lt": operator.lt,
    "_operator.le": operator.le,
    "_operator.gt": operator.gt,
    "_operator.ge": operator.ge,
}

Value = Any
Read = Callable[[dict[str, Value]], Value]


@dataclass(frozen=True)
class _Node:
    call: Callable[..., Value]
    positional: tuple[Read, ...]
    named: tuple[tuple[str, Read], ...]
    outputs: tuple[tuple[str, ...], ...]  # names; one tuple per returned value, longer for a list of tensors
    target: str


def export(
    model: nn.Module, example: Tensor, pt2: io.BytesIO | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(program, weights) of a model that takes tensors like `example` [b, ...], for any b. The model must be on the CPU.

    The program is deterministic: it depends on the code of the model and the version of torch, not on weights or
    machine. pt2: where to write the standard archive of torch.export too, weights included, for other tools.
    Raises BadInput when torch.export cannot trace the model, or a stored program may not hold what it does.
    """
    if len(example) < EXPORT_BATCH_MIN:
        raise BadInput(f"the example has {len(example)} rows; torch.export takes fewer than two for constants")
    training = model.training
    try:
        exported = _trace(model.eval(), example)
    finally:
        model.train(training)
    if pt2 is not None:
        torch.export.save(exported, pt2)
    if any(_is_mutable(node.target) for node in exported.graph.nodes):
        with _quiet():
            exported = exported.run_decompositions({})  # in-place operators become functional ones
    graph = _graph_json(exported)
    weights = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in {**exported.state_dict, **exported.constants}.items()
        if isinstance(tensor, Tensor)
    }
    program = {"format": FORMAT, "version": VERSION, "program": _without_traces(graph)}
    try:
        Program(program, weights)  # what is stored can be run
    except FormatDamaged as error:
        raise BadInput(f"this model cannot be stored as a program: {error.__cause__ or error}") from None
    return program, weights


class Program:
    """A program with its weights, ready to run on the CPU. Immutable; safe from any thread.

    Raises FormatDamaged when anything in it is not what `export` writes, FormatTooNew for a newer schema.
    """

    def __init__(self, program: Any, weights: dict[str, Tensor]) -> None:
        try:
            if program["format"] != FORMAT:
                raise ValueError("it does not say that it is one")
            graph = _supported(program)
            self._constants, self._input = _bind(graph["signature"]["input_specs"], weights)
            nodes = graph["graph"]["nodes"]
            if len(nodes) > NODES_MAX:
                raise ValueError(f"{len(nodes)} nodes")
            self._nodes = [_parse_node(node) for node in nodes]
            (output,) = graph["graph"]["outputs"]
            self._output = str(output["as_tensor"]["name"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatDamaged(f"the program of this model is damaged or not supported: {error}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch. Raises FormatDamaged when the graph does not compute."""
        values: dict[str, Value] = {**self._constants, self._input: images}
        node = None
        try:
            with torch.no_grad():
                for node in self._nodes:
                    arguments = [read(values) for read in node.positional]
                    result = node.call(*arguments, **{name: read(values) for name, read in node.named})
                    _store(values, node.outputs, result)
            logits = values[self._output]
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            where = node.target if node else "its inputs"
            raise FormatDamaged(f"the program of this model fails at {where}: {error}") from None
        if not isinstance(logits, Tensor):
            raise FormatDamaged("the program of this model does not give a tensor")
        return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.export's warnings about its own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)  # of views, whose base is no weight
        yield


def _trace(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        with _quiet():
            batch = torch.export.Dim("batch", min=1)
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export has no error type of its own
        raise BadInput(f"torch.export cannot trace this model: {str(error).strip().splitlines()[0]}") from error


def _graph_json(exported: torch.export.ExportedProgram) -> dict[str, Any]:
    """The graph as torch.export writes it into its archive."""
    archive = io.BytesIO()
    with _quiet():
        torch.export.save(exported, archive)
    with zipfile.ZipFile(archive) as entries:
        (name,) = [entry for entry in entries.namelist() if entry.endswith("/models/model.json")]
        graph: dict[str, Any] = json.loads(entries.read(name))
        return graph


def _is_mutable(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.is_mutable)


def _supported(program: dict[str, Any]) -> dict[str, Any]:
    """The graph module of a program whose versions are known and which carries nothing but a graph."""
    body = program["program"]
    if program["version"] > VERSION or body["schema_version"]["major"] > SCHEMA_MAJOR:
        found = f"version {program['version']}, schema {body['schema_version']['major']}"
        raise FormatTooNew(f"the program of this model has {found}; upgrade LeptonStore and torch")
    if body["schema_version"]["major"] != SCHEMA_MAJOR:
        raise ValueError(f"schema {body['schema_version']['major']} is not {SCHEMA_MAJOR}; deploy the model again")
    if body.get("guards_code"):
        raise ValueError("it carries Python code (guards_code)")
    graph: dict[str, Any] = body["graph_module"]
    return graph


def _bind(specs: list[dict[str, Any]], weights: dict[str, Tensor]) -> tuple[dict[str, Value], str]:
    """Values of the graph's inputs by name, and the name of the one that the caller gives."""
    constants: dict[str, Value] = {}
    inputs: list[str] = []
    for spec in specs:
        ((kind, body),) = spec.items()
        if kind == "user_input":
            inputs.append(str(body["arg"]["as_tensor"]["name"]))
        elif kind in ("parameter", "buffer", "tensor_constant"):
            weight = weights.get(body[f"{kind}_name"])
            if weight is None:
                raise ValueError(f"there is no weight {body[f'{kind}_name']!r}")
            constants[str(body["arg"]["name"])] = weight
        else:
            raise ValueError(f"an input of kind {kind!r}")
    (name,) = inputs
    return constants, name


def _parse_node(node: dict[str, Any]) -> _Node:
    target = node["target"]
    positional, named = [], []
    for argument in node["inputs"]:
        read = _parse_argument(argument["arg"])
        if argument.get("kind") == 2:
            named.append((str(argument["name"]), read))
        else:
            positional.append(read)
    return _Node(
        _find_operator(target),
        tuple(positional),
        tuple(named),
        tuple(_output_names(output) for output in node["outputs"]),
        target,
    )


def _find_operator(target: str) -> Callable[..., Value]:
    """The operator of a node, or ValueError. This is the gate: what it lets through can compute, and nothing else."""
    if target in _SIZE_OPERATORS:
        return _SIZE_OPERATORS[target]
    if target in _INSTEAD:
        return _INSTEAD[target]
    match = _OPERATOR.fullmatch(target)
    if match is None:
        raise ValueError(f"operator {target!r:.100} is not an ATen operator")
    name, overload = match.groups()
    if name in _REFUSED or (name.startswith("_") and name not in _INTERNAL):
        raise ValueError(f"operator {target!r} is not allowed in a stored program")
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, overload, None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"this torch has no operator {target!r}")
    if _is_mutable(found):
        raise ValueError(f"operator {target!r} changes its arguments")
    return found


def _parse_argument(argument: dict[str, Any]) -> Read:
    """How to get an argument's value when the graph runs: a constant, or values that earlier nodes left by name."""
    ((kind, body),) = argument.items()
    if kind in ("as_tensor", "as_optional_tensor"):
        return _reference(body)
    if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints"):
        parts = [_parse_element(part) for part in body]
        return lambda values: [read(values) for read in parts]
    if kind == "as_sym_int":
        return _parse_element(body)
    constant = _constant(kind, body)
    return lambda values: constant


def _parse_element(part: dict[str, Any]) -> Read:
    if "name" in part:
        return _reference(part)
    ((kind, body),) = part.items()
    if kind == "as_name":
        return _reference({"name": body})
    if kind == "as_tensor":
        return _reference(body)
    constant = _constant(kind, body)
    return lambda values: constant


def _reference(body: dict[str, Any]) -> Read:
    name = str(body["name"])
    return lambda values: values[name]


def _constant(kind: str, body: Any) -> Value:
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_float", "as_bool", "as_string"):
        return float(body) if kind == "as_float" else body  # infinities are written as strings
    if kind in ("as_ints", "as_bools", "as_strings"):
        return list(body)
    if kind == "as_floats":
        return [float(one) for one in body]
    if kind == "as_scalar_type":
        return SCALAR_TYPES[body]
    if kind == "as_memory_format":
        return MEMORY_FORMATS[body]
    if kind == "as_layout" and body == STRIDED:
        return torch.strided
    if kind == "as_device" and body["type"] == "cpu":
        return torch.device("cpu")
    raise ValueError(f"an argument {kind!r} = {body!r:.100}")


def _output_names(output: dict[str, Any]) -> tuple[str, ...]:
    ((kind, body),) = output.items()
    if kind in ("as_tensor", "as_optional_tensor"):
        return (str(body["name"]),)
    if kind in ("as_sym_int", "as_sym_bool"):
        return (str(body["as_name"]),)
    if kind == "as_tensors":
        return tuple(str(part["name"]) for part in body)
    if kind == "as_none":
        return ()
    raise ValueError(f"an output {kind!r}")


def _store(values: dict[str, Value], outputs: tuple[tuple[str, ...], ...], result: Value) -> None:
    if not outputs:
        return
    results = (result,) if len(outputs) == 1 else tuple(result)
    for names, value in zip(outputs, results, strict=True):
        if isinstance(value, list | tuple):
            values.update(zip(names, value, strict=True))
        elif names:
            values[names[0]] = value


def _without_traces(value: Any) -> Any:
    """Drop every "metadata": stack traces and module paths of the machine that exported."""
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_traces(part) for key, part in value.items()}
    return [_without_traces(part) for part in value] if isinstance(value, list) else value
