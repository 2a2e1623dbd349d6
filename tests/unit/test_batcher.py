"""Micro-batches: whatever requests come, are cancelled or fail, each is answered exactly once and by its own rows."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainers.serving.batcher import Answer, Batcher
from trainers.serving.refusal import Refused

BAD = 66.0


@dataclass(frozen=True)
class Asked:
    """A request of `rows` rows; it fails when `bad`, and is given up when `cancelled`."""

    rows: int
    bad: bool
    cancelled: bool


requests = st.lists(
    st.builds(Asked, st.integers(1, 7), st.sampled_from([False] * 5 + [True]), st.sampled_from([False] * 5 + [True])),
    max_size=25,
)


class Held:
    """A model that computes while the gate is open, and remembers its batches."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[float]] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.entered.set()
        assert self.gate.wait(60)
        self.batches.append(rows[:, 0].tolist())
        if bool((rows[:, 1] == BAD).any()):
            raise ValueError("a bad row")
        return rows * 2


@settings(deadline=None, max_examples=40)
@given(asked=requests, batch_rows=st.sampled_from([1, 4, 16]), open_after=st.integers(0, 25), closed=st.booleans())
def test_each_request_is_answered_once_and_by_its_own_rows(
    asked: list[Asked], batch_rows: int, open_after: int, closed: bool
) -> None:
    model = Held()
    batcher = Batcher(lambda: model, batch_rows=batch_rows, wait_s=0.0, queue_rows_max=10_000)

    async def everybody() -> list[Answer | BaseException]:
        tasks = []
        for number, one in enumerate(asked):
            if number == open_after:
                model.gate.set()
            rows = torch.full((one.rows, 2), float(number))
            rows[:, 1] = BAD if one.bad else 0.0
            tasks.append(asyncio.ensure_future(batcher.submit(rows)))
            await asyncio.sleep(0)  # so that it is in the queue
            if one.cancelled:
                tasks[-1].cancel()
        closing = threading.Thread(target=batcher.close if closed else lambda: None)
        closing.start()
        model.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        closing.join()
        return found

    try:
        answers = asyncio.run(everybody())
    finally:
        model.gate.set()
        batcher.close()
    assert batcher.waiting_rows == 0 and not batcher.alive
    for number, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        if one.cancelled:
            assert isinstance(answer, asyncio.CancelledError)
        elif one.bad:
            assert isinstance(answer, ValueError)
        else:
            assert isinstance(answer, Answer)
            assert torch.equal(answer.outputs[:, 0], torch.full((one.rows,), 2.0 * number))
            assert one.rows <= answer.batch_rows <= max(batch_rows, one.rows)
    for batch in model.batches:
        assert len(batch) <= max(batch_rows, max(one.rows for one in asked))


def test_a_closed_batcher_refuses_and_a_full_one_too() -> None:
    model = Held()
    batcher = Batcher(lambda: model, batch_rows=1, wait_s=0.0, queue_rows_max=3)

    async def fill() -> None:
        first = asyncio.ensure_future(batcher.submit(torch.zeros(1, 2)))
        while not model.entered.is_set():
            await asyncio.sleep(0)
        rest = asyncio.ensure_future(batcher.submit(torch.zeros(3, 2)))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await batcher.submit(torch.zeros(1, 2))
        assert refused.value.status == 429 and refused.value.retry_after_s
        model.gate.set()
        await asyncio.gather(first, rest)

    asyncio.run(fill())
    batcher.close()
    with pytest.raises(Refused) as refused:
        asyncio.run(batcher.submit(torch.zeros(1, 2)))
    assert refused.value.status == 503


def test_it_waits_for_company_as_long_as_it_is_told() -> None:
    """An hour, but for a full batch."""
    model = Held()
    model.gate.set()
    batcher = Batcher(lambda: model, batch_rows=4, wait_s=3_600.0, queue_rows_max=100)

    async def four() -> list[Answer]:
        return await asyncio.gather(*(batcher.submit(torch.full((1, 2), float(number))) for number in range(4)))

    assert {answer.batch_rows for answer in asyncio.run(four())} == {4}

    async def one() -> Answer:
        asked = asyncio.ensure_future(batcher.submit(torch.zeros(1, 2)))
        await asyncio.sleep(0)
        closing = threading.Thread(target=batcher.close)  # which waits for nobody's company any more
        closing.start()
        found = await asked
        closing.join()
        return found

    assert asyncio.run(one()).batch_rows == 1


def test_a_model_that_gives_another_number_of_rows_answers_nobody() -> None:
    batcher = Batcher(lambda: lambda rows: rows[:1], batch_rows=8, wait_s=0.0, queue_rows_max=100)
    with pytest.raises(RuntimeError, match="gave 1 rows for 3"):
        asyncio.run(batcher.submit(torch.zeros(3, 2)))
    batcher.close()


def test_a_model_that_cannot_be_made_is_an_error_of_the_maker() -> None:
    def make() -> Held:
        raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        Batcher(make, batch_rows=1, wait_s=0.0, queue_rows_max=1)
