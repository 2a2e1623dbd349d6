"""References: how a configuration names a function or class, "package.module:name", and what it does with an object that has no such name.

    written(function)    "package.module:name" where importing that gives the very same object; else the object, as it is
    told(object)         "<lambda of package.module>": what stands in a stored configuration in its place
    resolve(reference)   the function again; an object is itself; what was `told` cannot be made again, and says so

An object without a name makes a run that nobody can start again from its checkpoint alone: the run is *not reproducible*, and says
by which key.
This module imports no torch.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Any

from leptonstore.errors import BadInput

# What a configuration holds where a function is named: the name, or in Python an object that has none.
Reference = str | Any

# Modules whose functions may be called on the word of a stored configuration. Any other reference the caller must confirm.
TRUSTED_MODULES = ("trainers.models", "trainers.losses", "trainers.schedule", "loaders.transforms", "torch.optim")


def written(value: Any, key: str) -> Reference:
    """`value` as a configuration holds it: a name where it has one. Raises BadInput that names `key` for text that is none."""
    if isinstance(value, str):
        if not is_told(value):
            try:
                split(value)
            except BadInput as error:
                raise BadInput(f"{key}: {error}") from None
        return value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__" or not name.isidentifier():
        return value
    if getattr(sys.modules.get(module), name, None) is not value:
        return value
    return f"{module}:{name}"


def told(value: Reference) -> str:
    """A reference as text; an object by the name of its function or class, and its module."""
    if isinstance(value, str):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"<{named.__qualname__.rpartition('.')[2]} of {named.__module__}>".replace("<<lambda>", "<lambda")


def is_told(text: str) -> bool:
    """Whether a stored reference stands for an object that could not be written down."""
    return text.startswith("<") and text.endswith(">")


def is_trusted(reference: Reference) -> bool:
    """Whether a stored reference may be followed without being confirmed. Objects were given by the caller."""
    if not isinstance(reference, str) or is_told(reference):
        return True
    return _trusted_root(reference.partition(":")[0]) is not None


def resolve(reference: Reference) -> Callable[..., Any]:
    """The function that "package.module:name" names. Imports the module: only for references that the caller wrote.

    Raises BadInput that says which part is wrong, with the nearest name.
    """
    if not isinstance(reference, str):
        if not callable(reference):
            raise BadInput(f"{told(reference)} is not a function")
        return typing.cast(Callable[..., Any], reference)
    if is_told(reference):
        raise BadInput(f"{reference} was an object given in Python, which no configuration can hold: give it again")
    module_name, attribute = split(reference)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadInput(f"cannot import {module_name!r} of {reference!r}: {error}; is it on the Python path?") from None
    found = getattr(module, attribute, None)
    if found is None:
        names = [name for name in dir(module) if not name.startswith("_")]
        raise BadInput(f"{module_name!r} has no {attribute!r}{nearest(attribute, names)}")
    if not callable(found):
        raise BadInput(f"{reference!r} is {type(found).__name__}, not a function")
    root, defined = _trusted_root(module_name), str(getattr(found, "__module__", ""))
    if (
        root is not None and _trusted_root(defined) != root
    ):  # trusted is what these modules are for, not all that they import
        raise BadInput(
            f"{attribute!r} is not of {module_name}, but of {defined or 'another module'}, which {module_name} uses"
        )
    return typing.cast(Callable[..., Any], found)


def called(reference: Reference, what: str, *arguments: Any, **params: Any) -> Any:
    """What the function of a reference returns. Raises BadInput, naming `what`, when it does not take these parameters."""
    function = resolve(reference)
    require_takes(function, f"{what} {told(reference)}", *arguments, **params)
    return function(*arguments, **params)


def require_takes(function: Callable[..., Any], what: str, *arguments: Any, **params: Any) -> None:
    """Raises BadInput when `function` cannot be called so. A TypeError of its own body is not mistaken for that."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of C have none
        return
    try:
        signature.bind(*arguments, **params)
    except TypeError as error:
        raise BadInput(f"{what} does not take these parameters: {error}") from None


def _trusted_root(module: str) -> str | None:
    """Which of TRUSTED_MODULES the module is, or is in."""
    return next((root for root in TRUSTED_MODULES if module == root or module.startswith(f"{root}.")), None)


def split(reference: str) -> tuple[str, str]:
    """("package.module", "name"). Raises BadInput when `reference` is not of that form."""
    module, _, attribute = reference.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise BadInput(f"{reference!r} is not of the form package.module:function")
    return module, attribute


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean …?" for a message, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
