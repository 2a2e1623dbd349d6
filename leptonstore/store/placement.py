"""Which tiers a store has, and what should be where: settings in the log, so that everybody sees the same ones.

    settings["tiers"] = {"tiers": [{"name", "url", "watermark"?}, …], "write_to": name, "copies": n, "pins": {ref: name}}

The tiers stand in order of distance, the nearest first; one of them is the home, which has the name "home" and no URL. A pack that no
entry of the log places is kept by the home alone.

Invariant: **places only move outward.** What the log says of a pack never names a tier nearer than one that it named before.
So whoever deletes a nearer copy late (a mover that was held up) deletes one that nobody counts on. A copy that is brought
nearer (a pin, a hot pack) is an extra: the log does not name it, anybody may delete it, reads find it first (decision 13).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from leptonstore import limits
from leptonstore.errors import BadInput, FormatTooNew, NotFound
from leptonstore.store.log import LogState

SETTING, FEATURE, HOME = "tiers", "tiers", "home"
TIER_MARK = "tier"  # the document that says whose a tier is (store/tier_mark.py)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class TierSetting:
    """A tier: where it is (empty for the home), and from how many bytes on packs move on to the next one (None: never)."""

    name: str
    url: str = ""
    watermark: int | None = None


@dataclass(frozen=True)
class Placement:
    """The settings as a whole. `copies`: in how many tiers each pack is kept. `pins`: ref -> the tier that has what it reaches."""

    tiers: tuple[TierSetting, ...] = (TierSetting(HOME),)
    write_to: str = HOME
    copies: int = 1
    pins: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The tiers' names, the nearest first."""
        return tuple(tier.name for tier in self.tiers)

    def position(self, name: str) -> int:
        """Distance of a tier. Raises NotFound."""
        if name not in self.names:
            raise NotFound(f"the store has no tier {name!r}; it has {', '.join(self.names)}")
        return self.names.index(name)

    def setting(self) -> dict[str, Any]:
        """What a log entry says. Raises BadInput for what makes no sense."""
        self._require_sense()
        tiers = [{key: value for key, value in vars(tier).items() if value not in (None, "")} for tier in self.tiers]
        return {SETTING: {"tiers": tiers, "write_to": self.write_to, "copies": self.copies, "pins": dict(self.pins)}}

    def _require_sense(self) -> None:
        for tier in self.tiers:
            if not _NAME.fullmatch(tier.name):
                raise BadInput(f"{tier.name!r} is no name for a tier: use a-z, 0-9, - and _, at most 32 characters")
            if (tier.name == HOME) != (not tier.url):
                raise BadInput(f"tier {tier.name!r} needs a URL: only the home, {HOME!r}, has none")
            if "@" in urlparse(tier.url).netloc:
                raise BadInput(f"the URL of tier {tier.name!r} holds a user or a secret: give those in the environment")
            if tier.watermark is not None and not 0 <= tier.watermark <= limits.QUOTA_BYTES_MAX:
                raise BadInput(f"watermark of {tier.name!r} is {tier.watermark} bytes: it must be 0 or more")
        if len(set(self.names)) != len(self.names) or HOME not in self.names:
            raise BadInput(f"two tiers have one name, or none is the home: {', '.join(self.names)}")
        if len(self.tiers) > limits.TIERS_MAX:
            raise BadInput(f"{len(self.tiers)} tiers: there can be {limits.TIERS_MAX}")
        if not 1 <= self.copies <= len(self.tiers):
            raise BadInput(f"{self.copies} copies need as many tiers; there are {len(self.tiers)}")
        for name in (self.write_to, *self.pins.values()):
            self.position(name)


def placement_of(state: LogState) -> Placement:
    """The settings in force. Raises FormatTooNew when they are something that we do not understand."""
    value = state.settings.get(SETTING)
    if value is None:
        return Placement()
    try:
        tiers = tuple(
            TierSetting(str(one["name"]), str(one.get("url", "")), one.get("watermark")) for one in value["tiers"]
        )
        found = Placement(tiers, str(value["write_to"]), int(value["copies"]), dict(value["pins"]))
        found._require_sense()
    except (KeyError, TypeError, ValueError, AttributeError, BadInput, NotFound) as error:
        raise FormatTooNew(f"the store's tiers are not understood ({error}): upgrade LeptonStore") from None
    return found


def places_of(state: LogState, pack: str) -> tuple[str, ...]:
    """Names of the tiers that keep a pack."""
    return state.placed.get(pack, (HOME,))
