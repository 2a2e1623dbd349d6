"""docs/processing.md: its files and its code run, and its commands are commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from click.testing import CliRunner
from process_data import encode, encoded_table, write

from leptonstore.cli.group import lepton
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.pipeline_file import parse_pipeline
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "processing.md").read_text()
FILE, FUNCTION = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
CODE, MODULE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def birds(store: Store) -> Store:
    rng = np.random.default_rng(0)
    files = [encode(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8), "JPEG") for _ in range(40)]
    files[5], files[7] = files[4], b"no image"
    write(store, "birds", encoded_table(files, [row % 2 for row in range(40)], ["a", "b"]), ["path"])
    return store


def test_the_file_and_the_python_of_the_page_make_the_same_commit(birds: Store) -> None:
    made = parse_pipeline(FILE).with_changes(message="").run(birds)
    assert made.dropped() == {"check.duplicates": 1, "failed": 1}
    names: dict[str, object] = {"store": birds}
    exec(CODE, names)
    result, text = names["result"], names["text"]
    assert result.dataset.commit == made.dataset.commit and not result.written  # type: ignore[attr-defined]
    assert parse_pipeline(str(text)) == names["pipeline"]


def test_the_function_of_the_page_runs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_texts.py").write_text(MODULE)
    write(store, "texts", pa.table({"id": range(4), "text": ["a", "long", None, "longer"]}), ["id"])
    operations = parse_pipeline(f'dataset = "texts"\ninto = "made"\n{FUNCTION}').operations
    made = Pipeline("texts", operations, "made").run(store).dataset
    assert made.to_arrow(["id", "length"]).to_pylist() == [{"id": 1, "length": 4}, {"id": 3, "length": 6}]
    sys.modules.pop("my_texts")


def test_commands_and_options_of_the_page_are_there() -> None:
    helped = {}
    for line in re.findall(r"^    (lepton process .*?)(?:  +#.*)?$", PAGE, re.MULTILINE):
        _, _, command, *rest = line.split()
        if command not in helped:
            helped[command] = CliRunner().invoke(lepton, ["process", command, "--help"]).output
        for option in [word for word in rest if word.startswith("--")]:
            assert option in helped[command], line
    assert set(helped) == {"show", "plan", "run", "memo"}
    assert all(option in helped["run"] + helped["memo"] for option in re.findall(r"`(--[a-z-]+)`", PAGE))
