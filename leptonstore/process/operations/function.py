"""A function of the user's as an operation: "package.module:function".

    def shouted(batch, mark="!"):                                   [[operation]]
        texts = batch.column("text")                                use = "my_package.texts:shouted"
        return {"loud": pc.binary_join_element_wise(                columns = ["text"]
            pc.utf8_upper(texts), mark, "")}                        returns = {loud = "string"}
                                                                    arguments = {mark = "!!"}

It is called with a pyarrow.RecordBatch of `columns` and with its arguments, and returns columns (a mapping or a RecordBatch), each with a
value for each row; `keep`, booleans, says which rows go on. It must be a function of these values alone, as its results are kept: batches
have any number of rows, in any order. An exception is about a row: the pipeline finds out which. On a cluster the module must be importable
on every worker.

What decides the result is taken to be the module that it stands in, and the one that it is named by where that is another: a digest of
their source is part of the recipe. Not seen are modules that they import, files that it reads, and what was compiled: change `revision`
when these change. A file that was edited since this process imported its module is refused: its digest would name code that does not run
here.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset import Dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import (
    class_label_field,
    class_names,
    image_field,
    path_field,
    tensor_field,
    text_field,
    tokens_field,
)
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, listed
from leptonstore.process.columns import field_of
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.operations.parameters import replaced, texts

KEEP = "keep"
_TYPES = {
    "bool": pa.bool_(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    "string": pa.string(), "large_string": pa.large_string(), "binary": pa.binary(), "large_binary": pa.large_binary(),
    "date": pa.date32(), "timestamp": pa.timestamp("us"),
}  # fmt: skip


_SPECIAL: dict[str, Callable[[str], pa.Field]] = {
    "image": image_field,
    "text": text_field,
    "tokens": tokens_field,
    "path": path_field,
}
_TENSOR = re.compile(r"(\w+)\[(\d+(?:\s*,\s*\d+)*)\]")
_CLASSES = re.compile(r"class_label\[(.+)\]")


@dataclass(frozen=True)
class Function(RowOperation):
    """Calls a function of yours with batches of rows.

    call: "package.module:function". columns: those that it is given; none: all. returns: the columns that it returns, with their types:
    bool, int32, float64, string, binary …, "[int32]" for lists, "float32[3, 224]" for tensors; image, text, tokens for what they mean,
    "class_label[cat, dog]" for labels, which are given by name or number.
    arguments: given to it by name. revision: a text of yours; change it when something changes that its module does not show.
    """

    call: str
    columns: Sequence[str] = ()
    returns: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    code: str | None = field(default=None, init=False, compare=False)  # what `bound` found: a run is of one code

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:\w+", self.call):
            raise BadInput(f"a function is called package.module:function, not {self.call!r}")
        object.__setattr__(self, "columns", texts(self.call, "columns", self.columns))
        for parameter in ("returns", "arguments"):
            if not isinstance(getattr(self, parameter), Mapping):
                raise BadInput(f"{self.call}: {parameter} is a table, {{name = …}}, not {getattr(self, parameter)!r}")
            object.__setattr__(self, parameter, dict(getattr(self, parameter)))
        _check_keys(self.call, self.arguments)
        for name in self.returns:
            self._field(name)

    @property
    def name(self) -> str:  # type: ignore[override]
        """What is called."""
        return self.call

    def parameters(self) -> dict[str, Any]:
        """All but the name."""
        found = super().parameters()
        del found["call"]
        return found

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the code that runs now: who edits the file during a run changes nothing of it. Raises BadInput."""
        made = replace(self)
        object.__setattr__(made, "code", self._code(_code_of))
        return made

    def libraries(self) -> dict[str, str]:
        """The digest of its module's source. Raises BadInput when the file is no longer what was imported."""
        code = self.code or self._code(_code_of)
        return {} if code is None else {"code": code}

    def recipe(self) -> dict[str, Any]:
        """With the order of its columns, in which new ones come after the others, and the arguments to the letter: recipes are compared
        without order, but {a = "b", b = "c"} may be replacements one after another."""
        found = super().recipe()
        if len(self.returns) > 1:
            found["order"] = list(self.returns)
        if self.arguments:
            found["given"] = json.dumps(self.arguments, ensure_ascii=False)
        return found

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """`columns`, or all."""
        return tuple(field_of(self.call, schema, column).name for column in self.columns) or tuple(schema.names)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With what it returns. Raises BadInput when there is no such function."""
        function = self._function()
        try:
            inspect.signature(function).bind(None, **self.arguments)
        except (TypeError, ValueError) as error:  # ValueError: some functions of C have no signature
            if isinstance(error, TypeError):
                raise BadInput(f"{self.call} does not take these arguments: {error}") from None
        self.reads(schema)
        for name in self.returns:
            schema = replaced(schema, self._field(name))
        return schema

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """What it returns."""
        return tuple(self.returns)

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Call it."""
        function = self._function()
        if self.code is not None and self._code(_imported_code) not in (None, self.code):
            raise BadInput(
                f"{self.call}: a worker has another source of it than the caller; give all the same, and start the cluster anew"
            )
        try:
            found = function(batch, **self.arguments)
        except SystemExit as error:  # in a thread of Daft's it would be waited for in vain
            raise RuntimeError(f"it called sys.exit({error.code!r})") from None
        if isinstance(found, (pa.RecordBatch, pa.Table)):
            found = dict(zip(found.schema.names, found.columns, strict=True))
        if not isinstance(found, Mapping):
            raise BadInput(f"{self.call} returned {type(found).__name__}, not columns: {{name: values}}")
        unknown = [name for name in found if name not in self.returns and name != KEEP]
        if unknown:
            raise BadInput(
                f"{self.call} returned a column {unknown[0]!r} that `returns` does not have ({listed(self.returns)})"
            )
        missing = [name for name in self.returns if name not in found]
        if missing:
            raise BadInput(f"{self.call} returned no column {missing[0]!r}, which `returns` has")
        columns = {name: _values(found[name], self._field(name)) for name in self.returns}
        keep = None
        if KEEP in found and KEEP not in self.returns:
            keep = np.asarray(_array(found[KEEP], pa.bool_()).fill_null(False))
        return Made(columns, keep)

    def _field(self, name: str) -> pa.Field:
        return _field_of(self.call, name, self.returns[name])

    def _module(self) -> ModuleType:
        module = self.call.partition(":")[0]
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise BadInput(
                f"{self.call}: there is no module {module!r} that can be imported ({error}); is it on the Python "
                "path (PYTHONPATH)?"
            ) from None
        except Exception as error:
            raise BadInput(
                f"{self.call}: the module {module!r} fails when it is imported: {type(error).__name__}: {error}"
            ) from error

    def _code(self, code_of: Callable[[ModuleType], str | None]) -> str | None:
        """A digest of what runs, as far as it is seen."""
        module = self._module()
        own = sys.modules.get(getattr(getattr(module, self.call.partition(":")[2], None), "__module__", None) or "")
        codes = [code_of(one) for one in (module, *((own,) if own not in (None, module) else ()))]
        if len(codes) == 1 or None in codes:
            return codes[0]
        return digest_of("".join(code for code in codes if code is not None).encode()).hex()

    def _function(self) -> Callable[..., Any]:
        wanted = self.call.partition(":")[2]
        module = self._module()
        found = getattr(module, wanted, None)
        if not callable(found):
            names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            near = get_close_matches(wanted, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {listed(names, 'none')}"
            raise BadInput(f"{self.call}: module {module.__name__} has no function {wanted!r}; {hint}")
        function: Callable[..., Any] = found
        return function


_met: dict[str, tuple[ModuleSpec | None, str]] = {}  # module -> what it was imported as, digest of its source then


def _code_of(module: ModuleType) -> str | None:
    """The digest of a module's source, None when there is none. Raises BadInput when another one was imported."""
    path = inspect.getsourcefile(module)
    if path is None or not Path(path).is_file():
        return None
    code = digest_of(Path(path).read_bytes()).hex()
    spec, known = _met.get(module.__name__, (None, ""))
    edited = known != code
    if spec is None or spec is not module.__spec__:  # it was imported since
        edited = _is_other(module, path)
    if edited:
        raise BadInput(
            f"module {module.__name__!r} was edited after this process imported it; start anew, or importlib.reload it"
        )
    _met[module.__name__] = module.__spec__, code
    return code


def _is_other(module: ModuleType, path: str) -> bool:
    """Whether a function of the module does not come from what its file says now. Constants are not looked at; nor are modules that
    something else than Python's own loader compiled (pytest rewrites assertions, others add checks of types)."""
    if type(module.__loader__) is not SourceFileLoader:
        return False
    try:
        there = set(_codes(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)))
    except SyntaxError:
        return True
    functions = [inspect.unwrap(value) for value in vars(module).values() if inspect.isfunction(value)]
    own = [function.__code__ for function in functions if function.__code__.co_filename == path]
    return not there.issuperset(own)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Of all functions in compiled source."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _check_keys(call: str, value: Any) -> None:
    """Raise BadInput where a table has a key that is no text: a pipeline file, and lineage, could not say it."""
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise BadInput(f"{call}: arguments have the key {wrong!r}, which is no text; lineage could not say it")
        value = value.values()
    if isinstance(value, (list, tuple, ValuesView)):
        for one in value:
            _check_keys(call, one)


def _imported_code(module: ModuleType) -> str | None:
    """The digest that its source had when this process met it."""
    met = _met.get(module.__name__)
    return met[1] if met is not None and met[0] is module.__spec__ else _code_of(module)


def _field_of(call: str, name: str, text: Any) -> pa.Field:
    if isinstance(text, str):
        if text in _SPECIAL:
            made: pa.Field = _SPECIAL[text](name)
            return made
        if text in _TYPES:
            return pa.field(name, _TYPES[text])
        inner = text[1:-1].strip() if text.startswith("[") and text.endswith("]") else ""
        if inner in _TYPES:
            return pa.field(name, pa.list_(_TYPES[inner]))
        tensor = _TENSOR.fullmatch(text)
        if tensor is not None and tensor[1] in _TYPES:
            return tensor_field(name, _TYPES[tensor[1]], tuple(int(one) for one in tensor[2].split(",")))
        classes = _CLASSES.fullmatch(text)
        if classes is not None:
            names = [one.strip() for one in classes[1].split(",")]
            if not all(names) or len(set(names)) != len(names):
                raise BadInput(f"{call}: column {name!r}: classes have different names, which {text!r} does not say")
            return class_label_field(name, names).with_nullable(True)
    known = [*_TYPES, *_SPECIAL, "class_label[cat, dog]"]
    near = get_close_matches(str(text), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}, [int32], float32[3, 224]"
    raise BadInput(f"{call}: column {name!r} has no type {text!r}; {hint}")


def _values(values: Any, field: pa.Field) -> pa.Array:
    """What a function returned, as an array of a column. Raises what pyarrow raises when a value does not fit: that is about a row."""
    classes = class_names(field)
    if classes is None:
        return _array(values, field.type)
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        numbers = pc.index_in(array, pa.array(classes, array.type))
        unknown = pc.and_(pc.is_null(numbers), pc.is_valid(array))
        if pc.any(unknown).as_py():
            raise ValueError(f"there is no class {array.filter(unknown)[0].as_py()!r}; there are {listed(classes)}")
        return _array(numbers, field.type)
    array = _array(array, field.type)
    for bound in pc.min_max(array).as_py().values():
        if bound is not None and not 0 <= bound < len(classes):
            raise ValueError(f"there is no class {bound}; there are {len(classes)}, from 0 on")
    return array


def _array(values: Any, data_type: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(data_type, pa.FixedShapeTensorType) and not isinstance(values, pa.Array):
        stacked = np.ascontiguousarray(np.asarray(values, data_type.value_type.to_pandas_dtype()))
        if stacked.shape[1:] != tuple(data_type.shape):
            raise ValueError(f"a value has shape {stacked.shape[1:]}, not {tuple(data_type.shape)}")
        return tensor_column(pa.field("", data_type), stacked)
    array = values if isinstance(values, pa.Array) else pa.array(values, data_type)
    return array if array.type == data_type else array.cast(data_type)
