"""The chunk store: put, get and has by digest; packs, log, refs, index, check.

config     the settings of a store
log        the one history that writers agree on, and the state that it adds up to
index      digest -> place in a pack; LMDB in the user's cache directory, rebuilt whenever it is missing or stale
builder    a pack being written                  writer: those of a process, encoded in the background
publication    what was put, and the refs that move, as one entry of the log; fences: when garbage collection went through meanwhile
store      Store: everything together
walk       what a commit reaches, with the rows that each chunk belongs to
check      finds what is damaged or missing
transfer   versions from one store to another; lines: which of them; remotes: the others' names
purge      removes all that no version needs, and dictionaries from before: the second half of an erasure
search     looks for bytes in every decoded record: its proof
"""

from leptonstore.store.check import CheckReport, Problem, check_store
from leptonstore.store.log import RefRecord, RefUpdate
from leptonstore.store.store import Store

__all__ = ["CheckReport", "Problem", "RefRecord", "RefUpdate", "Store", "check_store"]
