"""What a store promises of reading, writing and picking rows, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon, leave_out
from test_dataset import *  # noqa: F403

assert behind_a_daemon

leave_out(
    globals(),
    "packs are looked at where the store is",
    "test_a_read_of_damaged_bytes_names_dataset_row_and_column",
)
