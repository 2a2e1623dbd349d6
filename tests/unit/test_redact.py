"""What must not be told to a client: places of the daemon's host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.daemon.redact import Redactor
from leptonstore.errors import ChunkCorrupt, StoreMissing
from leptonstore.store.quota import OverQuota

SCRUBBER = Redactor(["/srv/data/store", "s3://bucket/team", "/home/x y/cache/"])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no dataset 'x' in /srv/data/store; there is: none yet", "no dataset 'x' in the store; there is: none yet"),
        ("cannot write /srv/data/store/packs/ab/cd.pack: full", "cannot write the store: full"),
        ("s3://bucket/team/packs does not answer", "the store does not answer"),
        ("s3://other-bucket/x: no such bucket", "the store: no such bucket"),
        ("file:///etc/passwd is no store", "the store is no store"),
        ("block:/dev/nvme0n1 is away", "the store is away"),
        ("/home/x y/cache/lmdb is damaged", "the store is damaged"),
        ("log entry 7 of /srv/data/store is missing", "log entry 7 of the store is missing"),
        ("/tmp/tmpab_1/x is gone", "the store is gone"),
        # and what is none
        ("rows 3/4 of birds@main: 1/2 w/o a label", "rows 3/4 of birds@main: 1/2 w/o a label"),
        ("dataset/birds/main was moved", "dataset/birds/main was moved"),
        ("open lepton://host:7400/store anew", "open lepton://host:7400/store anew"),
        ("the scope: 'read' is not enough", "the scope: 'read' is not enough"),
        ("image/jpeg and text/plain", "image/jpeg and text/plain"),
    ],
)
def test_places_go_and_names_stay(said: str, told: str) -> None:
    assert SCRUBBER.text(said) == told


@given(st.text(max_size=60), st.text("abcdef/", max_size=20))
def test_no_message_keeps_a_known_place(around: str, below: str) -> None:
    assert "/srv/data/store" not in SCRUBBER.text(f"{around} /srv/data/store/{below} {around}")


def test_fields_are_redacted_and_the_class_is_one_of_the_tree() -> None:
    told = SCRUBBER.error(ChunkCorrupt("ab" * 32, "cd" * 16, "short", "birds", "s3://bucket/team"))
    assert type(told) is ChunkCorrupt
    assert (told.tier, told.where, told.digest) == ("the store", "birds", "ab" * 32)
    assert "bucket" not in str(told)
    missing = SCRUBBER.error(StoreMissing("nothing at /srv/data/store", "/srv/data/store"))
    assert isinstance(missing, StoreMissing) and missing.url == "the store"
    assert type(SCRUBBER.error(OverQuota("full"))).__name__ == "StoreFull"
