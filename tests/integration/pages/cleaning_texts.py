"""docs/cleaning-texts.md: six texts, one of each fault among them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from leptonstore.dataset.schema import text_field
from tests.integration.docs_blocks import Place

EXTRAS = ("daft",)
STORY = "The old lighthouse keeper wrote a letter to {} every evening, because the ships had stopped coming to the bay."


def setting(place: Place) -> Iterator[None]:
    texts = [
        STORY.format("his sister"),
        STORY.format("his brother") + " Call (212) 555-0123 or write to keeper@bay.example.com.",
        STORY.format("his brother") + " Call +1 650-253-0000, or write to keeper@bay.example.com!",
        "too short",
        "Это предложение написано не латинскими буквами и поэтому отбрасывается.",
        "Ceci est une phrase en français, avec assez de mots pour que la langue soit reconnue.",
    ]
    schema = pa.schema([pa.field("id", pa.int64(), False), text_field("text")])
    place.write("corpus", pa.table([pa.array(range(len(texts))), texts], schema=schema))
    place.names["store"] = place.store
    yield
    rows = place.names["result"].dataset.to_arrow().to_pylist()
    assert [row["id"] for row in rows] == [0, 1, 5]
    assert rows[1]["text"].endswith("Call [PHONE] or write to [EMAIL].")
    assert rows[2]["findings"] == ["text_language"]
    found = {one["check"] for one in place.names["result"].findings.to_pylist()}
    assert "near_duplicate_texts" in found
