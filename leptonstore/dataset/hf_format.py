"""Hugging Face datasets on disk (`Dataset.save_to_disk`): their features as columns, and back.

    dataset_info.json   {"features": {column: feature}, ...}          state.json   {"_data_files": [{"filename": ...}], ...}
    data-00000-of-00001.arrow                                         Arrow streams
    dataset_dict.json   {"splits": [name, ...]}, and a folder for each: a DatasetDict

    feature                    column                          feature                  column
    Image                      image, encoded                  Value                    its Arrow type
    ClassLabel                 class label with its names      List, Sequence           list, or of one length
    Array2D .. Array5D         tensor (where no size is open)  {...}                    struct
    Audio and all others       what their Arrow columns hold

An image is kept as struct<bytes, path>: its bytes become the value; a path inside is not kept, and an image of which
there is only a path is refused. Exports carry their schema in the Arrow schema's metadata, beside "huggingface".
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.plain import SCHEMA_KEY, encode_schema, tensor_from_lists, tensor_to_lists
from leptonstore.dataset.schema import CODEC, NAMES, SEMANTIC, class_names, semantic_of, tensor_shape
from leptonstore.errors import SchemaError

INFO, STATE, DICT = "dataset_info.json", "state.json", "dataset_dict.json"
_ARRAYS = {f"Array{n}D": n for n in (2, 3, 4, 5)}
_NAMES = {
    "float": "float32",
    "double": "float64",
    "halffloat": "float16",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
IMAGE_STORAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def field_of(field: pa.Field, feature: Any) -> pa.Field:
    """The column that stands in a file as `field` (of a storable type) and that `feature` describes."""
    kind = str(feature.get("_type")) if isinstance(feature, dict) else ""
    if kind == "Image" and _has_bytes(field.type):
        return pa.field(field.name, pa.large_binary(), metadata={SEMANTIC: b"image", CODEC: b"mixed"})
    if kind == "ClassLabel" and pa.types.is_integer(field.type):
        names = feature.get("names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            text = json.dumps(names, ensure_ascii=False).encode()
            return pa.field(field.name, field.type, metadata={SEMANTIC: b"class_label", NAMES: text})
    if kind in _ARRAYS:
        shape = _shape_of(feature.get("shape"), _ARRAYS[kind])
        value_type = field.type
        for _ in range(_ARRAYS[kind]):
            value_type = value_type.value_type if _is_list(value_type) else pa.null()
        if shape is not None and (pa.types.is_integer(value_type) or pa.types.is_floating(value_type)):
            return pa.field(field.name, pa.fixed_shape_tensor(value_type, shape))
    return pa.field(field.name, field.type)


def _is_list(data_type: pa.DataType) -> bool:
    kinds = pa.types
    return bool(kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type))


def _has_bytes(data_type: pa.DataType) -> bool:
    if not pa.types.is_struct(data_type):
        return False
    kinds = {field.name: field.type for field in data_type}
    return "bytes" in kinds and bool(pa.types.is_binary(kinds["bytes"]) or pa.types.is_large_binary(kinds["bytes"]))


def _shape_of(value: Any, dimensions: int) -> list[int] | None:
    if not isinstance(value, list) or len(value) != dimensions:
        return None
    ok = all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 31 for size in value)
    return value if ok else None


def restore(array: pa.Array, field: pa.Field) -> pa.Array:
    """A column of a file as the table's column. Raises pa.ArrowInvalid (a ValueError)."""
    data_type = field.type
    if isinstance(array, pa.ExtensionArray) and array.type != data_type:
        array = array.storage
    if array.type == data_type:
        return array
    if isinstance(data_type, pa.FixedShapeTensorType) and _is_list(array.type):
        return tensor_from_lists(array, data_type)
    if _has_bytes(array.type) and not pa.types.is_struct(data_type):
        data = array.field("bytes") if not array.null_count else array.flatten()[array.type.get_field_index("bytes")]
        lost = pc.and_(array.is_valid(), data.is_null())
        if pc.any(lost).as_py():
            raise pa.ArrowInvalid(
                f"row {pc.index(lost, True).as_py()} of this block has no bytes, only a path; save it with the images in it"
            )
        return data.cast(data_type)
    return array.cast(data_type)


# -- export ------------------------------------------------------------------------------------------------------


def feature_of(field: pa.Field) -> Any:
    """What dataset_info.json says of a column. Raises SchemaError."""
    names, shape = class_names(field), tensor_shape(field)
    if names is not None and pa.types.is_integer(field.type):
        return {"names": names, "_type": "ClassLabel"}
    if is_image(field):
        return {"_type": "Image"}
    if shape is not None and 2 <= len(shape) <= 5:
        return {"shape": list(shape), "dtype": _value_name(field.type.value_type), "_type": f"Array{len(shape)}D"}
    return _feature_of_type(stored_type(field))


def is_image(field: pa.Field) -> bool:
    """Whether a column holds encoded images."""
    kinds = pa.types
    return semantic_of(field) == "image" and bool(kinds.is_binary(field.type) or kinds.is_large_binary(field.type))


def _value_name(data_type: pa.DataType) -> str:
    return _NAMES.get(str(data_type), str(data_type))


def _feature_of_type(data_type: pa.DataType) -> Any:
    kinds = pa.types
    if kinds.is_list(data_type):
        return {"feature": _feature_of_type(data_type.value_type), "_type": "List"}
    if kinds.is_large_list(data_type):
        return {"feature": _feature_of_type(data_type.value_type), "_type": "LargeList"}
    if kinds.is_fixed_size_list(data_type):
        return {"feature": _feature_of_type(data_type.value_type), "length": data_type.list_size, "_type": "List"}
    if kinds.is_struct(data_type):
        if "_type" in [field.name for field in data_type]:
            raise SchemaError("a struct with a member '_type' is no Hugging Face feature; rename it")
        return {field.name: _feature_of_type(field.type) for field in data_type}
    return {"dtype": _value_name(data_type), "_type": "Value"}


def stored_type(field: pa.Field) -> pa.DataType:
    """The Arrow type in which a column is written."""
    shape = tensor_shape(field)
    if class_names(field) is not None and pa.types.is_integer(field.type):
        return pa.int64()
    if is_image(field):
        return IMAGE_STORAGE
    if shape is not None:
        if len(shape) == 1:
            return pa.list_(field.type.value_type, shape[0])
        inner = field.type.value_type
        for _ in shape:
            inner = pa.list_(inner)
        return inner
    return _stored(field.type)


def _stored(data_type: pa.DataType) -> pa.DataType:
    """Types that `datasets` has no name for, at any depth: bytes of one width are bytes, a tensor in a struct is lists."""
    kinds = pa.types
    if isinstance(data_type, pa.FixedShapeTensorType):
        raise SchemaError(f"a tensor inside of a list or struct ({data_type}) is no Hugging Face feature; use parquet")
    if kinds.is_fixed_size_binary(data_type):
        return pa.binary()
    if kinds.is_list(data_type):
        return pa.list_(_stored(data_type.value_type))
    if kinds.is_large_list(data_type):
        return pa.large_list(_stored(data_type.value_type))
    if kinds.is_fixed_size_list(data_type):
        return pa.list_(_stored(data_type.value_type), data_type.list_size)
    if kinds.is_struct(data_type):
        return pa.struct([pa.field(field.name, _stored(field.type)) for field in data_type])
    return data_type


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of the Arrow files, with the features and our own schema in its metadata."""
    fields = []
    for field in schema:
        metadata, shape = None, tensor_shape(field)
        if shape is not None and 2 <= len(shape) <= 5:
            value = _value_name(field.type.value_type)
            metadata = {
                "ARROW:extension:name": f"datasets.features.features.Array{len(shape)}DExtensionType",
                "ARROW:extension:metadata": json.dumps([list(shape), value]),
            }
        fields.append(pa.field(field.name, stored_type(field), metadata=metadata))
    features = {field.name: feature_of(field) for field in schema}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), SCHEMA_KEY: encode_schema(schema)}
    return pa.schema(fields, metadata=metadata)


def to_stored(array: pa.Array, field: pa.Field, target: pa.DataType) -> pa.Array:
    """A column as it is written."""
    if is_image(field):
        data = array.cast(pa.binary())
        paths = pa.nulls(len(array), pa.string())
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_STORAGE), mask=mask)
    if isinstance(array, pa.ExtensionArray):
        return array.storage.cast(target) if len(array.type.shape) == 1 else tensor_to_lists(array)
    return array if array.type == target else array.cast(target)
