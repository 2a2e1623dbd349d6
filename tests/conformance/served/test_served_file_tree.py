"""What a store promises of directories of files, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon, leave_out
from test_file_tree import *  # noqa: F403

assert behind_a_daemon

leave_out(globals(), "it makes a store beside this one", "test_only_what_changed_is_read_and_written")
