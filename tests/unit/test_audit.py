"""The audit log: each line whole, the newest kept, nothing that stops the daemon."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from leptonstore.daemon.audit import AUDIT_STRANGERS, AuditLog
from leptonstore.daemon.parts import audit_log_of
from leptonstore.daemon.settings import make_settings
from leptonstore.errors import BadInput


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_with_which_outcome(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", now=lambda: 1_795_786_212.5)
    log.write("publish", "ok", "3f2a", "ci", "10.0.0.7", "dataset/birds/main")
    log.close()
    assert lines(log.path) == [
        {
            "time": "2026-11-27T13:30:12.500Z",
            "outcome": "ok",
            "operation": "publish",
            "principal": "3f2a",
            "name": "ci",
            "address": "10.0.0.7",
            "what": "dataset/birds/main",
        }
    ]
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_what_a_client_chooses_stays_in_its_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("x\n" * 5_000, "ok", "id", 'a"\n{}', "1.2.3.4", "\n\u2028\x00" * 5_000)
    assert len(log.path.read_bytes().splitlines()) == 1 and len(log.path.read_bytes()) < 20_000


def test_a_token_that_was_typed_as_a_name_is_not_kept(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for secret in ("lepton_0123456789abcdef_" + "Ab-_" * 10 + "xyz", "lpeer_" + "0f" * 32):
        log.write("token_revoke", "NotFound", "id", "name", "1.2.3.4", f"x {secret}")
        assert secret.rpartition("_")[2] not in log.path.read_text() and secret[10:] not in log.path.read_text()
    assert "lepton_0123456789abcdef_…" in lines(log.path)[0]["what"]  # type: ignore[operator]


def test_files_are_bounded_and_hold_the_newest_lines(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", file_bytes=1_000, files=3)
    for number in range(200):
        log.write("publish", "ok", "id", "name", "1.2.3.4", str(number))
    files = [tmp_path / name for name in ("audit.jsonl.2", "audit.jsonl.1", "audit.jsonl")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    kept = [int(str(line["what"])) for path in files for line in lines(path)]
    assert kept == list(range(kept[0], 200)) and len(kept) >= 12
    assert all(path.stat().st_size <= 1_000 for path in files)


def test_strangers_cannot_push_real_entries_out(tmp_path: Path) -> None:
    now = [0.0]
    log = AuditLog(tmp_path / "audit.jsonl", clock=lambda: now[0])
    log.write("publish", "ok", "id", "name", "1.2.3.4")
    for _ in range(10_000):
        log.write("hello", "NotAuthenticated", None, "", "6.6.6.6")
    log.write("publish", "ok", "id", "name", "1.2.3.4")
    assert len(lines(log.path)) == 2 + AUDIT_STRANGERS.burst
    now[0] += 1.0
    log.write("hello", "NotAuthenticated", None, "", "6.6.6.6")
    assert lines(log.path)[-1]["left_out"] == 10_000 - AUDIT_STRANGERS.burst


def test_threads_write_whole_lines_while_files_are_changed(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", file_bytes=5_000, files=50)
    threads = [
        threading.Thread(target=lambda n=n: [log.write("op", "ok", "id", "name", "a", f"{n} {k}") for k in range(100)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {line["what"] for path in tmp_path.iterdir() for line in lines(path)}
    assert told == {f"{n} {k}" for n in range(4) for k in range(100)} and log.lost == 0


def test_a_file_that_was_moved_is_left_when_the_log_was_closed(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("publish", "ok", "id", "name", "1.2.3.4", "first")
    os.rename(log.path, tmp_path / "moved")
    log.close()
    log.write("publish", "ok", "id", "name", "1.2.3.4", "second")
    assert [line["what"] for line in lines(tmp_path / "moved")] == ["first"]
    assert [line["what"] for line in lines(log.path)] == ["second"]


def test_a_full_disk_loses_lines_and_says_how_many() -> None:
    log = AuditLog("/dev/full")
    for _ in range(5):
        log.write("publish", "ok", "id", "name", "1.2.3.4")
    assert log.lost == 5


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    os.symlink(tmp_path / "elsewhere", tmp_path / "audit.jsonl")
    with pytest.raises(BadInput, match="cannot be written"):
        AuditLog(tmp_path / "audit.jsonl")


def test_a_folder_that_a_user_mistyped_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written: No such file"):
        audit_log_of(make_settings("store", audit_log=str(tmp_path / "lgo" / "audit.jsonl")))
    assert not (tmp_path / "lgo").exists()


def test_the_usual_folder_is_made_for_its_user_alone() -> None:
    log = audit_log_of(make_settings("store"))
    assert log.path.is_file() and stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700
    log.close()


def test_it_can_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    log = AuditLog("-")
    log.write("publish", "ok", "id", "name", "1.2.3.4")
    log.close()
    assert json.loads(capfd.readouterr().err)["operation"] == "publish"
    os.write(2, b"")  # which stays open
