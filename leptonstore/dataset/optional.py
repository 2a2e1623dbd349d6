"""Libraries that are used when they are there."""

from __future__ import annotations

import importlib
from types import ModuleType

from leptonstore.errors import MissingExtra


def require_module(what: str, extra: str, module: str) -> ModuleType:
    """The module, imported now. Raises MissingExtra, which says that `what` needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(what, extra, (error.name or module).split(".")[0]) from None
