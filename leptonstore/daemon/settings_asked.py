"""Settings that an administrator changes over the network: those that name no place of the daemon's host, with values that every writer
understands.

A setting that somebody cannot read, or a feature that nobody knows, would shut all writers out of the store; a tier or a folder of
references is a place that the daemon would then read, and write to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from leptonstore.daemon.maintenance import schedule
from leptonstore.errors import BadInput, LeptonError
from leptonstore.format.framed import NAMED_FEATURES
from leptonstore.store import dataset_quota, placement, quota, references, remotes
from leptonstore.store.log import LogState

_ONLY_THERE = (placement.SETTING, references.SETTING)


def require_settings(state: LogState, settings: dict[str, Any], requires: Sequence[str]) -> None:
    """Raises BadInput unless `state` with these settings (None takes one away) and features is one that everybody understands."""
    there = sorted(set(settings) & set(_ONLY_THERE))
    if there:
        raise BadInput(f"{there[0]!r} names places of the daemon's host: change it there, with the store's path")
    unknown = sorted(set(requires) - set(NAMED_FEATURES))
    if unknown:
        raise BadInput(f"there is no feature {unknown[0][:40]!r}")
    kept = {name: value for name, value in {**state.settings, **settings}.items() if value is not None}
    known = {quota.SETTING, remotes.SETTING, *_ONLY_THERE}
    named = (dataset_quota.PREFIX, schedule.PREFIX)
    foreign = sorted(name for name in settings if name not in known and not name.startswith(named))
    if foreign:
        raise BadInput(f"there is no setting {foreign[0][:40]!r}")
    for name, value in settings.items():
        if name.startswith(schedule.PREFIX) and value is not None:
            schedule.plan_of(name.removeprefix(schedule.PREFIX), value)
    after = replace(state, settings=kept)
    try:
        quota.quota_bytes(after)
        remotes.remotes_of(after)
        dataset_quota.quotas(after)
    except LeptonError:
        raise BadInput("a setting has a value that no writer would understand") from None
