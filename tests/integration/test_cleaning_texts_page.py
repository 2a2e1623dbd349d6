"""docs/cleaning-texts.md: its code runs, its file is a pipeline, and the checks and rules that it names are those that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.schema import text_field
from leptonstore.process.checks.text_quality import RULES
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import OPERATIONS
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "cleaning-texts.md").read_text()
STORY = "The old lighthouse keeper wrote a letter to {} every evening, because the ships had stopped coming to the bay."


def test_the_code_of_the_page_runs(
    store: Store, source_of: Callable[..., Source], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        STORY.format("his sister"),
        STORY.format("his brother") + " Call (212) 555-0123 or write to keeper@bay.example.com.",
        STORY.format("his brother") + " Call +1 650-253-0000, or write to keeper@bay.example.com!",
        "too short",
        "Это предложение написано не латинскими буквами и поэтому отбрасывается.",
        "Ceci est une phrase en français, avec assez de mots pour que la langue soit reconnue.",
    ]
    schema = pa.schema([pa.field("id", pa.int64(), False), text_field("text")])
    table = pa.table([pa.array(range(len(texts))), texts], schema=schema)
    write_dataset(store, "corpus", source_of(table, ("id",)))
    names: dict[str, object] = {"store": store}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    result = names["result"]
    assert isinstance(names["pipeline"], Pipeline)
    rows = store_rows(result)
    assert [row["id"] for row in rows] == [0, 1, 5]
    assert rows[1]["text"].endswith("Call [PHONE] or write to [EMAIL].")
    assert rows[2]["findings"] == ["text_language"]
    assert "near_duplicate_texts" in capsys.readouterr().out


def store_rows(result: object) -> list[dict[str, object]]:
    """All rows of a pipeline's result."""
    return [row for _, batch in result.dataset.iter_batches() for row in batch.to_pylist()]  # type: ignore[attr-defined]


def test_the_file_of_the_page_is_a_pipeline(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "corpus.toml").write_text(block)
    pipeline = Pipeline.from_toml(tmp_path / "corpus.toml")
    assert [one.name for one in pipeline.operations] == ["text.mask_pii", "check.near_duplicate_texts"]


def test_every_check_of_texts_and_every_rule_is_on_the_page() -> None:
    for name in OPERATIONS:
        if name.startswith("check.text_") or name in ("text.mask_pii", "check.near_duplicate_texts"):
            assert f"`{name}`" in PAGE, name
    shown = set(re.findall(r"`((?:gopher|c4)\.\w+)`", PAGE))
    between = {"gopher.top_3_words", *(f"gopher.repeated_{size}_words" for size in range(6, 10))}  # "2 to 4", "5 to 10"
    assert shown | between == set(RULES)
