"""What a store promises of loaders that read windows ahead, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon
from test_window_buffer import *  # noqa: F403

assert behind_a_daemon
