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

    directory: the working directory by default. Takes some 10 ms a clone. Nothing fails: what cannot be found out is null.
    """
    clones: dict[Path, dict[str, Any] | None] = {}
    own = Path(leptonstore.__file__).parent
    modules = {name: _module(name, clones) for name in sorted(set(_modules_of(config)))}
    checkout, here = _clone_of(own / "version.py", clones), Path.cwd() if directory is None else directory
    top = _top_of(here)
    elsewhere = top is not None and top != _top_of(own)
    return {
        "leptonstore": __version__,
        "checkout": checkout,
        "modules": modules,
        "directory": _git_record(top, clones) if elsewhere and top is not None else None,
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


def _module(name: str, clones: dict[Path, dict[str, Any] | None]) -> dict[str, Any]:
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return {"digest": None, "git": None}
    path = Path(file)
    try:
        fits = path.stat().st_size <= SOURCE_BYTES_MAX
        digest = digest_of(path.read_bytes()).hex() if fits else None
    except OSError:
        digest = None
    return {"digest": digest, "git": _clone_of(path, clones)}


def _clone_of(file: Path, clones: dict[Path, dict[str, Any] | None]) -> dict[str, Any] | None:
    """Of the clone that tracks `file`; None for a file that git does not track (an installed package inside of a clone)."""
    top = _top_of(file.parent)
    if top is None or _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    return _git_record(top, clones)


def _git_record(top: Path, clones: dict[Path, dict[str, Any] | None]) -> dict[str, Any] | None:
    if top not in clones:
        revision = _git(top, "rev-parse", "--verify", "HEAD")
        dirty, diff = _diff(top) if revision else (None, None)
        clones[top] = {"revision": revision, "dirty": dirty, "diff": diff} if revision else None
    return clones[top]


def _top_of(directory: Path) -> Path | None:
    top = _git(directory, "rev-parse", "--show-toplevel")
    return Path(top) if top else None


def _command(directory: Path, arguments: Iterable[str]) -> list[str]:
    return ["git", "-C", str(directory), "-c", "core.fsmonitor=false", "-c", "core.quotePath=true", *arguments]


def _environment() -> dict[str, str]:
    """Without variables that point git elsewhere (inside of a hook), and without the locks of commands that only look."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says, without the end of the line; None when it fails, or is not there."""
    try:
        done = subprocess.run(
            _command(directory, arguments),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout).rstrip("\n") if done.returncode == 0 else None


def _diff(top: Path) -> tuple[bool | None, str | None]:
    """(whether tracked files differ from HEAD, BLAKE3 of how they do); None where git does not say. Memory: 1 MiB."""
    hasher, size = blake3(), 0
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                _command(top, _DIFF),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=GIT_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None, None
        if done.returncode != 0:
            return None, None
        out.seek(0)
        while part := out.read(_READ_BYTES):
            hasher.update(part)
            size += len(part)
    return size > 0, hasher.hexdigest() if size else None
