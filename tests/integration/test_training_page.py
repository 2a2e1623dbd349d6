"""docs/training.md: its code runs, its TOML is a configuration, and its keys are those that there are."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("torch")

from training_data import write_patterns

from leptonstore.store import Store
from trainers.config import TrainConfig, from_dict

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_code_of_the_page_runs(store: Store) -> None:
    names: dict[str, object] = {"store": store, "ds": write_patterns(store)}
    for block in blocks("python"):
        exec(block, names)


def test_the_toml_of_the_page_is_a_configuration() -> None:
    (text,) = blocks("toml")
    config = from_dict(tomllib.loads(text))
    assert (config.schedule.name, config.model.params, config.checkpoint.keep_best) == ("cosine", {"hidden": 64}, 2)


def test_every_key_is_on_the_page() -> None:
    for part in dataclasses.fields(TrainConfig):
        assert f"`{part.name}" in PAGE or part.name in ("epochs", "seed", "device", "threads"), part.name
