"""Ports of tests (leptonstore/testing/ports.py)."""

from __future__ import annotations

import random

from leptonstore.testing.ports import PORT_END, PORT_MIN, free_ports


def test_processes_that_were_seeded_alike_draw_other_ports() -> None:
    state = random.getstate()
    try:
        random.seed(7)
        one = free_ports(4)
        random.seed(7)
        other = free_ports(4)
    finally:
        random.setstate(state)
    assert one != other
    assert all(PORT_MIN <= port < PORT_END for port in one + other) and len(set(one)) == len(set(other)) == 4
