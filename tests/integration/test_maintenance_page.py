"""docs/maintenance.md: its code runs, every kind of job and every option is on it, and its commands are commands."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from leptonstore.cli.group import lepton
from leptonstore.daemon.maintenance.kinds import KINDS
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "maintenance.md").read_text()


def test_the_code_of_the_page_runs(store: Store) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {"store": store})


def test_every_kind_of_job_is_on_the_page_with_its_options() -> None:
    rows = {row.split("`")[1]: row for row in PAGE.splitlines() if row.startswith("| `")}
    assert rows.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        options = set(re.findall(r"`(\w+)`", rows[name].rsplit("|", 2)[1]))
        assert options == kind.options.keys(), name


def test_the_commands_of_the_page_are_commands(store: Store) -> None:
    """Each that needs no daemon is run as it stands there."""
    commands = re.findall(r"^    lepton (.*) --store STORE$", PAGE, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        done = CliRunner().invoke(lepton, [*command.split(), "--store", store.url])
        assert done.exit_code == 0, (command, done.output, done.exception)
