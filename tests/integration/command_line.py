"""`lepton` as people and scripts use it, in this process: what it prints, its JSON, and how it fails."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from leptonstore import errors
from leptonstore.cli.group import lepton


def ran(*arguments: str, fails: type[errors.LeptonError] | None = None) -> Result:
    """The result of a command that succeeds, or that raises `fails`."""
    result = CliRunner().invoke(lepton, list(arguments))
    if fails is None:
        assert result.exit_code == 0, (arguments, result.output, result.exception)
    else:
        assert isinstance(result.exception, fails), (arguments, result.output, result.exception)
    return result


def told(*arguments: str) -> dict[str, Any]:
    """What a command that succeeds says with --json."""
    found: dict[str, Any] = json.loads(ran(*arguments, "--json").stdout.strip().splitlines()[-1])
    return found
