"""No order of events loses a chunk, as far as the model goes; and the search sees it when a rule is broken."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from .gc_model import FAULTS, Result, Scenario, explore
from .gc_scenarios import FOUND_IN, SCENARIOS

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
ACTIONS = {
    # writers, and those who make refs
    "begins",
    "has() finds it",
    "has() finds nothing",
    "uploads a pack",
    "replays",
    "replays and validates",
    "finds chunks gone",
    "gives up: CommitExpired",
    "gives up: its ref was removed",
    "loses the slot",
    "lists packs",
    "lists packs, the answer is lost",
    "commits",
    "commits, the answer is lost",
    "reads back its write id",
    "deletes a ref",
    "forgets history",
    # readers
    "reads a ref",
    "creates a lease",
    "reads the log again and opens",
    "reads the log again: too late",
    "closes",
    # garbage collection
    "lists files",
    "reads the log",
    "reads leases",
    "has nothing to collect",
    "FENCE",
    "RESCUE",
    "REMOVE",
    "is overtaken",
    "sends deletes",
    "a delete arrives",
    # anybody
    "crashes",
}


@cache
def searched(scenario: str) -> Result:
    """The whole search with the right rules: several tests look at it."""
    return explore(BY_NAME[scenario])


def told(trace: tuple[str, ...] | None) -> str:
    """For an assertion's message."""
    return "a chunk is lost:\n    " + "\n    ".join(trace or ())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_order_of_events_loses_a_chunk(scenario: Scenario) -> None:
    result = searched(scenario.name)
    assert result.trace is None, told(result.trace)
    assert result.states >= scenario.states_min, "the search visits fewer states than it did: which action is gone?"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_loses_a_chunk_and_the_search_finds_it(fault: str) -> None:
    result = explore(BY_NAME[FOUND_IN[fault]], frozenset({fault}))
    assert result.trace is not None, f"not found in {result.states} states: {FAULTS[fault]}"
    # Breadth first finds the shortest way: every step in it is needed, and none can be the last of a safe one.
    assert 5 <= len(result.trace) <= 20, told(result.trace)
    assert result.actions["commits"] + result.actions["reads a ref"] + result.actions["REMOVE"] > 0, told(result.trace)


def test_every_action_happens() -> None:
    happened: Counter[str] = Counter()
    for scenario in SCENARIOS:
        for label, times in searched(scenario.name).actions.items():
            for action in label.split(" + "):
                happened[action] += times
    assert set(happened) == ACTIONS


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="no such fault"):
        explore(SCENARIOS[0], frozenset({"no fense"}))
