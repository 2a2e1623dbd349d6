"""A place that only fsspec knows: everybody may read; writing is for one writer who says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from leptonstore.errors import BadInput, FormatDamaged, MissingExtra, NotPermitted
from leptonstore.store import Store, check_store
from leptonstore.testing.tiers import PackTierSuite, content
from leptonstore.tiers.fsspec import FsspecTier
from leptonstore.tiers.open import open_tier
from leptonstore.tiers.roles import StoreHome


def fsspec_tier(url: str, single_writer: bool = False) -> FsspecTier:
    tier = open_tier(url, single_writer)
    assert isinstance(tier, FsspecTier) and isinstance(tier, StoreHome)
    return tier


class TestFsspec(PackTierSuite):
    """fsspec's own local filesystem, under the name that does not mean ours."""

    @pytest.fixture
    def tier(self, tmp_path: Path) -> FsspecTier:
        return fsspec_tier(f"local://{tmp_path}/store", single_writer=True)

    def reopened(self, tier: FsspecTier) -> FsspecTier:
        return fsspec_tier(tier.url)


def test_documents_of_a_single_writer(tmp_path: Path) -> None:
    tier = fsspec_tier(f"local://{tmp_path}/store", single_writer=True)
    assert tier.contents() is None and tier.read_document("config", 10) is None and tier.documents("log") == []
    assert tier.create_document("log/2", b"two") and tier.create_document("log/1", b"one")
    assert not tier.create_document("log/1", b"other") and tier.read_document("log/1", 10) == b"one"
    tier.replace_document("HEAD", b"2")
    assert tier.documents("log") == ["1", "2"] and "HEAD" in (tier.contents() or ())
    with pytest.raises(FormatDamaged):
        tier.read_document("log/1", 2)
    tier.delete_document("log/1")
    tier.delete_document("log/1")
    assert tier.documents("log") == ["2"] and tier.remove_dead_temporaries() == 0


def test_a_store_is_read_but_not_written(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        digest = store.put(content(300_000))
        store.flush()
    with Store.open(f"local://{tmp_path}/store") as readable:
        assert readable.get(digest) == content(300_000)
        assert not check_store(readable, read_data=True).problems
        with pytest.raises(
            NotPermitted, match=r"is read-only: this kind of place cannot create .* only if it is absent"
        ):
            readable.put(b"x" * 100)
            readable.flush()
    with pytest.raises(NotPermitted, match="is read-only"):
        Store.create(f"local://{tmp_path}/other")


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"no tier for nowhere://"):
        open_tier("nowhere://x/y")
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(MissingExtra, match=r"no module 'paramiko'.*: install it beside leptonstore"):
        open_tier("sftp://host/path")
