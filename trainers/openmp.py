"""Being a good neighbour on a busy machine: how long torch's idle CPU threads spin before they sleep.

torch splits each operator over OpenMP threads and waits for the last one. libgomp's idle threads spin for milliseconds by
default, on the cores that the one to wait for needs whenever anything else runs. Measured on two cores with the CNN of
the main job: alone, 20,000 turns are as fast as the default (63 to 65 against 66 to 69 us per row; 2,000 turns and
sleeping at once cost 77 to 120); beside one busy process they take 90 to 265 us where the default takes 525 to 950.
"""

from __future__ import annotations

import os
import sys

SPIN_TURNS = 20_000  # about 0.1 ms: longer than the gap between two operators, far shorter than a time slice


def spin_briefly() -> None:
    """For commands, before torch is imported: libgomp reads its environment once. What the user has set is kept."""
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_TURNS))
