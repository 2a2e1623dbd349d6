"""What a store promises of lepton:// URLs, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon, leave_out
from test_filesystem import *  # noqa: F403

assert behind_a_daemon

leave_out(
    globals(),
    "a daemon's URL is no path: what is wrong with it is said in other words, and it has a name of plain letters",
    "test_a_store_is_a_directory_of_versions",
    "test_a_store_with_odd_characters_in_its_path",
)
