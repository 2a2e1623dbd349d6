"""docs/tasks.md: texts, patterns, and a deployed model of these."""

from __future__ import annotations

from collections.abc import Iterator

from tests.integration.docs_blocks import Place
from tests.integration.task_data import write_texts
from tests.integration.training_data import quick_config, write_patterns
from trainers.deploy import deploy
from trainers.loop import Trainer


def setting(place: Place) -> Iterator[None]:
    store = place.store
    write_texts(store)
    Trainer(quick_config(), store, write_patterns(store), run="run").fit(max_steps=2)
    deploy(store, "run", "my-model")
    place.names["store"] = store
    yield
    assert place.names["trainer"].task.describe().startswith("language modelling: column 'tokens', bytes, 32 at a time")
    assert place.names["config"].not_reproducible == ["model", "loss"]
    assert (place.folder / "page.html").exists()
