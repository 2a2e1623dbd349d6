"""docs/cli.md says what the commands say, and a shell is told what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore.cli.group import SUMMARIES
from leptonstore.cli.reference import reference
from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

ROOT = Path(__file__).resolve().parents[2]


def test_docs_cli_md_is_what_the_commands_say() -> None:
    """Else: `python -m leptonstore.cli.reference > docs/cli.md`."""
    assert (ROOT / "docs" / "cli.md").read_text() == reference()


def test_every_command_has_a_line_in_the_list() -> None:
    assert {entry.name for entry in entry_points(group="lepton.commands")} == set(SUMMARIES)


def complete(words: str, cwd: Path) -> list[str]:
    """What bash would offer for the last of `words`."""
    told = {"_LEPTON_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    command = [sys.executable, "-c", "from leptonstore.cli import main; import sys; sys.argv = ['lepton']; main()"]
    done = subprocess.run(command, env={**os.environ, **told}, cwd=cwd, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2])], schema=schema)
    with Store.create(tmp_path / ".lepton") as store:
        for name, branch in (("birds", "main"), ("birds", "clean"), ("bees", "main")):
            write_dataset(store, name, Source(schema, ("id",), lambda: iter([batch])), branch=branch)
    return tmp_path


def test_a_shell_completes_commands_options_and_names(place: Path) -> None:
    assert complete("lepton impo", place) == ["import"]
    assert "--json" in complete("lepton stats --", place)
    assert complete("lepton stats b", place) == ["bees", "birds"]
    assert complete("lepton stats birds@", place) == ["birds@clean", "birds@main"]


def test_completion_is_quiet_where_there_is_no_store(tmp_path: Path) -> None:
    assert complete("lepton stats b", tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    command = [sys.executable, "-c", "from leptonstore.cli import main; main()", "completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "_LEPTON_COMPLETE" in done.stdout
