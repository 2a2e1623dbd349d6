"""What a store promises of files in and out, of a served one."""

from __future__ import annotations

from remote_conformance import behind_a_daemon
from test_import_export import *  # noqa: F403

assert behind_a_daemon
