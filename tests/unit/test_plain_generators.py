"""States of random generators as text: what is drawn from them, and what is refused."""

from __future__ import annotations

import base64
import random
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loaders.plain import generators  # noqa: E402


def draws() -> list[float]:
    return [
        torch.rand(1).item(),
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
    ]


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


@pytest.mark.parametrize("before", range(4))
def test_a_block_draws_what_was_drawn_from_there_and_leaves_no_trace(before: int) -> None:
    seed(1)
    for _ in range(before):  # Gaussians come in twos: the second one waits
        draws()
    states = generators.take(generators.ALL)
    texts = {name: generators.text_of(state) for name, state in states.items()}
    assert all(len(text) < 5_000 for text in texts.values())
    expected = draws()
    seed(2)
    present = generators.take(generators.ALL)
    with generators.running_from({name: generators.bytes_of(text) for name, text in texts.items()}):
        assert draws() == expected
    assert generators.take(generators.ALL) == present


def test_only_what_is_named_is_set() -> None:
    seed(3)
    states = generators.take([generators.TORCH])
    expected = torch.rand(1)
    present = random.getstate()
    with generators.running_from(states):
        assert torch.equal(torch.rand(1), expected) and random.getstate() == present


def test_a_generator_of_ones_own() -> None:
    one = torch.Generator().manual_seed(4)
    torch.rand(3, generator=one)
    other = torch.Generator()
    generators.set_state(other, generators.get_state(one))
    assert torch.equal(torch.rand(2, generator=one), torch.rand(2, generator=other))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "not base64!",
        base64.b64encode(b"not zlib").decode(),
        base64.b64encode(zlib.compress(bytes(100_000))).decode(),
        base64.b64encode(zlib.compress(bytes(100))[:-3]).decode(),
        "A" * 100_000,
    ],
)
def test_texts_of_something_else_are_refused(text: object) -> None:
    with pytest.raises(ValueError):
        generators.bytes_of(text)


@pytest.mark.parametrize("name", generators.ALL)
def test_states_of_another_size_are_refused_and_change_nothing(name: str) -> None:
    present = generators.take(generators.ALL)
    for states in ({name: b"short"}, {"dice": present[name]}):
        with pytest.raises(ValueError):
            generators.require(states)
    assert generators.take(generators.ALL) == present
