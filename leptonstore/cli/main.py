"""`lepton`: finds the commands, runs one, and turns errors into one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys

from leptonstore.errors import MissingExtra


def main() -> None:
    """Entry point of the `lepton` command. Exits with a code of `leptonstore.cli.runtime.EXIT_CODES`."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        print(f"lepton: {MissingExtra('the command line', 'cli', 'click')}", file=sys.stderr)
        sys.exit(8)  # as for any missing extra
    _load_numpy()
    from leptonstore.cli.group import lepton
    from leptonstore.cli.runtime import run

    # Commands make many objects and few cycles: looking for these took 3 % of an import.
    gc.set_threshold(20_000, 20, 20)
    sys.exit(run(lepton, sys.argv[1:]))


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
