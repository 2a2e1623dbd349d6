"""Every bound and default of the project, named once, with its unit and the reason for its value.

Growth laws: where a bound scales with the data, the comment says how.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# -- packs -------------------------------------------------------------------------------------------------------
# One pack is one object-store PUT and one gc unit. 64 MiB keeps requests per GB low and rewrites cheap (restic's
# default is 16 MiB, xet's xorb limit is 64 MiB).
PACK_BYTES_MAX = 64 * MIB
# Largest plain record. A reader allocates at most this much before the digest is checked.
CHUNK_BYTES_MAX = 16 * MIB
# Records of one pack; bounds what a footer may claim (64 bytes a row: 64 MiB / 64 is the ceiling that can exist).
PACK_RECORDS_MAX = PACK_BYTES_MAX // 64

# -- chunking ----------------------------------------------------------------------------------------------------
# Defaults of a new store; written in its config, never guessed again. Average piece = min + avg (FastCDC 2020, 3.4).
CHUNK_CUT_ABOVE_BYTES = 4 * MIB  # values up to this size stay whole
CHUNK_MIN_BYTES = 256 * KIB
CHUNK_AVG_BYTES = 1 * MIB
CHUNK_MAX_BYTES = 4 * MIB
# Pieces of one value: 2**18 pieces of 1 MiB are a value of 256 GiB, and its chunk list (40 bytes a piece) 10 MiB.
CHUNK_LIST_PIECES_MAX = 1 << 18

# -- codec -------------------------------------------------------------------------------------------------------
ZSTD_LEVEL = 3
ZSTD_LEVEL_RANGE = (1, 19)
# A zstd record must save at least 1/32 of its bytes, or it is stored raw and reads without decompression.
ZSTD_KEEP_RATIO = 31 / 32

# -- writing -----------------------------------------------------------------------------------------------------
IN_FLIGHT_BYTES_MAX = 64 * MIB  # plain bytes that wait to be encoded: enough to keep all cores busy, small in memory

# -- datasets ----------------------------------------------------------------------------------------------------
ROW_GROUP_ROWS_MIN = 1_000
ROW_GROUP_ROWS_AVG = 4_000  # expected size: min + the mean of a geometric distribution
ROW_GROUP_ROWS_MAX = 8_000
VALUE_INLINE_BYTES_MAX = 16 * KIB  # longer values are chunks of their own
PAGE_PART_BYTES = 64 * KIB  # variable-width pages above this are cut at row boundaries
NODE_FANOUT_AVG = 256  # children of an internal node, on average; 10^9 rows are three levels
NODE_FANOUT_MAX = 4_096
NODE_LEVEL_MAX = 16
COLUMNS_MAX = 4_096
TYPE_DEPTH_MAX = 32
COMMIT_BYTES_MAX = 16 * MIB  # schema and lineage; class names are the only part that grows
NAME_CHARS_MAX = 200

# -- log ---------------------------------------------------------------------------------------------------------
LOG_ENTRY_BYTES_MAX = 4 * MIB
LOG_SNAPSHOT_EVERY = 1_000  # entries between snapshots: opening reads one snapshot and fewer entries than this
LOG_APPEND_TRIES_MAX = 1_000  # lost races before a writer gives up: each loss means that another writer won
CONFIG_BYTES_MAX = 64 * KIB

# -- index -------------------------------------------------------------------------------------------------------
INDEX_MAP_BYTES = 1 * GIB  # first size of LMDB's map (address space, not memory); doubled when it is full
INDEX_READERS_MAX = 2_048

# -- images (decoding of files that we do not trust) ---------------------------------------------------------------
IMAGE_PIXELS_MAX = 178_956_970  # Pillow's own bound against decompression bombs (0.25 GiB of RGB)
IMAGE_FILE_BYTES_MAX = 256 * MIB
IDX_DIMENSIONS_MAX = 8

# -- import and export ---------------------------------------------------------------------------------------------
# One batch of an importer: memory is a few batches, however large the source is. A single larger row is a batch alone.
IMPORT_BATCH_ROWS_MAX = 4_096
IMPORT_BATCH_BYTES_MAX = 32 * MIB
CLASSES_MAX = 65_536  # class names stand in every commit's schema: about 1 MiB of 20-character names
FOLDER_DEPTH_MAX = 64  # directories inside each other, below the root of an image folder
CSV_BLOCK_BYTES = 8 * MIB  # types are inferred from the first block; also the longest row that a CSV may have

# -- loaders -----------------------------------------------------------------------------------------------------
ARENA_BYTES_MAX = 4 * GIB  # fixed-width columns up to this size become one contiguous array per process
PAGE_CACHE_BYTES = 512 * MIB  # decoded pages kept for columns that do not fit an arena
ORDER_ROWS_MAX = 1 << 48

# -- processing --------------------------------------------------------------------------------------------------
DECODE_BATCH_BYTES = 64 * MIB  # decoded images that a pipeline holds at a time
PREPARED_EDGE_MAX = 256  # pixels; what "most common size" is scaled down to: photographs are decoded for training
SPLIT_FRACTION = 0.2  # share of rows that goes to validation
HISTOGRAM_BINS = 32
COUNT_VALUES_BYTES_MAX = 4 * MIB  # values of a column that are counted at a time (numpy widens them eightfold)
REPORT_BYTES_MAX = 5 * MIB  # one HTML file that can be mailed; thumbnails shrink until it fits
REPORT_THUMBNAIL_EDGES = (96, 64, 40, 24)  # pixels, tried in this order
REPORT_SAMPLES_MAX = 50  # of the sample grid
REPORT_GALLERY_MAX = 24  # of every other gallery (findings, wrong answers, predictions)
REPORT_CLASSES_MAX = 40  # of charts and of the confusion matrix; more are told in numbers
REPORT_COLUMNS_MAX = 64
REPORT_TEXT_CHARS_MAX = 240  # of a name or value that came from the data
