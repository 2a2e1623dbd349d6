"""What a store promises of directories of files, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon
from test_file_tree import *  # noqa: F403

assert behind_a_daemon
