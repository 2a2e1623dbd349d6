"""A function of the user's as an operation: "package.module:function".

    def shouted(batch, mark="!"):                                   [[operation]]
        texts = batch.column("text")                                use = "my_package.texts:shouted"
        return {"loud": pc.binary_join_element_wise(                reads = ["text"]
            pc.utf8_upper(texts), mark, "")}                        output = {loud = "string"}
                                                                    parameters = {mark = "!!"}

It is called with a pyarrow.RecordBatch of the columns that it reads and with its parameters, and returns columns (a mapping or a
RecordBatch), each with a value for each row; a column `keep` of booleans that `output` does not have says which rows go on. It must be a
function of these values alone, as its results are kept: batches have any number of rows, in any order. An exception is about a row: the
pipeline finds out which. On a cluster the module must be importable on every worker.

What decides the result is taken to be the module that it stands in: a digest of its source is part of the recipe. Not seen are modules
that it imports, files that it reads, and what was compiled: raise the parameter `version` (of the operation) when these change.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, SchemaError, listed
from leptonstore.format.schema import schema_to_json
from leptonstore.process.operation import Made, RowOperation
from leptonstore.process.operations.parameters import field_of, texts

KEEP = "keep"
_TYPES = {
    "bool": pa.bool_(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    "string": pa.string(), "large_string": pa.large_string(), "binary": pa.binary(), "large_binary": pa.large_binary(),
    "date": pa.date32(), "timestamp": pa.timestamp("us"),
}  # fmt: skip


@dataclass(frozen=True)
class Function(RowOperation):
    """Calls a function of yours with batches of rows.

    call: "package.module:function". reads: the columns that it is given; none: all. output: the columns that it returns, with their types:
    bool, int32, float64, string, binary …; "[float32]" is a list of them, "float32[3, 224]" a tensor. parameters: given to it by name.
    revision: a number or text of yours; raise it when something changes that its module does not show.
    """

    name: ClassVar[str] = "function"
    call: str
    reads_columns: Sequence[str] = ()
    output_types: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
