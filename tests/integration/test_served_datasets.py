"""What datasets promise of a store holds of a served one: tests of theirs, over again."""

from __future__ import annotations

from remote_conformance import behind_a_daemon, leave_out
from test_columns import *  # noqa: F403
from test_dataset import *  # noqa: F403
from test_edit import *  # noqa: F403
from test_file_tree import *  # noqa: F403
from test_filesystem import *  # noqa: F403
from test_history import *  # noqa: F403
from test_import_export import *  # noqa: F403

assert behind_a_daemon

leave_out(
    globals(),
    "packs, the index, gc and the log's own entries are looked at where the store is",
    "test_a_diff_reads_only_what_differs",
    "test_a_merge_has_two_parents_and_survives_gc",
    "test_a_read_of_damaged_bytes_names_dataset_row_and_column",
    "test_a_tag_is_one_also_when_the_store_is_opened_from_a_snapshot",
    "test_a_version_of_a_date_that_was_forgotten_is_told",
    "test_histories_that_forgot_where_they_parted_say_so",
    "test_merging_and_going_on_with_gc_in_between",
    "test_what_cannot_be_reverted_is_told",
)
leave_out(globals(), "a daemon's store has a name of plain letters", "test_a_store_with_odd_characters_in_its_path")
