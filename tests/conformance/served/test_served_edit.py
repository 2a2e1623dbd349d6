"""What a store promises of appending, updating and deleting rows, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon
from test_edit import *  # noqa: F403

assert behind_a_daemon
