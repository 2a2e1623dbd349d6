"""`lepton`: finds the commands, runs one, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys

from leptonstore.errors import MissingExtra


def main() -> None:
    """Entry point of the `lepton` command. Exits with a code of `leptonstore.cli.runtime.EXIT_CODES`."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        print(f"lepton: {MissingExtra('the command line', 'cli', 'click')}", file=sys.stderr)
        sys.exit(8)  # as for any missing extra
    from leptonstore.cli.group import lepton
    from leptonstore.cli.runtime import run

    sys.exit(run(lepton, sys.argv[1:]))
