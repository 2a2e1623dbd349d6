"""Which code trained: versions, the source files that the configuration names, and the git revisions they came from.

    {"leptonstore": version, "checkout": GIT | null,            of leptonstore itself, where it runs from a clone
     "modules": {"mine.models": {"digest": BLAKE3 of its source file, "git": GIT | null}},
     "directory": GIT | null}                                    of the working directory, where that is another clone
    GIT = {"revision": 40 or 64 hex digits, "dirty": bool, "diff": BLAKE3 of `git diff HEAD`, null when it is empty}
    (dirty is null where git did not answer)

No path and no host stands in it: the same code gives the same record on every machine. `diff` covers tracked files; a module that git
does not track is bound by its digest. What a module imports in turn is bound by the revision of its clone, and by nothing else.

git runs with nothing that a repository could configure to be executed (external diffs, text conversions, fsmonitor), and changes nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

import leptonstore
from leptonstore.digest import digest_of
from leptonstore.version import __version__

GIT_TIMEOUT_S = 10  # of one command: above `git diff` of a large clone on a cold disk; a run must not wait longer
SOURCE_BYTES_MAX = 16 << 20  # of a module's file: above any that a person writes
_READ_BYTES = 1 << 20
_REVISION = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
# A diff that does not depend on who runs git: neither settings nor environment change its bytes.
_DIFF = (
    "diff",
    "HEAD",
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--diff-algorithm=myers",
    "--unified=3",
    "--inter-hunk-context=0",
    "--submodule=short",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


def code_revision(config: Mapping[str, Any], directory: Path | None = None) -> dict[str, Any]:
    """The record above, for the modules that `config` refers to (each string under a key "reference") and that are imported by now.

    directory: the working directory by default. Takes some 30 ms a clone. Nothing fails: what cannot be found out is null.
    """
    clones, own = _Clones(), Path(leptonstore.__file__).parent
    here = Path.cwd() if directory is None else directory
    modules = {name: _module(name, clones) for name in sorted(set(_modules_of(config)))}
    elsewhere = clones.top(here) is not None and clones.top(here) != clones.top(own)
    return {
        "leptonstore": __version__,
        "checkout": clones.of_file(own / "version.py"),
        "modules": modules,
        "directory": clones.record(here) if elsewhere else None,
    }


def _modules_of(tree: Any) -> Iterator[str]:
    """The modules of all "package.module:function" references of a configuration."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == "reference" and isinstance(value, str) and ":" in value:
                yield value.partition(":")[0]
            else:
                yield from _modules_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _modules_of(value)


def _module(name: str, clones: _Clones) -> dict[str, Any]:
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return {"digest": None, "git": None}
    path = Path(file)
    try:
        fits = path.stat().st_size <= SOURCE_BYTES_MAX
        digest = digest_of(path.read_bytes()).hex() if fits else None
    except OSError:
        digest = None
    return {"digest": digest, "git": clones.of_file(path)}


class _Clones:
    """The git clones that were asked about: each question is a process of git, so none is asked twice."""

    def __init__(self) -> None:
        self._tops: dict[Path, tuple[Path, str] | None] = {}
        self._records: dict[Path, dict[str, Any]] = {}

    def top(self, directory: Path) -> Path | None:
        """The clone that a directory lies in, when it has a commit."""
        found = self._found(directory)
        return None if found is None else found[0]

    def of_file(self, file: Path) -> dict[str, Any] | None:
        """Of the clone that tracks `file`; None for a file that git does not track (an installed package inside of a clone)."""
        folder = file.parent
        if self.top(folder) is None or _git(folder, "ls-files", "--error-unmatch", "--", file.name) is None:
            return None
        return self.record(folder)

    def record(self, directory: Path) -> dict[str, Any] | None:
        """Revision, and what differs from it."""
        found = self._found(directory)
        if found is None:
            return None
        top, revision = found
        if top not in self._records:
            dirty, diff = _diff(top)
            self._records[top] = {"revision": revision, "dirty": dirty, "diff": diff}
        return self._records[top]

    def _found(self, directory: Path) -> tuple[Path, str] | None:
        if directory not in self._tops:
            told = (_git(directory, "rev-parse", "--show-toplevel", "HEAD") or "").rpartition("\n")
            self._tops[directory] = (Path(told[0]), told[2]) if told[0] and _REVISION.fullmatch(told[2]) else None
        return self._tops[directory]


def _command(directory: Path, arguments: Iterable[str]) -> list[str]:
    return ["git", "-C", str(directory), "-c", "core.fsmonitor=false", "-c", "core.quotePath=true", *arguments]


def _environment() -> dict[str, str]:
    """Without variables that point git elsewhere (inside of a hook), and without the locks of commands that only look."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says, without the end of the line; None when it fails, or is not there."""
    done = _run(directory, arguments, subprocess.PIPE)
    return None if done is None else os.fsdecode(done.stdout).rstrip("\n")


def _diff(top: Path) -> tuple[bool | None, str | None]:
    """(whether tracked files differ from HEAD, BLAKE3 of how they do); None where git does not say. Memory: 1 MiB."""
    hasher, size = blake3(), 0
    with tempfile.TemporaryFile() as out:
        if _run(top, _DIFF, out) is None:
            return None, None
        out.seek(0)
        while part := out.read(_READ_BYTES):
            hasher.update(part)
            size += len(part)
    return size > 0, hasher.hexdigest() if size else None


def _run(directory: Path, arguments: Iterable[str], out: Any) -> subprocess.CompletedProcess[bytes] | None:
    """git, with its output to `out`; None when it fails, takes too long, or is not there."""
    try:
        done = subprocess.run(
            _command(directory, arguments),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done if done.returncode == 0 else None
