"""Every error that LeptonStore raises, grouped by what a handler does about it.

    LeptonError
    ├── BadInput            the caller's data or arguments are wrong: fix them and call again
    │   ├── SourceError         a file to import is missing, malformed or unreadable
    │   ├── SchemaError         a table or a batch does not fit the schema
    │   ├── DuplicateKey        two rows have one key, in a table in which it names one row
    │   ├── RuleBroken          rows break a validation rule of the dataset
    │   ├── OperationFailed     an operation of a pipeline fails on a row: correct it, or let such rows be left out
    │   ├── LossNotFinite       a training step gave no number: look at its rows, or lower the learning rate
    │   └── WrongKey            no passphrase or key file was given, or it opens no key of the store
    ├── NotFound            a name that does not exist: list what does
    │   ├── StoreMissing        there is no store at this place
    │   ├── RefMissing          no such dataset, branch, tag, checkpoint, model or commit
    │   └── ChunkMissing        no copy of this digest is known
    ├── Damaged             stored bytes are not what was written: restore another copy
    │   ├── FormatDamaged       a header, footer, node, page, commit or log entry does not parse
    │   ├── PackDamaged         a pack is truncated, or its header, footer or trailer is altered
    │   └── ChunkCorrupt        a record's bytes do not match its digest
    │       └── ReferenceBroken     the object that a chunk was imported from without copying is gone or changed: put it back
    ├── FormatTooNew        written by a newer LeptonStore: upgrade
    ├── Conflict            somebody else was faster: read again and retry
    │   ├── CommitExpired       garbage collection took what this work relied on: run it again
    │   └── MergeConflict       two lines of versions changed the same thing: choose a side, or edit one of them
    ├── StoreFull           the device or the quota is full: free space and run again
    ├── TierUnavailable     a tier does not answer: wait until it is back, and run it again
    │   └── TierMissing         there is no such bucket: create it, or correct the name
    ├── NotPermitted        this user may not read or write there: ask for the permission
    │   └── NotAuthenticated    the daemon does not know who asks: give a token that is valid
    ├── TooBusy             the daemon is at one of its limits, or is about to end: wait, and ask again
    ├── MissingExtra        an optional dependency is not installed: install the named extra
    ├── ClusterLost         a cluster cannot be reached, or went away: look after it, and run it again
    ├── RankLost            another process of a training has ended or does not answer: start all again, and resume
    └── Stopped             stopped on request (SIGINT, SIGTERM); what was acknowledged is kept

A message says the fact in lower case and names the thing and the fix; fields carry what a program needs. Anything
that is not a `LeptonError` is a bug of ours or of the machine. The command line maps these classes to exit codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_LISTED_MAX = 10  # names in one message


class LeptonError(Exception):
    """Root of the tree; catch it to catch everything that is not a bug. Passes between processes with all of its fields."""

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, self.__dict__)


def listed(names: Iterable[str], none: str = "none yet") -> str:
    """What there is instead, for a message: the first names and how many more, so that it stays one line."""
    every = list(names)
    more = len(every) - _LISTED_MAX
    return ", ".join(every[:_LISTED_MAX]) + (f" and {more:,} more" if more > 0 else "") or none


def restored(kind: type[LeptonError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> LeptonError:
    """An error as it was in another process: by its fields, not by its constructor, whose arguments are not those of the message."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


class BadInput(LeptonError):
    """The caller's data or arguments are wrong."""


class SourceError(BadInput):
    """A file to import is missing, malformed or unreadable. `path` names it."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class SchemaError(BadInput):
    """A table, a batch or a type does not fit the schema, or the schema cannot be stored."""


class DuplicateKey(BadInput):
    """Two rows have the same key, in a table whose key names one row."""


class RuleBroken(BadInput):
    """Rows break a validation rule of the dataset. Fields: `rule` (its text), `column`, and `rows`, the first of them."""

    def __init__(self, message: str, rule: str, column: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rule, self.column, self.rows = rule, column, rows


class OperationFailed(BadInput):
    """An operation of a pipeline fails. Fields: `operation` (its name), `row` of the version that was read (None: of none), `reason`."""

    def __init__(self, message: str, operation: str, row: int | None, reason: str) -> None:
        super().__init__(message)
        self.operation, self.row, self.reason = operation, row, reason


class LossNotFinite(BadInput):
    """The loss of a training step, or a gradient, is not finite; it changed nothing. `step` (1-based), and `rows` of its batch."""

    def __init__(self, message: str, step: int, rows: list[int]) -> None:
        super().__init__(message)
        self.step, self.rows = step, rows


class WrongKey(BadInput):
    """The store is encrypted, and what was given (or nothing) opens none of its keys. Nothing is said of damage."""


class NotFound(LeptonError):
    """A name that does not exist."""


class StoreMissing(NotFound):
    """There is no store at this place. `url` names the place."""

    def __init__(self, message: str, url: str = "") -> None:
        super().__init__(message)
        self.url = url


class RefMissing(NotFound):
    """No such dataset, branch, tag, checkpoint, model or commit."""


class ChunkMissing(NotFound):
    """No copy of `digest` (hex) is known to this store."""

    def __init__(self, digest: str, where: str = "") -> None:
        place = f" ({where})" if where else ""
        super().__init__(
            f"chunk {digest[:16]}… is in no pack of this store{place}; run `lepton check` to see what is lost"
        )
        self.digest = digest
        self.where = where


class Damaged(LeptonError):
    """Stored bytes are not what was written."""


class FormatDamaged(Damaged):
    """A header, footer, node, page, commit or log entry does not parse."""


class PackDamaged(Damaged):
    """A pack is truncated, or its header, footer or trailer is altered. `pack` is its id (hex); `missing`: there is none."""

    def __init__(self, pack: str, why: str, missing: bool = False) -> None:
        super().__init__(f"pack {pack} is damaged: {why}; run `lepton repair`, with --from if there is a copy")
        self.pack = pack
        self.why = why
        self.missing = missing


class ChunkCorrupt(Damaged):
    """A record's bytes do not match its digest.

    Fields: `digest` and `pack` (hex), `why`, `where` (dataset, rows and column; empty when only the store knows), and `tier`, the URL of
    the one that it was read from (empty when only the store's tiers together know).
    """

    def __init__(self, digest: str, pack: str, why: str, where: str = "", tier: str = "") -> None:
        place = f" in {where}" if where else ""
        super().__init__(
            f"chunk {digest[:16]}…{place} is corrupt: {why} (pack {pack}{f' of {tier}' if tier else ''}); "
            "run `lepton check --read-data` to see all damage, and `lepton repair`, with --from if there is a copy"
        )
        self.digest = digest
        self.pack = pack
        self.why = why
        self.where = where
        self.tier = tier

    def at(self, where: str) -> ChunkCorrupt:
        """The same error, told by a layer that knows which dataset, rows and column were read."""
        return ChunkCorrupt(self.digest, self.pack, self.why, where, self.tier)

    def of(self, tier: str) -> ChunkCorrupt:
        """The same error, told by a layer that knows which tier was read."""
        return ChunkCorrupt(self.digest, self.pack, self.why, self.where, tier)


class ReferenceBroken(ChunkCorrupt):
    """A chunk stands in an object outside of the store, and that is gone or changed. `object` names it, and which bytes of it."""

    def __init__(self, digest: str, object: str, why: str, where: str = "") -> None:
        super().__init__(digest, "-", why, where)
        place = f" of {where}" if where else ""
        self.args = (
            f"the value{place} (chunk {digest[:16]}…) stands in {object}: {why}; put the object back as it was, or import the data "
            "again (`lepton check` says which values are concerned; `lepton materialize` keeps this from happening)",
        )
        self.object = object

    def at(self, where: str) -> ReferenceBroken:
        """As ChunkCorrupt.at."""
        return ReferenceBroken(self.digest, self.object, self.why, where)

    def of(self, tier: str) -> ReferenceBroken:
        """As ChunkCorrupt.of: no tier has it."""
        return self


class FormatTooNew(LeptonError):
    """Written by a newer LeptonStore, or it needs a feature that this version lacks."""


class Conflict(LeptonError):
    """Somebody else changed the same thing first; nothing of the caller's was lost, nothing was published."""


class CommitExpired(Conflict):
    """Garbage collection removed chunks that the work relied on, and nobody has them any more: run it again."""


class MergeConflict(Conflict):
    """Two lines of versions changed the same rows or columns in different ways; nothing was written.

    `conflicts` lists rows (dataset.merge.RowConflict; none when the schemas conflict), the first ones only where there are many; `count`
    is their number.
    """

    def __init__(self, message: str, conflicts: Sequence[Any] = (), count: int = 0) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)
        self.count = count


class StoreFull(LeptonError):
    """The device (or the quota) is full; nothing half-written is visible."""


class TierUnavailable(LeptonError):
    """A tier does not answer, or answers with errors of its own, after all tries. `tier` is its URL. What it holds is not lost."""

    def __init__(self, message: str, tier: str = "") -> None:
        super().__init__(message)
        self.tier = tier


class TierMissing(TierUnavailable):
    """The bucket that a tier needs does not exist."""


class NotPermitted(LeptonError):
    """This user may not read or write there, or the filesystem is mounted read-only; nothing was changed."""


class NotAuthenticated(NotPermitted):
    """The daemon does not know who asks: no credential, or one that is unknown, expired or revoked. Which, it does not say."""


class TooBusy(LeptonError):
    """The daemon is at one of its limits, or drains; nothing was done. `retry_after_s`: seconds to wait before asking again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MissingExtra(LeptonError):
    """An optional dependency is not installed. `extra` is the one to install; "": no extra has it, and `module` is to be installed."""

    def __init__(self, what: str, extra: str, module: str = "") -> None:
        lacking = f" (no module {module!r})" if module else ""
        install = f'pip install "leptonstore[{extra}]"' if extra else "install it beside leptonstore"
        super().__init__(f"{what} needs an optional part{lacking}: {install}")
        self.extra = extra
        self.module = module


class LeptonWarning(UserWarning):
    """Something that a caller should know although what was asked for was done. The command line prints it in one line."""


class ClusterLost(LeptonError):
    """A cluster that was to do work cannot be reached, or went away meanwhile. Nothing was published."""


class RankLost(LeptonError):
    """Another rank of a training has ended, or does not answer. The last checkpoint is intact."""


class Stopped(LeptonError):
    """Stopped on request; what was acknowledged is kept and the work can be resumed."""
