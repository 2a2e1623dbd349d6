"""What a store promises of adding, changing and dropping columns, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon
from test_columns import *  # noqa: F403

assert behind_a_daemon
