"""How much was read of each pack from each tier, remembered on this host: what promotion and demotion go by.

A file beside the index in the user's cache directory; deleting it costs nothing but that memory. Added to when a store with several
tiers is closed, and now and then while it is read (READS_SAVE_BYTES), so that a process that is killed forgets little; `lepton tier
apply` halves what it has gone by. Any number of processes: each change is made under a lock file, and replaces the file as a whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from leptonstore import limits
from leptonstore.errors import LeptonError
from leptonstore.store.environment import between_processes
from leptonstore.tiers.durable import replace_file

FILE = "reads.json"


def load_reads(path: Path) -> Counter[str]:
    """Pack -> bytes, from the file `path`. What cannot be read counts as nothing."""
    with suppress(OSError, ValueError, AttributeError):
        if path.stat().st_size <= limits.READS_FILE_BYTES_MAX:
            found = json.loads(path.read_bytes()).items()
            return Counter({str(pack): int(count) for pack, count in found if int(count) > 0})
    return Counter()


def add_reads(path: Path, reads: Counter[str]) -> None:
    """Add to what the file `path` says. Where the directory is full or read-only, nothing is remembered."""
    if reads:
        _change(path, lambda before: before + reads)


def halve_reads(path: Path) -> None:
    """After they were gone by: what is hot now counts more than what was."""
    _change(path, lambda before: Counter({pack: count // 2 for pack, count in before.items()}))


def _change(path: Path, made: Callable[[Counter[str]], Counter[str]]) -> None:
    with suppress(OSError, LeptonError), between_processes(path, "lock"):
        reads = made(load_reads(path)).most_common(limits.READS_FILE_BYTES_MAX // 64)
        replace_file(path, json.dumps(dict(reads)).encode(), path.parent)
