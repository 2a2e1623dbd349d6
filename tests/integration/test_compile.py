"""torch.compile: the same training, resumed to the last bit, and one line where there is no compiler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_data import quick_config, write_patterns

from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers.loop import Trainer

LINEAR = {"model__reference": "trainers.models:linear", "model__params": {}, "compile": True}


@pytest.fixture(autouse=True)
def compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of another test's compilations, in memory or on disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++")
def test_a_compiled_model_trains_alike_and_resumes_exactly(store: Store) -> None:
    patterns = write_patterns(store)
    plain = Trainer(quick_config(**{**LINEAR, "compile": False}, epochs=2), store, patterns, run="plain").fit()
    config = quick_config(**LINEAR, epochs=2)
    whole = Trainer(config, store, patterns, run="whole").fit()
    Trainer(config, store, patterns, run="parts").fit(max_steps=7)
    parts = Trainer(config, store, patterns, run="parts").fit(resume=True)
    assert whole.val_loss == pytest.approx(plain.val_loss, abs=1e-5)
    assert (parts.val_loss, parts.history, parts.warnings) == (whole.val_loss, whole.history, [])


def test_a_compiler_that_is_missing_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(
        BadInput, match=r"torch.compile failed at step 1 of 15 .*: .*; train with compile = false"
    ) as caught:
        Trainer(quick_config(**LINEAR), store, write_patterns(store), run="run").fit()
    assert "\n" not in str(caught.value)
