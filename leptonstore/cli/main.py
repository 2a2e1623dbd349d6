"""`lepton`: finds the commands, runs one, and turns errors into one line and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import NoReturn

from leptonstore.cli.interrupt import end_quietly
from leptonstore.errors import MissingExtra

# Commands that run functions of the user's, which may give DataFrames to pyarrow.
_WITH_USER_CODE = frozenset({"column", "train", "evaluate", "predict", "deploy", "demo", "doctor", "process"})


def main() -> None:
    """Entry point of the `lepton` command. Exits with a code of `leptonstore.cli.runtime.EXIT_CODES`."""
    end_quietly()  # on Ctrl-C, until `run` has its own way
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        print(f"lepton: {MissingExtra('the command line', 'cli', 'click')}", file=sys.stderr)
        sys.exit(8)  # as for any missing extra
    # gRPC writes a line of its own to stderr for each handshake that failed; the command says it once.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _load_numpy()
    if not _WITH_USER_CODE.intersection(sys.argv[1:3]):  # the second, where the first is --debug
        _load_pyarrow()
    from leptonstore.cli.group import lepton
    from leptonstore.cli.runtime import run

    # Commands make many objects and few cycles: looking for these took 3 % of an import.
    gc.set_threshold(20_000, 20, 20)
    code = run(lepton, sys.argv[1:])
    if "daft" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process without the end of the interpreter: threads of Daft's that come out of Python then take it down with signal 6."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has gone
            stream.flush()
    os._exit(code)


def _load_numpy() -> None:
    """Load numpy without the threads of its OpenBLAS, which spin for a while and stand in the way of a fork.

    The setting counts while the library loads, and for no library that is loaded later (torch).
    """
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        return
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[name]


class _NoPandas:
    """A finder in front of all others, for whom there is no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("not now", name=name)


def _load_pyarrow() -> None:
    """Load pyarrow and let it find that there is no pandas, which it would import (0.2 s) at the first numpy array that it is given.

    It looks once, and again only when somebody asks for a DataFrame.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        import pyarrow

        pyarrow.array([0]).to_numpy(zero_copy_only=False)
    finally:
        sys.meta_path.remove(_NoPandas)
