"""How much runs at once: bounded, first come first served, and nobody waits without end."""

from __future__ import annotations

import threading

import pytest

from leptonstore.daemon.admission import Admission
from leptonstore.errors import TooBusy


def test_no_more_than_the_bound_are_inside_and_all_get_in() -> None:
    admission = Admission("things", 3, 100, 60.0)
    inside, most, guard = 0, 0, threading.Lock()
    done = []

    def work(number: int) -> None:
        nonlocal inside, most
        for _ in range(50):
            with admission.place():
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert sorted(done) == list(range(16))
    assert (admission.inside, admission.waiting) == (0, 0)


def test_who_came_first_is_served_first() -> None:
    admission = Admission("things", 1, 100, 60.0)
    order: list[int] = []
    admission.enter()
    threads = []
    for number in range(8):

        def work(number: int = number) -> None:
            with admission.place():
                order.append(number)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while admission.waiting <= number:  # it stands in the queue before the next one comes
            pass
    admission.leave()
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_long_queue_refuses_at_once_and_a_long_wait_in_time() -> None:
    admission = Admission("things", 1, 1, 0.05)
    admission.enter()
    with pytest.raises(TooBusy, match="busy with other things"):
        admission.enter()  # waits for 0.05 s
    slow = Admission("things", 1, 0, 60.0)
    slow.enter()
    with pytest.raises(TooBusy, match="wait already"):
        slow.enter()
    admission.leave()
    admission.enter()  # who gave up has taken no place with them
    assert admission.inside == 1
