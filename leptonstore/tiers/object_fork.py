"""obstore in a child process made by fork.

obstore runs its requests on threads of its own (tokio), which no child inherits: a request there would wait for ever, and the library
offers no way to start them anew. So a child loads obstore again, from a copy of its file in memory, which the loader takes for
another library with state of its own. It costs a child about 15 MB and 50 ms, once, and only when it makes a request.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from types import ModuleType
from typing import Any

from leptonstore.errors import MissingExtra

_lock = threading.Lock()
_loaded: tuple[int, Any] | None = None  # the process, and its obstore


def obstore_of_this_process() -> Any:
    """The module obstore, such that requests work here. Raises MissingExtra."""
    global _loaded
    with _lock:
        if _loaded is None:
            try:
                _loaded = os.getpid(), importlib.import_module("obstore")
                importlib.import_module("obstore.store")
            except ImportError as error:
                raise MissingExtra("a store or tier on a bucket", "object", error.name or "") from None
        elif _loaded[0] != os.getpid():
            _loaded = os.getpid(), _second_copy()
        return _loaded[1]


def _second_copy() -> ModuleType:
    """The package obstore once more, with its library loaded from a file of another name."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "obstore"}
    library = ours["obstore._obstore"].__file__ or ""
    fd = os.memfd_create("obstore", os.MFD_CLOEXEC)
    with open(library, "rb") as file:
        while os.sendfile(fd, file.fileno(), None, 1 << 30):
            pass
    for name in ours:
        del sys.modules[name]
    try:
        path = f"/proc/self/fd/{fd}"
        loader = importlib.machinery.ExtensionFileLoader("obstore._obstore", path)
        spec = importlib.util.spec_from_loader("obstore._obstore", loader, origin=path)
        assert spec is not None
        extension = importlib.util.module_from_spec(spec)
        sys.modules["obstore._obstore"] = extension
        loader.exec_module(extension)
        package = importlib.import_module("obstore")
        importlib.import_module("obstore.store")
        return package
    finally:
        os.close(fd)
        for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
            del sys.modules[name]
        sys.modules.update(ours)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
