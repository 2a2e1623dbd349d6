"""How much was read of each pack from each tier, remembered on this host: what promotion and demotion go by.

A file beside the index in the user's cache directory; deleting it costs nothing but that memory. Written when a store with several
tiers is closed; `lepton tier apply` halves what it has gone by.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from leptonstore import limits

FILE = "reads.json"


def load_reads(path: Path) -> Counter[str]:
    """Pack -> bytes, from the file `path`. What cannot be read counts as nothing."""
    with suppress(OSError, ValueError, AttributeError):
        if path.stat().st_size <= limits.READS_FILE_BYTES_MAX:
            found = json.loads(path.read_bytes()).items()
            return Counter({str(pack): int(count) for pack, count in found if int(count) > 0})
    return Counter()


def add_reads(path: Path, reads: Counter[str]) -> None:
    """Add to what the file `path` says. Two processes that end at once may lose the reads of one; a full disk loses all."""
    if reads:
        _save(path, load_reads(path) + reads)


def halve_reads(path: Path) -> None:
    """After they were gone by: what is hot now counts more than what was."""
    _save(path, Counter({pack: count // 2 for pack, count in load_reads(path).items()}))


def _save(path: Path, reads: Counter[str]) -> None:
    most = limits.READS_FILE_BYTES_MAX // 64
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict(reads.most_common(most))))
        os.replace(temporary, path)
