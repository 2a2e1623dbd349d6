"""What must not be told to a client: where the store, its tiers and its caches are on this host or in a bucket.

Errors of the store name the place, because whoever runs a command on the host wants to know it. A client knows the store by its URL
(lepton://host:port/name), and learns nothing else: in each message, and in each field of an error, places are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from leptonstore import errors
from leptonstore.errors import LeptonError
from leptonstore.store.wire.errors import fields_of, known_class

# What follows a place and belongs to it: the rest of a path.
_REST = r"(?:/[^\s,;:'\"()]*)?"
# Absolute paths of places that nobody registered (a temporary directory, /dev/shm), at least two parts long: "w/o", "1/2" stay.
_PATH = re.compile(r"(?<![\w./:])(?:file://)?/(?:[\w.@+~-]+/)+[\w.@+~-]*")
# Buckets and whatever else has a URL; not the one by which clients know the store.
_URL = re.compile(r"(?<![\w+.-])(?!lepton)[a-z][a-z0-9+.-]*:(?://|/)[^\s,;'\"()]*(?<![.:])")
THE_STORE = "the store"


class Redactor:
    """Replaces `places` (URLs or paths), any other URL but lepton://, and any absolute path. Any thread."""

    def __init__(self, places: Iterable[str]) -> None:
        known = sorted({place.rstrip("/") for place in places if place.rstrip("/")}, key=len, reverse=True)
        self._known = re.compile(f"(?:{'|'.join(map(re.escape, known))}){_REST}") if known else None

    def text(self, text: str) -> str:
        """`text` without places of this host."""
        if self._known is not None:
            text = self._known.sub(THE_STORE, text)
        return _PATH.sub(THE_STORE, _URL.sub(THE_STORE, text))

    def error(self, error: LeptonError) -> LeptonError:
        """`error` as it may be told: of the nearest class of the tree, with its known fields, all without places."""
        kind = known_class(error)
        fields = {}
        for name, usual in fields_of(kind).items():
            value = getattr(error, name, usual)
            fields[name] = self.text(value) if isinstance(value, str) else value
        return errors.restored(kind, (self.text(str(error)),), fields)
