"""docs/tasks.md: its code runs, its configurations are ones, and the commands and models that it names are there."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from task_data import write_texts
from training_data import write_patterns

import trainers.commands
from leptonstore.store import Store
from trainers.config import from_dict
from trainers.models import FACTORIES
from trainers.tasks import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as opened:
        write_texts(opened)
        write_patterns(opened)
        yield opened
    torch.set_num_threads(before)


def test_the_code_of_the_page_runs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"store": store, "__name__": "__main__"}
    for block in blocks("python"):
        exec(block, names)
    said = capsys.readouterr().out
    assert "language modelling: column 'tokens', bytes, 32 at a time" in said and "bits_per_byte" in said
    assert names["config"].not_reproducible == ["model", "loss"]


def test_the_configurations_of_the_page_are_ones() -> None:
    assert [from_dict(tomllib.loads(block)) for block in blocks("toml")]


def test_the_commands_of_the_page_are_there() -> None:
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("lepton ")]
    assert len(lines) == 3
    for line in lines:
        name, *arguments = shlex.split(re.split(r"\s{4,}", line)[0])[1:]
        command = getattr(trainers.commands, name)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, line


def test_what_the_page_names_is_there() -> None:
    assert all(f"`{name}`" in PAGE for name in (*KINDS, *FACTORIES))
    for module in re.findall(r"python -m (trainers\.[a-z_.]+)", PAGE):
        assert find_spec(module) is not None, module
    for page in re.findall(r"\]\(([a-z-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / page).exists(), page
