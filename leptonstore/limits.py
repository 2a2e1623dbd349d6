"""Every bound and default of the project, named once, with its unit and the reason for its value.

Growth laws: where a bound scales with the data, the comment says how.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# -- what people say (quantities.py) -------------------------------------------------------------------------------
QUANTITY_MAX = 1 << 62  # bytes or seconds: what is larger is a typing error, and fits no signed 64-bit field
LIFETIME_S_MAX = 300 * 365 * 86_400  # of a token

# -- packs -------------------------------------------------------------------------------------------------------
# One pack is one object-store PUT and one gc unit. 64 MiB keeps requests per GB low and rewrites cheap (restic's
# default is 16 MiB, xet's xorb limit is 64 MiB).
PACK_BYTES_MAX = 64 * MIB
# Largest plain record. A reader allocates at most this much before the digest is checked.
CHUNK_BYTES_MAX = 16 * MIB
# Records of one pack; bounds what a footer may claim (64 bytes a row: 64 MiB / 64 is the ceiling that can exist).
PACK_RECORDS_MAX = PACK_BYTES_MAX // 64

# Salvage checks at most so many times the bytes of a pack in vain before it gives up (see format.pack.salvage).
SALVAGE_CRC_FACTOR = 8

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
ZSTD_LARGE_BYTES = 256 * KIB  # records from this size on get faster parameters at level 3 (codec.py)
ZSTD_LEVEL_RANGE = (1, 19)
# A zstd record must save at least 1/32 of its bytes, or it is stored raw and reads without decompression.
ZSTD_KEEP_RATIO = 31 / 32
ZSTD_BYTES_MIN = 32  # a frame costs about 10 bytes: nothing up to this size is tried
# Large data is probed in a few windows before all of it is compressed: 30 us instead of about 600 us for 1 MiB of JPEG.
PROBE_ABOVE_BYTES = 128 * KIB
PROBE_WINDOWS = 8
PROBE_WINDOW_BYTES = 4 * KIB
PROBE_WINDOW_RATIO = 0.9  # one window under this, and all of it is compressed
PLANES_SAMPLE_BYTES = 64 * KIB  # on which byte planes are compared with plain zstd
# Dictionaries. zstd's own default is 110 KiB; beyond 64 KiB JSON records of 1 KB gained nothing here.
DICTIONARY_BYTES_MAX = 112 * KIB  # what a reader accepts
DICTIONARY_TRAINED_BYTES_MAX = 64 * KIB  # what is trained: at most 1/8 of the samples (zstd advises 1/100 to 1/10)
DICTIONARY_RECORD_BYTES_MAX = 16 * KIB  # larger records have context enough of their own
DICTIONARY_RECORDS_MIN = 32  # fewer records are not trained on: a flush of a few values must not wait
DICTIONARY_BATCH_BYTES_MIN = 16 * KIB  # less could not pay for a dictionary
DICTIONARY_SAMPLE_BYTES_MAX = 512 * KIB  # that are trained on, of a batch: 30 ms; more gained nothing
DICTIONARY_REST = 2  # batches between two attempts: a mixture (a tree of sources) would be trained on for every batch
DICTIONARY_TEST_EVERY = 8  # of the records of a batch, one in this many is held out, to see whether a dictionary pays
DICTIONARY_TRUST = 4  # batches that take over the dictionary of the one before without testing it
DICTIONARY_GAIN_MIN = 0.05  # a dictionary that saves less than this share of the bytes is not used
DICTIONARY_DRIFT = 1.3  # retrained when records come out this much larger than those it was tested on
DICTIONARY_BACKOFF_MAX = 64  # batches without an attempt after attempts that failed (doubling from 1)
# Groups: chunks under 4 KiB that were put one after another are one record, decoded as a whole: 15 us for 16 KiB. It divides what
# a record costs beside its payload (64 bytes of header) by their number, and they are context for each other.
GROUP_MEMBER_BYTES_MAX = 4 * KIB - 1  # of a chunk that may join a group
GROUP_BYTES_MAX = 16 * KIB
SHELF_BYTES = 1 * MIB  # of small records that are encoded, and trained on, together
# Kept by a reader: 64 KiB and what zstd prepares from it, in each thread. 64 MiB are the dictionaries of about 10^4 packs of
# one kind of data (packs share them), or of 150 packs that share none.
DICTIONARY_CACHE_BYTES = 64 * MIB
OPENED_PACKS_MAX = 1_024  # small objects and the last group that was read, 16 KiB

# -- writing -----------------------------------------------------------------------------------------------------
APPEND_BUFFER_BYTES = 4 * MIB  # of a pack that is written at a time, by a thread of its own; two buffers a pack
APPEND_BUFFERS_SPARE_MAX = 4  # of a process, kept for the next pack: what a writer has at work (data and metadata)
IN_FLIGHT_BYTES_MAX = 64 * MIB  # plain bytes that wait to be encoded: enough to keep all cores busy, small in memory

# -- datasets ----------------------------------------------------------------------------------------------------
ROW_GROUP_ROWS_MIN = 1_000
ROW_GROUP_ROWS_AVG = 3_000  # expected size: min + the mean of a geometric distribution; one in 33 is cut by the maximum
ROW_GROUP_ROWS_MAX = 8_000
VALUE_INLINE_BYTES_MAX = 16 * KIB  # longer values are chunks of their own
# Variable-width pages above this are cut at row boundaries into parts of about this size: an edit writes about two of them. Larger
# ones compress hardly better (decisions/0019).
PAGE_PART_BYTES = 24 * KIB
# Elements of a page that take no byte of it (empty structs and lists of them); all others are bounded by its length.
PAGE_EMPTY_ELEMENTS_MAX = 1 << 20
NODE_FANOUT_AVG = 256  # children of an internal node, on average; 10^9 rows are three levels
NODE_FANOUT_MAX = 4_096
NODE_LEVEL_MAX = 16
# Of a keyed table. Of a child's greatest key its node has this much: 256 children take 28 KiB at most; keys that agree in so many bytes
# cost a search one leaf more.
NODE_KEY_BYTES_MAX = 64
# Rows that are sorted by key in memory at a time. n bytes make n / SORT_BYTES runs on disk, and merging holds a block of each: 1 GiB for
# 64 GB that are sorted; let the runs grow with sqrt(n) beyond that.
SORT_BYTES = 64 * MIB
SORT_BLOCK_BYTES = 1 * MIB
KEY_BYTES_MAX = 1 * KIB  # of one row's key, all of its columns together
COLUMNS_MAX = 4_096
TYPE_DEPTH_MAX = 32
CONDITION_DEPTH_MAX = 800  # of an SQL condition (so many parts of AND, too): Arrow recurses without a bound
COMMIT_BYTES_MAX = 16 * MIB  # schema and lineage; class names are the only part that grows
NAME_CHARS_MAX = 200

# -- history -----------------------------------------------------------------------------------------------------
# Rows of each side that are aligned at a time where two versions differ: 100 bytes a row. Where more rows in a stretch have other
# identity columns, they are aligned piece by piece: then rows may be told as removed here and added there. With a key all are aligned
# at a time: memory grows with the longest stretch.
DIFF_ALIGN_ROWS_MAX = 1 << 21
DIFF_GROUPS_HELD = 256  # row group nodes of each version that are kept: about 1 KiB a column
DIFF_PAGES_BYTES = 64 * MIB  # decoded pages of each version that are kept
DIFF_BATCH_ROWS = 1_024  # changes whose values are read at a time
MERGE_CONFLICTS_MAX = 1_000  # that are listed one by one; the others are counted

# -- log ---------------------------------------------------------------------------------------------------------
LOG_ENTRY_BYTES_MAX = 4 * MIB
LOG_SNAPSHOT_EVERY = 1_000  # entries between snapshots: opening reads one snapshot and fewer entries than this
LOG_APPEND_TRIES_MAX = 1_000  # lost races before a writer gives up: each loss means that another writer won
CONFIG_BYTES_MAX = 64 * KIB

# -- full disks and checks -----------------------------------------------------------------------------------------
QUOTA_BYTES_MAX = 1 << 60
QUOTA_LOOK_UPS = 65_536  # chunks of a dataset whose places are looked up together: some MiB
RESERVE_BYTES = 4 * MIB  # given back when gc finds the disk full: its log entries (at most LOG_ENTRY_BYTES_MAX) fit
CHECK_WINDOW_BYTES = 4 * MIB  # of a pack that one thread of `check --read-data` holds (more for a single larger record)
CHECK_PROBLEMS_MAX = 10_000  # findings that are listed one by one; the others are counted
SEEN_MAX = 2 << 20  # digests that a walk over all versions remembers: about 200 MB
PLACES_MAX = 20  # rows named for one finding: enough to see what it is about
SPILL_BYTES = 32 * MIB  # of sorted working data that is kept in memory before it goes to a temporary file

# -- encryption --------------------------------------------------------------------------------------------------
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 17, 8, 1  # 128 MiB and about 0.3 s for each guess of a passphrase (OWASP, 2023)
# What a key document may ask of its reader: an attacker may have written it.
SCRYPT_MEMORY_BYTES_MAX = 1 * GIB
SCRYPT_WORK_MAX = 1 << 24  # n * r * p: 16 times the default
KEY_DOCUMENT_BYTES_MAX = 16 * KIB
KEYS_MAX = 64  # key documents of a store: a wrong passphrase costs one scrypt for each
SECRET_BYTES_MAX = 1 * MIB  # of a passphrase or key file
KEY_FILE_BYTES_MIN = 32  # a key file is used as it is, without scrypt: it must be random
KEY_LABEL_CHARS_MAX = 200

# -- garbage collection --------------------------------------------------------------------------------------------
GC_PACKS_PER_ENTRY_MAX = 100_000  # 35 bytes each: an entry stays under LOG_ENTRY_BYTES_MAX; more take another round
GC_ROUNDS_MAX = 1_000  # a round ends with an entry, or because another gc made one: somebody always gets on
GC_KEY_BYTES = 16  # of a digest, in the sorted runs: two that share 128 bits cost more work than there is
# A pack with a smaller live share is rewritten: at one half, a byte is written for each byte freed, and waste stays under live.
GC_REPACK_SHARE = 0.5
GC_SMALL_PACK_BYTES = PACK_BYTES_MAX // 4
GC_SMALL_PACKS_MIN = 16  # as many small packs of one content are merged: each byte moves about log16(packs) times
PURGE_ROUNDS_MAX = 4  # collections of an erasure: one, and as many more as others write garbage meanwhile
# Of one erasure: the mapping from old to new versions (140 bytes each) and the refs that move (400 bytes each) stand in one log entry.
ERASE_VERSIONS_MAX = 20_000
ERASE_REFS_MAX = 3_000
# What is searched for after an erasure: values of this many bytes and more; shorter ones are found everywhere, whoever wrote them.
SEARCH_BYTES_MIN = 8
SEARCH_DISTINCT_MIN = 4  # different bytes in it: zeros are found everywhere, too
# A longer value is searched for by blocks of this size (at least one of which lies whole in any piece that it was cut into).
SEARCH_BLOCK_BYTES = 4 * KIB
SEARCH_PATTERNS_BYTES_MAX = (
    256 * MIB
)  # of all patterns, held in memory; of values beyond that the proof is the structural one
SEARCH_WINDOWS_MAX = 1 << 20  # 8-byte windows of all patterns that are compared to choose rare ones: 0.5 s
WRITER_CLAIMS_BYTES_MAX = 64 * MIB  # 34 bytes a pack: 2 million packs, 128 TiB by one writer
LEASE_BYTES_MAX = 4 * KIB

# -- index -------------------------------------------------------------------------------------------------------
INDEX_MAP_BYTES = 1 * GIB  # first size of LMDB's map (address space, not memory); doubled when it is full
INDEX_READERS_MAX = 2_048
INDEX_STRIPES = 7  # reader slots of one process, so 2,048 are enough for 290 processes; prime, to spread threads evenly
INDEX_PACK_NAMES_MAX = 65_536  # pack ids that a process keeps as text, about 100 bytes each
INDEX_GET_BATCH = 65_536  # look-ups in one read transaction: about 0.1 s
INDEX_ITEMS_BATCH = 8_192  # rows that an iteration copies in one read transaction
# Filling it: packs' footers are read ahead by this many threads (a footer is 64 bytes a record), and sorted in batches of
# about 20 MiB, of which a few copies exist at a time. More rows than one batch go to sorted runs in a temporary file (60 bytes
# a row) that are merged: with n rows, n / INDEX_BATCH_ROWS runs and as many parts; at 10^9 rows, let the batch grow with sqrt(n).
INDEX_FOOTER_THREADS = 8
INDEX_BATCH_ROWS = 250_000
INDEX_COMMIT_ROWS = 16_384  # rows changed in one write transaction; each may touch a page of 4 KiB, so 64 MiB of memory

# -- object stores -------------------------------------------------------------------------------------------------
OBJECT_PART_BYTES = 8 * MIB  # of a multipart upload (S3 wants 5 MiB at least); a pack of one part is one PUT
OBJECT_PARTS_IN_FLIGHT = 4  # of one pack
OBJECT_THREADS = 16  # of a tier, for uploads and for ranges that are read at a time
OBJECT_CREATE_TRIES = 5  # of a conditional create that the server calls a conflict although nothing is there
# Time. A request that fails is repeated with exponential backoff and jitter, up to RETRIES_MAX times and no longer than RETRY_S; so
# an error is told after RETRY_S + STALL_S at most, and after about 20 s when nobody listens.
OBJECT_CONNECT_S = 5.0
OBJECT_STALL_S = 30.0  # without a byte; a part has to be sent in it: 280 KB/s
OBJECT_REQUEST_S = 120.0  # all of a request: 64 MiB at 560 KB/s
OBJECT_RETRY_S = 60.0
OBJECT_RETRIES_MAX = 8
OBJECT_BACKOFF_S_MAX = 5.0
# Who is alive is told by renewed objects (tiers/object_locks.py), with the server's clock, which has whole seconds. Ten renewals must fail
# before somebody is taken for dead.
LOCK_RENEW_S = 60.0
LOCK_DEAD_S = 600.0
FOOTER_TAIL_BYTES = (
    64 * KIB
)  # read of a pack's end in one request: the footer of 1,000 records, which most packs of large values have
UPLOAD_STALE_S = 3 * 86_400.0  # a multipart upload that began before that has no writer any more
# Ranges of one pack that are read together: on a link of 100 MB/s and 10 ms a request, 1 MiB in vain costs as much as a request.
RANGE_GAP_BYTES = 1 * MIB
WINDOW_BYTES = OBJECT_PART_BYTES  # requests for long stretches end where the parts of an upload do (tiers/windows.py)
# Of a window, from which on all of it is fetched: readers that want so much in one place come back for the rest (writers fill several packs
# at a time, so a scan meets each window in a few stretches). Reads in random order hardly ever want so much of one.
WINDOW_WANTED_SHARE = 1 / 8
WINDOWS_MAX = 8  # the latest, that a tier keeps: 64 MiB
# Reading ahead where one record after the other is asked for. Two reads in a row must follow others within the gap: reads in random
# order of a pack of 64 MiB do that once in 10,000 times.
READ_AHEAD_WINDOWS_MAX = 4  # 32 MiB: 640 MB/s where a request takes 50 ms
# Several ranges of so many bytes together are no part of a longer read: a scan asks for SCAN_SLICE_BYTES, a loader's window for 32 MiB at a
# time (with reading ahead, windows of 512 values of 50 KB fetched 1.48 times their bytes, without 1.13).
READ_AHEAD_BELOW_BYTES = 24 * MIB
READ_AHEAD_GAP_BYTES = 64 * KIB
READ_AHEAD_PACKS_MAX = 256  # whose readers are remembered, a few hundred bytes each
READ_TOGETHER_BYTES = (
    64 * MIB
)  # of records that one caller reads at a time: enough requests to fill a link of 100 ms and 5 Gbit/s

# Large values of a slice of a scan, in bytes, and the memory that holds them: a few slices under way fill a long link.
SCAN_SLICE_BYTES = 15 * MIB + 512 * KIB
SCAN_SLAB_BYTES = 16 * MIB

# -- images (decoding of files that we do not trust) ---------------------------------------------------------------
IMAGE_PIXELS_MAX = 178_956_970  # Pillow's own bound against decompression bombs (0.25 GiB of RGB)
IMAGE_FILE_BYTES_MAX = 256 * MIB
SOURCE_DIGEST_BYTES_MAX = 1 * GIB  # of one import: its files are read once more for their digests, some 0.4 s a GiB
IDX_DIMENSIONS_MAX = 8

# -- directories of files --------------------------------------------------------------------------------------
TREE_INLINE_BYTES_MAX = 4 * KIB - 1  # longer files are chunks of their own: an edit writes the file, not its neighbours
TREE_PART_BYTES = 7_680  # pages of small files and of references: with their header 16 KiB at most (twice this)
READ_JOB_BYTES = 1 * MIB  # small files that one thread reads in a row
SMALL_FILES_MIN = 2_000  # from this many inlined files on, processes of their own read them; starting those takes 20 ms
SMALL_FILES_JOB = 512  # files that such a process is asked for at a time
READ_WINDOW_BYTES = 8 * MIB  # of a large file that is read at a time
EXPORT_FORK_ROWS = (
    1_000  # trees from so many entries or bytes on are exported by several processes where that is possible
)
EXPORT_UNITS = 16  # shares that each of them gets one after another
EXPORT_FORK_BYTES = 16 * MIB
EXPORT_WINDOW_BYTES = 4 * MIB  # of a large file that is decoded at a time; two windows and a piece each are in memory
EXPORT_HOLE_BYTES = 64 * KIB  # blocks of zeros, at multiples of this, become holes
DIRECT_READ_BYTES_MIN = 64 * KIB  # records from this size on, when they are read once, bypass the page cache
DIRECT_WRITE_BYTES_MIN = 256 * KIB  # files from this size on bypass the page cache where the filesystem lets them

# -- import and export ---------------------------------------------------------------------------------------------
# One batch of an importer: memory is a few batches, however large the source is. A single larger row is a batch alone.
IMPORT_BATCH_ROWS_MAX = 4_096
IMPORT_BATCH_BYTES_MAX = 32 * MIB
CLASSES_MAX = 65_536  # class names stand in every commit's schema: about 1 MiB of 20-character names
FOLDER_DEPTH_MAX = 64  # directories inside each other, below the root of an image folder
CSV_BLOCK_BYTES = 8 * MIB  # types are inferred from the first block; also the longest row that a CSV may have
JSON_BLOCK_BYTES = 4 * MIB  # lines that are parsed at a time; types are inferred from the first block
JSON_LINE_BYTES_MAX = 256 * MIB  # a line stands in memory as a whole, a few times over
JSON_DEPTH_MAX = TYPE_DEPTH_MAX
SOURCE_VALUE_BYTES_MAX = 256 * MIB  # one file in a tar, one value of an MDS sample: it stands in memory as a whole
# Numbers that nulls of a tensor or list of one length take, in one batch: a null is a few bytes in a file, and a whole row here.
SOURCE_NULL_VALUES_MAX = 1 << 26
SOURCE_INDEX_BYTES_MAX = 64 * MIB  # of an index of foreign shards (MDS): 300 bytes a shard, 200,000 shards
SOURCE_SHARDS_MAX = 1_000_000  # that a pattern such as {000000..000999} may stand for
SOURCE_HEADER_BYTES_MAX = 16 * MIB  # of a safetensors file: 100 bytes a tensor
NPY_HEADER_BYTES_MAX = 10_000  # numpy's own bound; longer literals can crash the parser of Python
TAR_HEADER_BYTES_MAX = 1 * MIB  # of an extended header of a tar: a path is 4 KiB
WDS_PROBE_BYTES = 32 * MIB  # of samples that are looked at to tell the columns of a WebDataset
WDS_PROBE_ROWS = 1_000
EXPORT_SHARD_BYTES = 64 * MIB  # of WebDataset and MDS: MDS's own default; one shard is written (or repeated) at a time
EXPORT_ARROW_SHARD_BYTES = 512 * MIB  # of a Hugging Face dataset: its own default
EXPORT_JOURNAL_BYTES_MAX = 64 * MIB
PLACE_READ_BYTES = 4 * MIB  # of a file behind a URL that one request asks for
PLACE_WINDOWS_AHEAD = 4  # such reads that are under way when a file is read from beginning to end: 16 MiB

# -- notebooks -----------------------------------------------------------------------------------------------------
HTML_ROWS_MAX = 5  # of a dataset, or 20 files or refs: what is shown without being asked for must be read in an instant
HTML_COLUMNS_MAX = 16
HTML_LINES_MAX = 20
HTML_IMAGE_BYTES_MAX = 256 * KIB  # larger images are told by their size: five of them are decoded in 10 ms
HTML_IMAGE_PIXELS_MAX = 4 << 20
HTML_THUMBNAIL_EDGE = 48  # pixels
HTML_REPORT_BYTES_MAX = 2 * MIB  # of a report in a notebook, which is kept with it

# -- looking through rows in a terminal ----------------------------------------------------------------------------
BROWSE_BLOCK_ROWS = 64  # rows that are read together: a screen or two
BROWSE_BLOCKS_MAX = 1_024  # blocks of a column that are kept as text: some 10 MB
BROWSE_CELL_CHARS_MAX = 200  # of a value in a line
BROWSE_VALUE_BYTES_MAX = (
    256 * KIB
)  # of a text in a line; longer ones are told by their size, and read when the row is opened
BROWSE_TEXT_CHARS_MAX = 200_000  # of a value of an opened row: what a terminal wraps in an instant
BROWSE_SEARCH_ROWS = 4_096  # rows that are searched before the screen hears of it

# -- loaders -----------------------------------------------------------------------------------------------------
ARENA_BYTES_MAX = 4 * GIB  # fixed-width columns up to this size become one contiguous array per process
# Float columns of one filter whose bounds are used: each doubles what is looked at (once as NaN, decisions/0022).
FILTER_FLOATS_MAX = 4
SCAN_GROUPS_BATCH = 256  # row groups whose nodes a filter reads, together, before their pages are
PARQUET_SLOTS_BYTES = 64 * MIB  # encoded pages that an open Parquet view keeps: what a reader asks for in pieces
PARQUET_GROUPS_MAX = (
    256  # row groups of one Parquet view, about 10^6 rows: its footer has 100 bytes for each of them and column
)
PARQUET_TAIL_BYTES = 64 * KIB  # that readers of Parquet (Arrow, polars) read of a file's end to find its footer
PARQUET_VIEWS_BYTES = 256 * MIB  # footers and places of pages of the Parquet views of a version that are kept
MOUNTS_MAX = 16  # versions that one lepton:// filesystem keeps open
FILE_PIECES_BYTES = 32 * MIB  # pieces of one open large file that are kept, about as many MiB as pieces
SQL_BATCH_ROWS = 65_536  # rows of a query's result that are handed over at a time
SELECTION_ROWS_BATCH = 65_536  # rows of a selection whose row groups are looked up at a time: 1 MiB
# A column of a row group is read as a whole up to this size: four pages cost a read of one row about what one does, and save each
# batch the joining of pieces. One page is never cut.
COLUMN_WHOLE_BYTES_MAX = 256 * KIB
NODE_CACHE_BYTES = 64 * MIB  # nodes of a version that are kept parsed: those of about 10^5 row groups of ten columns
PAGE_CACHE_BYTES = 512 * MIB  # decoded pages kept for columns that do not fit an arena
DIRECTORY_BYTES = 512  # of such a page besides its rows: its head, and what aligns its buffers
DIRECTORY_ROW_BYTES_MAX = 64  # of a page of references: a reference is 40 bytes, with its offset and its bit at most 49
ORDER_ROWS_MAX = 1 << 48

# -- processing --------------------------------------------------------------------------------------------------
# What a task of a pipeline reads at a time: many row groups that follow each other (one or two at the end of such a stretch are cut again),
# and little enough for several tasks under way. Daft splits batches of more than 131,072 rows.
ENGINE_TASK_ROWS = 65_536
ENGINE_TASK_BYTES = 32 * MIB
ENGINE_TRIES_MAX = (
    5  # that end without one more row done, because the cluster lost something that Daft does not replace
)
# Of each node of a cluster of our own: only results pass through it, and what does not fit is spilled.
ENGINE_OBJECT_STORE_BYTES = 128 * MIB
ENGINE_CLUSTER_WAIT_S = 10.0  # for an address to take a connection
ENGINE_CLUSTER_SILENT_S_MAX = (
    20.0  # after that, a cluster whose head does not answer is lost (Ray itself waits for 60 s)
)
ENGINE_CLUSTER_LOOK_S = 2.0  # between two looks whether it is there
ENGINE_TASKS_AHEAD = 2  # that a native runner reads at once; what they read waits in queues without bounds
DECODE_BATCH_BYTES = 64 * MIB  # decoded images that a pipeline holds at a time
# Rows that a chain of operations works on at a time: what they read from the store and what it makes of them, with a decoded image beside.
CHAIN_BATCH_BYTES = 32 * MIB
CHAIN_BATCH_ROWS = 4_000
# Pages whose values have about so many bytes are not read where the memo knows their digests (process/engine/unread.py).
UNREAD_VALUE_BYTES_MIN = 128
UNREAD_ROWS = 2_048  # whose digests are one small value of the memo: 34 KiB of MEMO_VALUE_BYTES_MAX
PIPELINE_FILE_BYTES_MAX = 1 * MIB
FAILURE_CHARS_MAX = 500  # of what an operation says when it fails on a row
# Results that are kept on this host (process/memo.py). Without a budget of the user's: a quarter of what is free, within these.
MEMO_FREE_SHARE = 0.25
MEMO_BYTES_MIN = 64 * MIB
MEMO_BYTES_USUAL_MAX = 64 * GIB
MEMO_SPARE_SHARE = 0.1  # of the budget: freed at a time, so that eviction is rare
MEMO_DISK_FREE_BYTES_MIN = 256 * MIB  # what is left free of the device; nothing is kept when there is less
MEMO_ROW_BYTES = 128  # of the index, for each row: LMDB's pages are half to three quarters full
MEMO_VALUE_BYTES_MAX = 64 * KIB  # of a small value
# Of all small values, or this share of the budget where that is more: two generations of half as much, of which the older goes as a whole.
MEMO_VALUES_BYTES_MAX = 256 * MIB
MEMO_VALUES_SHARE = 1 / 16
MEMO_BLOCKS_MAPPED_MAX = 256  # files that a process keeps mapped: a descriptor each
MEMO_TOUCHES_MAX = 256  # blocks that were used, before that is written down
PREPARED_EDGE_MAX = 256  # pixels; what "most common size" is scaled down to: photographs are decoded for training
IMAGE_FACTS_MAX = 32_768  # encoded images whose facts a process keeps for the checks that come next, about 1.2 KiB each
IMAGE_FACTS_CHUNK = 256  # images that are measured together: 64 KiB each
# The most common size of images is taken for the right one where at least this share of the rows has it; else there is none.
IMAGE_SIZE_COMMON_SHARE = 0.5
# Near duplicates of images. Of hashes with an equal band each is compared with this many that follow it: of more, all are near each other
# (frames of a film, blank pages), and pairs must grow with the rows, not with their square. Pairs compared at a time: 100 bytes each.
NEAR_BAND_ROWS_MAX = 4_096
NEAR_PAIRS_CHUNK = 1 << 20
SPLIT_FRACTION = 0.2  # share of rows that goes to validation
TEXT_BYTES_MAX = 16 * MIB  # of one text that is tokenised: what comes of it takes some 50 times its bytes
TOKENISE_BATCH_BYTES = 4 * MIB  # of text that is tokenised at a time
TOKENIZER_BYTES_MAX = 64 * MIB  # of a tokenizer.json; one of 256,000 tokens has 33 MB
TOKENS_KNOWN_MAX = 1 << 20  # of a tokenizer that is trained
JOIN_ROWS_MAX = 50_000_000  # of the other dataset of a join: 16 bytes a row, and its key, in each process
JOIN_BYTES_MAX = 1 * GIB  # of its keys
JOIN_VALUES_BYTES_MAX = (
    128 * MIB
)  # of its values that stay in memory in each process; others are read as rows ask for them
HISTOGRAM_BINS = 32
# Statistics (process/statistics). A block is what is sketched, kept and found again as one: about 48,000 rows of a table, of which a sketch
# of some KiB is a hundredth; fewer where values are large, so that one changed image costs some MiB of others, not a gigabyte.
STATISTICS_BLOCK_GROUPS_AVG = 16
STATISTICS_BLOCK_GROUPS_MAX = 64
STATISTICS_BLOCK_BYTES = 8 * MIB  # of a column, values that stand elsewhere included; one page may be more
# Different numbers of a block that are counted one by one: 48 KiB of sketch, and small tables are exact.
STATISTICS_EXACT_VALUES = 4_096
STATISTICS_EXACT_LENGTHS = 1_024  # of lengths, and of elements of tensors, likewise
STATISTICS_BLOCK_POINTS = 512  # else: buckets of equal weight; a rank is off by half a bucket, 1/1,024 of the values
# Of blocks together, before they are made fewer; that adds 1/32,768 of the values each time (64 blocks, 4,096, …).
STATISTICS_POINTS_MAX = 16_384
STATISTICS_MERGED_AT_ONCE = 64  # so memory grows with the logarithm of the blocks
# Frequent values that are followed: a count is off by less than 1/1,025 of the rows (Misra-Gries).
STATISTICS_FREQUENT = 1_024
STATISTICS_REGISTERS_LOG2 = 12  # HyperLogLog: 4,096 bytes, standard error 1.04 / 64 = 1.6 %
STATISTICS_TEXT_BYTES_MAX = 64  # of a frequent value that is kept and shown
STATISTICS_TEXTS_BYTES_MAX = 24 * KIB  # of all of a block's; so a sketch stays below MEMO_VALUE_BYTES_MAX
STATISTICS_SKETCH_BYTES_MAX = 256 * KIB  # of a kept sketch; what claims more is damaged
STATISTICS_TOP = 20  # frequent values that are shown
CORRELATION_COLUMNS_MAX = 32  # number columns; memory and work grow with its square
COUNT_VALUES_BYTES_MAX = 4 * MIB  # values of a column that are counted at a time (numpy widens them eightfold)
PII_CONTEXT_CHARS = 16  # before a number of four parts, in which a word may say that it is a version
PII_PHONE_CHARS_MAX = (
    128  # of a run of digits and what stands between them that libphonenumber is given at a time: numbers have 30
)
PII_PHONE_TRIES = 16  # of its attempts in such a piece: what a piece costs is bounded
TEXT_LANGUAGE_CHARS_MAX = (
    4_096  # of a text by which its language is told: some ms in pure Python, and more make it no surer
)
TEXT_BLOCK_BYTES = (
    256 * KIB
)  # of texts that are looked at together: what is made of them (60 bytes a character) is about 16 MiB
# Near duplicates of texts. What a driver holds of each text is 8 bytes a band (21 at the default threshold) and 4 bytes a shingle up to
# TEXT_SKETCH_HASHES: 650 bytes for a text of 110 words, 65 GB for 10^8 of them (compare such a set by parts: by language, by source).
TEXT_SKETCH_HASHES = 512  # texts of more shingles are compared by an estimate with a standard error of 0.02 at 0.8
TEXT_PART_ROWS = (
    4 << 20
)  # keys of a band that are sorted at a time: 100 MiB; n texts take n / this passes over a band's keys
TEXT_BUCKET_ROWS_MAX = 64  # texts with one key of a band that are compared each with each
TEXT_BUCKET_NEXT = 16  # in larger buckets each with so many: comparisons grow linearly, also where all texts are alike
TEXT_PAIR_VALUES = 512 << 10  # shingles of likely pairs that are compared at a time: 32 MiB
LABEL_TRAIN_ROWS_MAX = (
    200_000  # that a model of check.label_errors learns from; guessing grows with the rows, learning no further
)
LABEL_FOLDS_MAX = 20
LABEL_GUESSES_BYTES_MAX = (
    4 << 30
)  # of all guesses, 8 bytes for each row and class: 5 * 10^7 rows of 10 classes, 5 * 10^5 of 1,000
REPORT_BYTES_MAX = 5 * MIB  # one HTML file that can be mailed; thumbnails shrink until it fits
REPORT_THUMBNAIL_EDGES = (
    160,
    96,
    64,
    40,
    24,
)  # pixels, tried in this order; shown at about 110, on fine screens at 220
REPORT_SAMPLES_MAX = 50  # of the sample grid
REPORT_GALLERY_MAX = 24  # of every other gallery (findings, wrong answers, predictions)
REPORT_CHECK_SAMPLES_MAX = 7  # of the rows that one check found: a line of the page
REPORT_CLUSTERS_MAX = 12  # groups of rows that are alike
REPORT_CLUSTER_ROWS_MAX = 6  # of one such group, side by side
REPORT_TEXTS_MAX = 12  # passages of a text column
REPORT_ROWS_MAX = 10  # of a table without pictures and texts
REPORT_PASSAGE_CHARS_MAX = 600  # of one text of the data
REPORT_LINKS_MAX = 8  # versions in the picture of its lineage; more are told as a number
REPORT_CLASSES_MAX = 40  # of charts and of the confusion matrix; more are told in numbers
REPORT_COLUMNS_MAX = 64
REPORT_CORRELATION_MAX = 24  # columns of the matrix: what stands side by side on a page
REPORT_TEXT_CHARS_MAX = 240  # of a name or value that came from the data

# -- tiers -------------------------------------------------------------------------------------------------------
TIERED_PACKS_REMEMBERED = 100_000  # packs of which it is known in which tier they were last
MOVE_WINDOW_BYTES = 8 * MIB  # of a pack that is copied from tier to tier at a time
RETRY_TRIES = 5
RETRY_WAIT_S = 0.2  # the longest first wait; each further one may be twice as long
TIERS_MAX = 16  # of one store
MOVES_PER_ENTRY_MAX = 64  # packs whose moves one log entry publishes; so much work is repeated after an interruption
WATERMARK_LOW = 0.9  # a tier over its watermark is emptied down to this share of it
# A pack is hot when so many times its bytes were read since the last apply: what one epoch reads of it, which is all but its footer.
HOT_READS = 0.9
READS_FILE_BYTES_MAX = 16 * MIB
# What was read of which pack is saved when so much was read, and so long ago: a process that is killed forgets less than that.
READS_SAVE_BYTES = 64 * MIB
READS_SAVE_S = 10.0

# -- references: chunks whose bytes stay in the object that they were imported from (decisions/0026) -----------------
REFERENCE_BYTES_MAX = 2 * KIB  # of one: a path of 1,024 bytes (what S3 takes), and what the object's keeper calls it
REFERENCE_VERSION_BYTES_MAX = 256  # an ETag or a time
REFERENCE_ROOTS_MAX = 256  # of one store: each stands in every snapshot of the log
REFERENCE_STAMPS_MAX = 65_536  # objects of which a check remembers what their keeper said: about 200 bytes each
OBJECT_BYTES_MAX = 1 << 46  # 64 TiB: more than any object store keeps as one object

# -- remotes -------------------------------------------------------------------------------------------------------
REMOTES_MAX = 64  # remembered by one store
REMOTE_URL_CHARS_MAX = 2_000
TRANSFER_BATCH_CHUNKS = 8_192  # looked up, and read in the order in which the source keeps them, at a time
TRANSFER_COMMITS_BYTES = 64 * MIB  # of commits that are not read a second time: about 30,000 with a small schema
TRANSFER_TRIES = 3  # of a copy of which garbage collection took something meanwhile

# -- block volumes -------------------------------------------------------------------------------------------------
# Space is given out in units: a pack wastes less than one, and lists at most 104 (format/volume.py), so a pack of PACK_BYTES_MAX
# fits. A header block (4 KiB) for each unit is 0.4 % of the volume.
VOLUME_UNIT_BYTES = 1 * MIB
VOLUME_UNITS_MIN = 8
# Header blocks come into use in steps: opening reads those in use, 4 KiB for each pack that there was at a time, in whole steps.
VOLUME_HEADERS_STEP = 256
VOLUME_PROBE_BYTES = 1 * MIB  # at both ends of a file or device, that must be zero before it becomes a volume

# -- hot cache -----------------------------------------------------------------------------------------------------
# One segment is what is preallocated and evicted at a time: budget / 64, so that eviction can choose, but at most 64 MiB (preallocating
# that takes 20 ms), until there would be too many: then budget / 2,048.
CACHE_SEGMENT_SHARE = 64
CACHE_SEGMENT_BYTES_MIN = 64 * KIB
CACHE_SEGMENT_BYTES_USUAL_MAX = 64 * MIB
CACHE_SEGMENT_BYTES_MAX = 1 * GIB
CACHE_SEGMENTS_MAX = 4_096  # slots of the shared table; a value above a quarter of a segment is a segment of its own
CACHE_GEOMETRY_FACTOR = (
    8  # a budget so many times larger or smaller than the one that a table was made for needs a new table
)
CACHE_BUDGET_BYTES_MIN = 1 * MIB
CACHE_BUDGET_BYTES_MAX = 2_048 * CACHE_SEGMENT_BYTES_MAX
CACHE_BUDGET_FREE_SHARE = (
    0.25  # of what is free at its place, for a cache whose budget nobody said (`lepton cache warm`)
)
# The index has room for twice as many values as the budget holds at this average size: 32 bytes a slot, 0.8 % of the budget.
# Smaller values (a row alone) fill it early: then the cache holds fewer of them, it never fails.
CACHE_VALUE_BYTES_AVG = 8 * KIB
CACHE_BUCKET_SLOTS = 16  # slots in which one key may stand; at half load 0.03 % of the values find no free one
# Share of the budget that eviction calls wanted. The rest is what moving values together has to work with: a byte fetched moves one
# byte at 0.75, four at 0.9 and eleven at 0.95, at equal hits (full shuffle, cache of half the data).
CACHE_WANTED_SHARE = 0.75
# A new value must be wanted more than the last 10 % of what is held (when more is held than is wanted).
CACHE_HORIZON_SHARE = 0.9
CACHE_MOVE_SHARE_MAX = 0.95  # segments that are wanted more than this are not worth moving
# All values are ranked anew after 1/32 as many requests as there are values: 0.4 us a value under the
# lock, so 13 us a request. Grows with the number of values: at 10^7 it holds the lock for 4 s.
CACHE_RANK_SHARE = 32
CACHE_RANK_REQUESTS_MIN = 32
CACHE_PLAN_KEYS_MAX = 1 << 25  # that one client may register: 16 bytes each, beside the budget
# Keys that may be asked for ahead of their turn: the batches that the threads of a loader are at, each with thousands of values.
CACHE_PLAN_WINDOW = 1 << 16
CACHE_ARENA_SHARE_MAX = 0.75  # of the budget: a larger arena stays with each process, and the cache with the others
CACHE_CLAIMS_MAX = (
    1_024  # keys that one thread fetches at a time: the system looks through all of a host to claim one more
)
CACHE_PLANS_MAX = 256  # live clients with a plan that an eviction looks at
CACHE_FLIGHT_WAIT_S_MAX = 120.0  # for another's fetch of the same key; then one fetches too (the other may be stopped)
# For the host's lock, which is held for 0.1 ms, or 50 ms where a segment is made or evicted.
CACHE_LOCK_WAIT_S_MAX = 10.0
CACHE_LOCK_POLL_S_MAX = 0.002
CACHE_PIN_TRIES = 10
CACHE_FLIGHT_POLL_S_MAX = 0.004
CACHE_MAPPINGS_MAX = 160  # segments that a process keeps mapped beyond their views: a descriptor each
CACHE_PINNED_RETRY_PUTS = (
    32  # values that go uncached after everything evictable was pinned, before that is tried again
)
CACHE_FULL_RETRY_PUTS = 256  # values that go uncached after the device was full, before it is tried again
CACHE_COUNTS_FLUSH = 1_024  # requests that a killed process may fail to report

# Clients of a daemon (leptonstore/store/wire, leptonstore/store/remote_store.py).
WIRE_HOSTS_MAX = (
    64  # in one URL, and of the members that a daemon tells: each is asked in turn when others do not answer
)
WIRE_CONNECT_S = 3.0  # for a TCP connection: a host that is up answers in a round trip
WIRE_OPEN_S = 5.0  # for a daemon to answer when a store is opened: a person waits, and a wrong name is told at once
WIRE_RETRY_S = 60.0  # for a daemon to answer again when the store is in use: it may be restarted meanwhile
WIRE_CALL_S = 120.0  # for one answer, or for a stream to end: 16 MiB at 140 KB/s
WIRE_BACKOFF_S = 0.05  # before the second try; doubles with each, up to WIRE_BACKOFF_S_MAX, half of it by chance
WIRE_BACKOFF_S_MAX = 2.0
WIRE_CLIENTS_MAX = 4  # connections to one daemon: one carries 1 to 2 GB/s, and threads that read at once need not wait
WIRE_ANSWER_BYTES_MAX = 256 * MIB  # of one answer: the refs of a store, at 300 bytes each
WIRE_BATCH_BYTES_MAX = 64 * MIB  # of one record batch that a daemon sends: four of the largest chunks
WIRE_GET_BYTES = 32 * MIB  # asked for in one request, where lengths are known
WIRE_GET_DIGESTS = 8_192  # asked for in one request
WIRE_PUT_BYTES = 16 * MIB  # of values that wait to be sent: one request; as many again are on their way
WIRE_PUT_VALUES = 4_096  # that wait to be sent
WIRE_PLAN_DIGESTS = 16_384  # of a reader's plan that are told in one request
WIRE_FLUSH_BYTES = 256 * MIB  # that are sent and not durable: what a daemon that ends may cost
WIRE_FACTS_KEPT = 1 << 18  # chunks of which a client remembers kind and length: 120 bytes each

# Collecting (leptonstore/process/collect).
COLLECT_WORKERS = 8  # items fetched at a time: hides the waits of a server without being rude to it
COLLECT_FILE_BYTES_MAX = 1 << 30  # of one item, which is held in memory (so 16 GiB at worst: 2 x COLLECT_WORKERS)
COLLECT_LIST_BYTES_MAX = 1 << 30  # of a plain list of URLs
COLLECT_LIST_LINE_BYTES_MAX = 64 * KIB  # of one line of it; servers take URLs of some KiB
COLLECT_COMMIT_BYTES = 512 * MIB  # fetched, before a version is made: what Ctrl-C or a crash may cost
COLLECT_COMMIT_ROWS = 10_000
COLLECT_FLUSH_S = 30.0  # how long a Writer's rows wait
COLLECT_HTTP_TRIES = 5
COLLECT_HTTP_BACKOFF_S = 0.5  # doubles with each try: 0, 1, 2, 4, 8 s
COLLECT_HTTP_WAIT_S_MAX = 120  # that a server may ask for by Retry-After
COLLECT_HTTP_TIMEOUT_S = 60.0

# -- the daemon and its clients (leptonstore/store/wire, leptonstore/daemon) ----------------------------------------------

WIRE_HEADER_BYTES_MAX = 64 * KIB  # of a request's JSON header: names, options, the ref updates of one publication
WIRE_PAYLOAD_BYTES_MAX = 2 * MIB  # of a request's payload: 65,536 digests, 262,144 row numbers
# Of an error that is told to a client: gRPC takes 8 KiB of trailers, in which it stands in base64 beside its message.
WIRE_ERROR_BYTES_MAX = 4 * KIB
WIRE_FIELD_CHARS_MAX = 200
WIRE_ROWS_MAX = 32  # numbers of rows in it
