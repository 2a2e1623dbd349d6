"""One thread of torch for small operators, and nobody else notices."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from loaders.transforms.openmp import one_thread  # noqa: E402


def test_inside_one_thread_and_afterwards_as_before() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread(torch):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_other_threads_and_later_ones_keep_their_number() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    with one_thread(torch):
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [before]
