"""Bounds of maintenance, each with its unit and its reason."""

from __future__ import annotations

JOBS_AT_A_TIME_MAX = 4  # of one daemon: they share its cores with those who read and write
JOBS_KEPT = 100  # that have ended and are still listed: about a kilobyte each
JOB_BYTES_MAX = 4 * 1024  # of the document that says which job runs where
NOTE_CHARS_MAX = 500  # of what a job says of itself in a line
RECORD_BYTES_MAX = 256 * 1024  # of what is kept of the last job of a kind
FINDINGS_MAX = 100  # that are listed one by one: of about 300 bytes each; the others are counted
SCRUB_SAVE_S = 10.0  # between two notes of where a scrub is: so much is read again after a crash
SCRUB_BATCH_PACKS = 64  # after which a tier that did not answer is asked again
SCRUB_BYTES_PER_S = 8 * 1024 * 1024  # by default: 700 GB a day, of a disk that gives 100 MB/s or more
BYTES_PER_S_MAX = 1 << 40  # beyond that nothing is a pace
PACE_CREDIT_S = 1.0  # of reading that was not done in time, and may be made up for at once
MOVES_BATCH = 8  # packs that are moved between two looks whether to stop: 512 MiB at most
SNAPSHOTS_KEPT = 3  # of the log, by the index checkpoint: the newest may be damaged
SNAPSHOT_AFTER_ENTRIES = 100  # since the last one: a snapshot costs as much as some hundred entries of a small store
SCHEDULE_LOOK_S = 30.0  # between two looks at what is due
SCHEDULE_HOURS_MIN, SCHEDULE_HOURS_MAX = 0.01, 24.0 * 366
RETRY_AFTER_S = 3600.0  # a job that failed is tried again then, when its schedule is slower
CLOCK_SKEW_S = 600.0  # a last job that ended later than this in the future, by this clock, tells nothing
