"""What an operation looks up in the version that is read, before anything runs: constants, a common shape. That is a pass over a column,
and the same for the same version, so the memo of the host keeps it: a pipeline that is planned or run again does not look again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from leptonstore.dataset import Dataset
from leptonstore.digest import digest_of
from leptonstore.process.memo import Memo

_LAYOUT = 1  # raised when the same words would be answered otherwise


def looked_up(ds: Dataset, words: Mapping[str, Any], look: Callable[[], Any]) -> Any:
    """What `look` says of the rows of `ds`, as JSON gives it back. words: all else that it depends on, JSON-able.

    What comes from the memo was written by this host, or by whoever writes to its cache directory: callers check it as any parameter.
    """
    memo = Memo.of(ds.store)
    question = {"layout": _LAYOUT, "rows": ds.fingerprint, "words": dict(words)}
    key = digest_of(json.dumps(question, sort_keys=True).encode())
    kept = memo.get(key) if memo is not None else None
    if kept is not None:
        try:
            return json.loads(kept)
        except ValueError:
            pass  # as if it were not there
    answer = json.dumps(look())
    if memo is not None:
        memo.put(key, answer.encode())
    return json.loads(answer)
