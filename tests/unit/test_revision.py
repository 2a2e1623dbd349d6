"""Which code trained: revisions, dirty trees and source files, without a trace of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leptonstore.digest import digest_of
from leptonstore.version import __version__
from trainers import revision
from trainers.revision import code_revision


def git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", "-C", str(directory), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with one commit of one module."""
    place = tmp_path / "clone"
    place.mkdir()
    git(place, "init", "-q")
    (place / "mynet.py").write_text("def net(sample_shape, classes):\n    raise NotImplementedError\n")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "a net")
    return place


@pytest.fixture
def imported(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(clone))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    __import__("mynet")
    return clone


CONFIG = {"model": {"reference": "mynet:net", "params": {"reference": 3}}, "optimizer": {"name": "adam"}}


def test_a_module_is_named_by_its_digest_and_the_revision_of_its_clone(imported: Path) -> None:
    found = code_revision(CONFIG, imported)
    head = {"revision": git(imported, "rev-parse", "HEAD"), "dirty": False, "diff": None}
    assert found["modules"] == {"mynet": {"digest": digest_of((imported / "mynet.py").read_bytes()).hex(), "git": head}}
    assert found["directory"] == head
    assert found["leptonstore"] == __version__


def test_a_changed_file_makes_another_diff_and_changing_it_back_none(imported: Path) -> None:
    before = code_revision(CONFIG, imported)
    text = (imported / "mynet.py").read_text()
    seen = []
    for more in ("# one\n", "# two\n"):
        (imported / "mynet.py").write_text(text + more)
        found = code_revision(CONFIG, imported)["modules"]["mynet"]
        assert (
            found["git"]["dirty"] is True and found["git"]["revision"] == before["modules"]["mynet"]["git"]["revision"]
        )
        seen.append((found["digest"], found["git"]["diff"]))
    assert len(set(seen)) == 2 and all(digest and diff for digest, diff in seen)
    (imported / "mynet.py").write_text(text)
    assert code_revision(CONFIG, imported) == before


def test_what_git_does_not_track_changes_nothing(imported: Path) -> None:
    """A demo writes its store into the working directory: that must not make the next training another one."""
    before = code_revision(CONFIG, imported)
    (imported / "store").mkdir()
    (imported / "store" / "pack").write_bytes(b"data")
    assert code_revision(CONFIG, imported) == before


def test_settings_of_the_user_do_not_change_the_diff(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (imported / "mynet.py").write_text("changed = True\n")
    before = code_revision(CONFIG, imported)
    for key, value in {
        "diff.noprefix": "true",
        "diff.algorithm": "histogram",
        "color.ui": "always",
        "core.abbrev": "5",
    }.items():
        git(imported, "config", key, value)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert code_revision(CONFIG, imported) == before


def test_a_repository_cannot_have_programs_run(imported: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (imported / ".gitattributes").write_text("*.py diff=evil\n")
    for key in ("diff.external", "diff.evil.command", "diff.evil.textconv", "core.fsmonitor", "core.pager"):
        git(imported, "config", key, f"touch {marker};false")
    (imported / "mynet.py").write_text("changed = True\n")
    assert code_revision(CONFIG, imported)["modules"]["mynet"]["git"]["dirty"] is True
    assert not marker.exists()


def test_no_path_of_the_machine_is_told(imported: Path, tmp_path: Path) -> None:
    text = json.dumps(code_revision(CONFIG, imported))
    assert str(tmp_path) not in text and str(Path.home()) not in text


def test_without_git_versions_and_digests_remain(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "_command", lambda directory, arguments: ["no-such-git"])
    found = code_revision(CONFIG, imported)
    assert found["modules"]["mynet"]["git"] is None and found["modules"]["mynet"]["digest"]
    assert found["directory"] is None and found["checkout"] is None


def test_an_installed_module_inside_of_a_clone_is_not_of_the_clone(
    imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """site-packages of an environment that lies in the user's clone, untracked."""
    (imported / "venv").mkdir()
    (imported / "venv" / "elsewhere.py").write_text("net = print\n")
    monkeypatch.syspath_prepend(str(imported / "venv"))
    __import__("elsewhere")
    found = code_revision({"model": {"reference": "elsewhere:net"}}, imported)["modules"]["elsewhere"]
    assert found["git"] is None and found["digest"]
    del sys.modules["elsewhere"]


def test_references_are_found_wherever_the_configuration_has_them(tmp_path: Path) -> None:
    config = {
        "data": {"transforms": {"image": [{"reference": "a.b:C"}, {"reference": "d:e"}]}},
        "model": {"reference": "<lambda of x>"},
    }
    assert set(code_revision(config, tmp_path)["modules"]) == {"a.b", "d"}
