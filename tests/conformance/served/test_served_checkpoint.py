"""What a store promises of checkpoints, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon, leave_out
from test_checkpoint import *  # noqa: F403

assert behind_a_daemon

leave_out(
    globals(),
    "packs, the index and gc are looked at where the store is",
    "test_a_corrupt_cell_is_named_and_the_checkpoint_before_is_there_on_request",
    "test_a_pack_that_is_gone_is_named_too",
    "test_a_state_that_did_not_change_adds_no_data_and_a_changed_row_one_cell",
    "test_what_garbage_collection_took_is_not_named_in_a_table",
    "test_what_one_process_put_is_spared_until_another_published_it",
    "test_what_retention_lets_go_is_freed_by_gc_and_the_rest_stays_whole",
)
