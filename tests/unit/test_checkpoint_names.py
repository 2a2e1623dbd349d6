"""How a checkpoint is named on the command line."""

from __future__ import annotations

import pytest

from trainers.checkpoint.saved import run_and_step


@pytest.mark.parametrize("prefix", ["", "checkpoint/"])
def test_a_run_is_named_with_and_without_its_kind(prefix: str) -> None:
    """evaluate and predict want checkpoint/RUN; `deploy checkpoint/RUN` said that there is no such run."""
    assert run_and_step(f"{prefix}mine") == ("mine", None)
    assert run_and_step(f"{prefix}mine@step-000000012") == run_and_step(f"{prefix}mine@12") == ("mine", 12)
    with pytest.raises(ValueError):
        run_and_step(f"{prefix}mine@main")
