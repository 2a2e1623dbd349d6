"""Bounds of the dashboard, each with its unit and reason."""

from __future__ import annotations

from leptonstore.limits import KIB

# -- sessions ------------------------------------------------------------------------------------------------------
SESSIONS_MAX = 1_000  # of a daemon, some 500 bytes each; the one that was idle for longest ends first
SESSIONS_EACH_MAX = 20  # of one credential: browsers of a person, or tries of a script
SESSION_IDLE_S = 4 * 3_600  # a morning; after that somebody signs in again
SESSION_S = 24 * 3_600  # however busy it is
CODE_S = 600  # that a one-time code waits for somebody to open the URL that was printed
CODES_MAX = 16

# -- requests ------------------------------------------------------------------------------------------------------
FORM_BYTES_MAX = 16 * KIB  # the largest form makes a token: a name and some datasets
FORM_FIELDS_MAX = 64
WHERE_CHARS_MAX = 2_000  # of a condition
QUERY_CHARS_MAX = 16 * KIB  # of a condition and row numbers
THREADS = 4  # that read the store for pages: a page reads tens of rows, and data planes come first
WAITING_MAX = 32  # requests that wait for one of them; more are told to come again
PAGE_S = 15.0  # that a page may take; the thread ends its read, its answer is thrown away
SEARCH_S = 3.0  # that a condition is looked for in one request; the page says how far it came, and goes on from there

# -- what a page shows ---------------------------------------------------------------------------------------------
NAMES_PAGE = 100  # datasets, models or checkpoints in one list
VERSIONS_PAGE = 50  # of a history
ROWS_PAGE = 48  # rows of the sample browser: divisible by 2, 3, 4 and 6 columns of pictures
SEARCH_STEP_ROWS = 65_536  # looked through before the clock is
CELL_CHARS_MAX = 160  # of a value in a table
TEXT_CHARS_MAX = 600  # of a text in the sample browser; its row's page has more
VALUE_CHARS_MAX = 100_000  # of a text on a row's page
LIST_VALUES_MAX = 256  # of a list or a tensor on a row's page
THUMBNAIL_EDGE = 192  # pixels: twice what the sample browser draws, for dense screens
COLUMNS_MAX = 12  # of a table of rows; the others are on a row's page
SCHEMA_COLUMNS_MAX = 500  # that a version's page lists
LINEAGE_LINKS_MAX = 40
LINEAGE_ENTRIES_MAX = 60
DIFF_ROWS = 30  # of each kind of change that a diff shows with values
DIFF_S = 5.0  # that counting a difference may take; the page then tells what it has
VALUE_BYTES_MAX = 64 << 20  # of one value that is sent as a file
REFS_MAX = 100  # branches and tags that a history lists
CLIENTS_MAX = 50
JOBS_MAX = 50
AUDIT_LINES = 200
TOKENS_MAX = 500

# -- figures of the whole store ------------------------------------------------------------------------------------
REFRESH_S = 1.0  # between two looks at the log for pages
USAGE_EVERY_S = 60.0  # between two measurements of all bytes, and at least 20 times as long as the last one took
USAGE_ROWS_MAX = 100_000_000  # of all names together; more are measured by `lepton du` when somebody wants to know
STATS_ROWS_MAX = 10_000_000  # of a version whose columns are measured for its page: each chunk of it is looked up once
STATS_KEPT = 256  # versions whose measures are kept, some KiB each; a version never changes
STATS_WAITING_MAX = 8
STATS_WAIT_S = 0.25  # that a page waits for them: small versions are shown whole at once
KEPT = 256  # histories, lists of refs, lineages and commits that were read lately
PARENTS_KEPT = (
    100_000  # versions whose parents are kept, some 300 bytes each: lines of long histories are drawn from them
)
