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

_PACKAGE = "leptonstore.process."
OPERATIONS: dict[str, str] = {
    "check.undecodable": "checks.undecodable:Undecodable",
    "check.constant": "checks.constant:Constant",
    "check.image_size": "checks.image_size:ImageSize",
    "check.image_quality": "checks.image_quality:ImageQuality",
}


def operation_named(name: str, parameters: Mapping[str, Any], where: str = "the pipeline") -> Operation:
    """Make the operation that a pipeline asks for. where: for errors, "pipeline.toml, operation 3".

    Raises BadInput: an unknown name or parameter (with the nearest that there is), a missing one, a value that does not fit.
    """
    place = OPERATIONS.get(name)
    if place is None:
        near = get_close_matches(name, OPERATIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {listed(OPERATIONS)}"
        raise BadInput(f"{where}: there is no operation {name!r}; {hint}")
    module, _, kind_name = place.partition(":")
    kind = getattr(import_module(_PACKAGE + module), kind_name)
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
        made: Operation = kind(**parameters)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    return made
