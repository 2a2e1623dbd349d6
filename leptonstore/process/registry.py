"""Operations by name, as pipeline files call them. A line each; a module is imported when a pipeline uses it.

image.* rows.* text.* numbers.*   change values or rows          leptonstore/process/operations/
check.*                           look for rows that spoil training   leptonstore/process/checks/
package.module:function           of the user's                  operations/function.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from leptonstore.errors import BadInput, listed
from leptonstore.process.operation import Operation
from leptonstore.process.parameter_types import fitted

_PACKAGE = "leptonstore.process."
OPERATIONS: dict[str, str] = {
    "check.nulls": "checks.nulls:Nulls",
    "check.rules": "checks.rules:Rules",
    "check.labels_out_of_range": "checks.labels:LabelsOutOfRange",
    "check.duplicates": "checks.duplicates:Duplicates",
    "check.leakage": "checks.leakage:Leakage",
    "check.outliers": "checks.outliers:Outliers",
    "check.label_errors": "checks.label_errors:LabelErrors",
    "check.class_balance": "checks.balance:ClassBalance",
    "check.near_duplicate_texts": "checks.near_duplicate_texts:NearDuplicateTexts",
    "check.text_charset": "checks.text_charset:TextCharset",
    "check.text_language": "checks.text_language:TextLanguage",
    "check.text_length": "checks.text_length:TextLength",
    "check.text_quality": "checks.text_quality:TextQuality",
    "image.decode": "operations.images:Decode",
    "image.resize": "operations.images:Resize",
    "image.crop": "operations.images:Crop",
    "text.mask_pii": "operations.mask_pii:MaskPii",
    "text.tokenise": "operations.tokenise:Tokenise",
    "numbers.normalise": "operations.normalise:Normalise",
    "numbers.stack": "operations.stack:Stack",
    "rows.group_by": "operations.group_by:GroupBy",
    "rows.join": "operations.join:Join",
    "rows.split": "operations.rows:Split",
    "rows.sample": "operations.rows:Sample",
    "rows.select": "operations.rows:Select",
    "check.undecodable": "checks.undecodable:Undecodable",
    "check.constant": "checks.constant:Constant",
    "check.image_size": "checks.image_size:ImageSize",
    "check.image_quality": "checks.image_quality:ImageQuality",
    "check.near_duplicate_images": "checks.near_duplicate_images:NearDuplicateImages",
}
_FUNCTION = "operations.function:Function"


def operation_named(name: str, parameters: Mapping[str, Any], where: str = "the pipeline") -> Operation:
    """Make the operation that a pipeline asks for. where: for errors, "pipeline.toml, operation 3".

    Raises BadInput: an unknown name or parameter (with the nearest that there is), a missing one, a value that does not fit.
    """
    place = OPERATIONS.get(name)
    if place is None and ":" in name:
        place, parameters = _FUNCTION, {**parameters, "call": name}
    if place is None:
        near = get_close_matches(name, OPERATIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {listed(OPERATIONS)}"
        raise BadInput(f"{where}: there is no operation {name!r}; {hint}")
    kind = _kind(place)
    known = {one.name: one for one in fields(kind) if one.init}
    for given in parameters:
        if given not in known:
            near = get_close_matches(given, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {listed(known)}"
            raise BadInput(f"{where}: {name} has no parameter {given!r}; {hint}")
    for one in known.values():
        if one.name not in parameters and one.default is MISSING and one.default_factory is MISSING:
            raise BadInput(f"{where}: {name} needs {one.name!r}")
    try:
        made: Operation = kind(**fitted(kind, parameters))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    return made


def kind_named(name: str) -> type[Operation]:
    """The class of an operation that there is."""
    return _kind(OPERATIONS[name])


def _kind(place: str) -> type[Operation]:
    module, _, kind_name = place.partition(":")
    kind: type[Operation] = getattr(import_module(_PACKAGE + module), kind_name)
    return kind
