"""Pipelines as TOML files.

    dataset = "photos@main"            # the version that is read
    into = "photos.train"              # NAME[@BRANCH] of the result; without it the branch that is read
    on_error = "quarantine"            # or "raise", the default
    message = "224 pixels"             # of the commit

    [[operation]]
    use = "image.resize"               # its name, or "package.module:function"
    column = "image"                   # its parameters
    size = [224, 224]

What is wrong is told with the file, the line where it can be found, the operation and the nearest name that there is.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from leptonstore import limits
from leptonstore.errors import BadInput, SourceError, listed
from leptonstore.process.operation import Operation
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import operation_named

USE = "use"
_KEYS = {"dataset": str, "into": str, "on_error": str, "message": str, "operation": list}
_HEADER = re.compile(r"^\s*\[\[\s*operation\s*\]\]")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline in a file. Raises SourceError (no such file, or none that can be read), BadInput."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"pipeline file {path}: {error.strerror or error}; check the path", str(path)) from None
    if len(data) > limits.PIPELINE_FILE_BYTES_MAX:
        raise BadInput(
            f"{path} has {len(data):,} bytes, and a pipeline file at most {limits.PIPELINE_FILE_BYTES_MAX:,}"
        )
    try:
        return parse_pipeline(data.decode("utf-8"), path.name)
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text: a pipeline file is written in TOML") from None


def parse_pipeline(text: str, where: str = "pipeline.toml") -> Pipeline:
    """The pipeline in a text. where: what messages call it. Raises BadInput."""
    try:
        told = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{where} is no TOML: {error}") from None
    lines = text.splitlines()
    for key, value in told.items():
        line = _line(lines, key, 0)
        if key not in _KEYS:
            raise BadInput(f"{where}{line}: a pipeline has no {key!r}; {_nearest(key, _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            kind = "a list of tables, [[operation]]" if key == "operation" else "a text in quotes"
            raise BadInput(f"{where}{line}: {key} is {kind}, not {value!r}")
    if "dataset" not in told:
        raise BadInput(f'{where}: it says nowhere what is read; begin with dataset = "NAME"')
    headers = [number for number, line in enumerate(lines, 1) if _HEADER.match(line)]
    operations, found = told.get("operation", []), []
    if len(headers) != len(operations):
        headers = []  # written in another way, or a string looks like one
    for number, one in enumerate(operations, 1):
        start = headers[number - 1] if headers else 0
        found.append(_operation(one, f"{where}{f' line {start}' if start else ''}, operation {number}"))
    return Pipeline(
        told["dataset"],
        found,
        told.get("into"),
        told.get("on_error", "raise"),
        told.get("message", ""),
        where,
        tuple(headers),
    )


def _operation(told: Any, where: str) -> Operation:
    if not isinstance(told, dict):
        raise BadInput(f"{where} is no table: write [[operation]], and {USE} = NAME below it")
    parameters = dict(told)
    name = parameters.pop(USE, None)
    if not isinstance(name, str):
        hint = get_close_matches(USE, parameters, 1, 0.3)
        raise BadInput(f'{where} does not say which: {USE} = "NAME"{f" (not {hint[0]})" if hint else ""}')
    return operation_named(name, parameters, where)


def _line(lines: Sequence[str], key: str, after: int) -> str:
    wanted = re.compile(rf"^\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    for number, line in enumerate(lines[after:], after + 1):
        if wanted.match(line):
            return f" line {number}"
    return ""


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"it has {listed(known)}"


# -- writing -----------------------------------------------------------------------------------------------------------


def pipeline_text(pipeline: Pipeline) -> str:
    """A file that `read_pipeline` makes an equal pipeline of. Raises BadInput for a parameter that TOML has no word for."""
    out = [f"dataset = {_value(pipeline.dataset)}"]
    if pipeline.into is not None:
        out.append(f"into = {_value(pipeline.into)}")
    if pipeline.on_error != "raise":
        out.append(f"on_error = {_value(pipeline.on_error)}")
    if pipeline.message:
        out.append(f"message = {_value(pipeline.message)}")
    for operation in pipeline.operations:
        out += ["", "[[operation]]", f"{USE} = {_value(operation.name)}"]
        given = operation.parameters()
        for one in fields(operation):
            if not one.init or one.name not in given:
                continue
            value = given[one.name]
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if isinstance(default, tuple):
                default = list(default)
            if value is None or (value == default and type(value) is type(default)):
                continue
            out.append(f"{_key(one.name)} = {_value(value)}")
    return "\n".join(out) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string, but for the one character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return str(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(key))} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    raise BadInput(f"a pipeline file cannot say {value!r}")
