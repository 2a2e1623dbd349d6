"""The token that a daemon leaves for its own user: nobody else can read it, and it goes with the daemon that made it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from leptonstore.daemon.local_token import local_token_path, remove_local_token, write_local_token
from leptonstore.store.wire.address import Host
from leptonstore.store.wire.credentials import credentials_for


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("LEPTON_TOKEN", raising=False)
    monkeypatch.delenv("LEPTON_TOKEN_FILE", raising=False)


def test_clients_of_the_same_user_on_this_host_find_it_and_others_do_not() -> None:
    before = os.umask(0)
    try:
        token = write_local_token(7400)
    finally:
        os.umask(before)
    path = local_token_path(7400)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert credentials_for(Host("127.0.0.1", 7400), False).token == token
    for host in (Host("store.example", 7400), Host("127.0.0.1", 7401)):
        assert credentials_for(host, False).token == ""
    path.chmod(0o644)  # somebody else may have put it there
    assert credentials_for(Host("127.0.0.1", 7400), False).token == ""


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path = local_token_path(7400)
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("as it was")
    path.symlink_to(tmp_path / "elsewhere")
    token = write_local_token(7400)
    assert (tmp_path / "elsewhere").read_text() == "as it was" and path.read_text() == token and not path.is_symlink()


def test_it_goes_with_its_daemon_and_not_with_an_earlier_one() -> None:
    first = write_local_token(7400)
    second = write_local_token(7400)
    assert first != second
    remove_local_token(7400, first)
    assert local_token_path(7400).read_text() == second
    remove_local_token(7400, second)
    assert not local_token_path(7400).exists() and list(local_token_path(7400).parent.iterdir()) == []
