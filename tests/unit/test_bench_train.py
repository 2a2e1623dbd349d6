"""What bench.train makes of the runs: medians, times to the target, and which bounds hold."""

from __future__ import annotations

from typing import Any

import pytest

from bench.train import NEVER_S, TARGET, figures_of, peers_of, seconds_to


def run(*evaluations: tuple[float, float, float], **more: float) -> dict[str, Any]:
    """A run by (epoch, seconds, accuracy) of its evaluations."""
    keys = ("epoch", "seconds", "accuracy")
    return {"evaluations": [dict(zip(keys, one, strict=True)) for one in evaluations], **more}


def ours(*evaluations: tuple[float, float, float]) -> dict[str, Any]:
    return run(*evaluations, data_wait=0.004, us_per_sample=70.0)


QUICK = ours((0.5, 2, 0.95), (1, 4, 0.975), (1.5, 6, 0.985), (2, 8, 0.986))
NEVER = ours((1, 4, 0.9), (2, 8, 0.91))
KERAS = run((1, 10, 0.979), (2, 20, 0.985))
SLOW_KERAS = run((1, 10, 0.979), (2, 20, 0.983), (3, 30, 0.9837))


def figures(fast: list[Any], keras: list[Any]) -> dict[str, Any]:
    found = figures_of({"fast": fast, "equal": [QUICK], "keras": keras, "torch": [KERAS]})
    return {figure.name: figure for figure in found}


def test_the_time_is_that_of_the_first_evaluation_that_is_good_enough() -> None:
    assert seconds_to(QUICK, TARGET, 99) == 6
    assert seconds_to(SLOW_KERAS, TARGET, 99) == 30
    assert seconds_to(NEVER, TARGET, 99) == 99


def test_medians_of_seeds_stand_beside_the_peers() -> None:
    found = figures([QUICK, QUICK, NEVER], [KERAS, SLOW_KERAS, SLOW_KERAS])
    fast = found["time to 98.37% vs keras"]
    assert (fast.value, fast.peer_value, fast.holds) == (6, 30, True)
    equal = found["equal recipe vs keras"]
    assert (equal.value, equal.peer_value, equal.holds) == (8, 20, True)
    assert found["equal recipe vs torch"].ratio == 8 / 20
    assert found["keras, epochs needed"].value == 3


def test_a_target_that_most_seeds_never_reach_fails_the_bound() -> None:
    fast = figures([QUICK, NEVER, NEVER], [KERAS])["time to 98.37% vs keras"]
    assert fast.value == NEVER_S and fast.holds is False


def test_another_peer_is_refused() -> None:
    assert peers_of("keras,torch") == ["keras", "torch"] and peers_of("") == []
    with pytest.raises(Exception, match="'jax' is none of keras, torch"):
        peers_of("jax")
