"""A store's quota: the most bytes that its packs may take together. It is a setting in the log, so that all writers see the same one.

It is checked against the newest state of the log in the moment that packs are listed, so that writers that race cannot exceed
it together. Entries that list no pack, or remove at least as much as they add (garbage collection, repair), always pass.
"""

from __future__ import annotations

from leptonstore import limits
from leptonstore.errors import BadInput, FormatTooNew, StoreFull
from leptonstore.quantities import human_bytes
from leptonstore.store.log import LogState, Proposal

SETTING = "quota_bytes"


class OverQuota(StoreFull):
    """What was put does not fit into the quota; none of it is listed, and its packs are removed again."""


def quota_bytes(state: LogState) -> int | None:
    """The quota, None when there is none. Raises FormatTooNew when it is something that we do not understand."""
    value = state.settings.get(SETTING)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise FormatTooNew(f"the store's quota is {value!r}, which is no number of bytes: upgrade LeptonStore")
    return value


def used_bytes(state: LogState) -> int:
    """Bytes of all listed packs."""
    return sum(record.bytes for record in state.packs.values())


def setting(count: int | None) -> dict[str, int | None]:
    """What a log entry says to set the quota to `count` bytes (None: no quota). Raises BadInput."""
    if count is not None and not 0 <= count <= limits.QUOTA_BYTES_MAX:
        raise BadInput(f"quota is {count} bytes: it must be from 0 to {limits.QUOTA_BYTES_MAX}")
    return {SETTING: count}


def require_quota(state: LogState, proposal: Proposal) -> None:
    """Raise OverQuota when `proposal` would make the store larger than its quota."""
    quota = quota_bytes(state) if proposal.packs_added else None
    if quota is None:
        return
    added = sum(record.bytes for record in proposal.packs_added.values())
    removed = sum(state.packs[pack].bytes for pack in proposal.packs_removed if pack in state.packs)
    used = used_bytes(state)
    if added > removed and used + added - removed > quota:
        raise OverQuota(
            f"the store's quota is {human_bytes(quota)}; its packs have {human_bytes(used)} and {human_bytes(added)} more would be added: "
            "raise it (`lepton quota --set SIZE`) or free some (`lepton gc`) and run the command again; "
            "what was stored before is intact"
        )
