"""What a store promises of diff, merge, restore and tags, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon, leave_out
from test_history import *  # noqa: F403

assert behind_a_daemon

leave_out(
    globals(),
    "gc, and entries of the log that move no ref, are made where the store is",
    "test_a_diff_reads_only_what_differs",
    "test_a_merge_has_two_parents_and_survives_gc",
    "test_a_tag_is_one_also_when_the_store_is_opened_from_a_snapshot",
    "test_a_version_of_a_date_that_was_forgotten_is_told",
    "test_histories_that_forgot_where_they_parted_say_so",
    "test_merging_and_going_on_with_gc_in_between",
    "test_what_cannot_be_reverted_is_told",
)
