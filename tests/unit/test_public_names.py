"""Every name that a package offers is there and says what it is; a class says so of each of its methods, too."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

PACKAGES = [
    "leptonstore",
    "leptonstore.cache",
    "leptonstore.dataset",
    "leptonstore.process.collect",
    "leptonstore.process.engine",
    "leptonstore.store",
    "loaders",
    "loaders.orders",
    "loaders.transforms",
    "trainers",
    "trainers.checkpoint",
    "trainers.models",
    "trainers.sinks",
    "trainers.tasks",
]


def offered(package: str) -> dict[str, Any]:
    """What `from package import *` would give, without constants and names of types, which have no docstring of their own."""
    module = importlib.import_module(package)
    found = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}


def said(value: Any) -> str:
    """The docstring that somebody wrote, and not `dataclass`."""
    text = inspect.getdoc(value) or ""
    return "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str) -> None:
    assert importlib.import_module(package).__doc__
    silent = []
    for name, value in offered(package).items():
        if not said(value):
            silent.append(name)
        if inspect.isclass(value):
            for member, kind in vars(value).items():
                plain = kind.__func__ if isinstance(kind, (classmethod, staticmethod)) else kind
                is_told = inspect.isfunction(plain) or isinstance(plain, property)
                if is_told and not member.startswith("_") and not said(getattr(value, member)):
                    silent.append(f"{name}.{member}")
    assert silent == []
