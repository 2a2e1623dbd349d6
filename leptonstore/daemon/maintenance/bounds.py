"""Bounds of maintenance, each with its unit and its reason."""

from __future__ import annotations

JOBS_AT_A_TIME_MAX = 4  # of one daemon: they share its cores with those who read and write
JOBS_KEPT = 100  # that have ended and are still listed: about a kilobyte each
JOB_BYTES_MAX = 4 * 1024  # of the document that says which job runs where
NOTE_CHARS_MAX = 500  # of what a job says of itself in a line
