"""The scrub: every byte of every copy of every pack, read and checked at a set pace, round after round.

It goes through the packs by id and notes where it is (maintenance/scrub-place in the store's home): stopped, killed or run by another
daemon, it goes on there. What came behind it is looked at in the next round; a round that is complete ends the job. A copy that is
damaged or missing where another tier has a whole one is replaced by that, as `lepton repair` does (store/repair.py); what no tier has
whole is a finding for people, who run `lepton repair`: it alone may take packs out of the log.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from leptonstore.daemon.maintenance import bounds, record
from leptonstore.daemon.maintenance.pace import Pace
from leptonstore.daemon.maintenance.work import Work
from leptonstore.errors import Conflict, FormatTooNew, LeptonError
from leptonstore.store import Store
from leptonstore.store.log import PackRecord
from leptonstore.store.placement import places_of
from leptonstore.store.repair import RepairReport, replace_copies
from leptonstore.store.scan import ExaminedPack, examine

PLACE = "scrub-place"


@dataclass
class Round:
    """One round, as far as it is. Times are seconds since 1970. `after`: the last pack that was looked at ("": none)."""

    began: float
    after: str = ""
    packs: int = 0
    bytes_read: int = 0
    damaged: int = 0  # copies that were damaged or missing
    healed: int = 0  # of those
    unseen: int = 0  # copies in tiers that did not answer
    findings: list[str] = field(default_factory=list)  # the first ones, a line each; also of what was healed

    @classmethod
    def load(cls, store: Store, now: float) -> Round:
        """The one that was begun; a new one when there is none."""
        body = record.read(store, PLACE) or {}
        found = cls(now)
        for name, like in vars(found).items():
            value = body.get(name, like)
            if isinstance(value, type(like) if not isinstance(like, float) else (int, float)):
                setattr(found, name, value)
        found.findings = [str(line) for line in found.findings][: bounds.FINDINGS_MAX]
        return found

    def find(self, line: str) -> None:
        """Keep a finding, while there are few."""
        if len(self.findings) < bounds.FINDINGS_MAX:
            self.findings.append(line[: bounds.NOTE_CHARS_MAX])


class _Scrub:
    def __init__(self, store: Store, work: Work) -> None:
        self.store, self.work = store, work
        self.round = Round.load(store, time.time())
        self.pace = Pace(work, work.options["bytes_per_s"])
        self.heal: bool = work.options["heal"]
        self.done = self.total = 0
        self._saved = time.monotonic()

    def run(self) -> dict[str, Any]:
        """To the end of the round."""
        self.store.refresh()
        packs = sorted(self.store.state.packs.items())
        sizes = {pack: one.bytes * max(1, len(places_of(self.store.state, pack))) for pack, one in packs}
        self.total = sum(sizes.values())
        left = [(pack, one) for pack, one in packs if pack > self.round.after]
        self.done = self.total - sum(sizes[pack] for pack, _ in left)
        try:
            for first in range(0, len(left), bounds.SCRUB_BATCH_PACKS):
                with self.store.tier.waiting_once():
                    for pack, listed in left[first : first + bounds.SCRUB_BATCH_PACKS]:
                        self._look_at(pack, listed)
        except BaseException:
            self._save()
            raise
        result = {**vars(self.round), "seconds": time.time() - self.round.began, "clean": self._clean}
        record.write(self.store, PLACE, {})
        return result

    @property
    def _clean(self) -> bool:
        return self.round.damaged == self.round.healed and not self.round.unseen

    def _look_at(self, pack: str, listed: PackRecord) -> None:
        found = examine(self.store, pack, listed, True, self._read)
        self.round.bytes_read += sum(copy.bytes_read for copy in found.copies)
        self.round.unseen += len(found.silent)
        if found.damaged or found.lacking:
            self._judge(found)
        self.round.packs += 1
        self.round.after = pack
        if time.monotonic() - self._saved > bounds.SCRUB_SAVE_S:
            self._save()

    def _read(self, count: int) -> None:
        self.done = min(self.total, self.done + count)
        damaged = self.round.damaged
        note = f"{self.round.packs:,} packs, {damaged:,} copies damaged, {self.round.healed:,} healed"
        self.work.tell(self.done, self.total, "bytes", note)
        self.pace.spend(count)

    def _judge(self, found: ExaminedPack) -> None:
        """Heal what can be; tell what was found."""
        store = self.store
        store.refresh()
        if found.pack not in store.state.packs:
            return  # garbage collection removed it meanwhile
        names = store.placement.names
        lines = [
            f"pack {found.pack}{'' if copy.at is None else f' in tier {names[copy.at]}'}: {_why(copy.why, len(copy.corrupt))}"
            for copy in found.damaged
        ]
        lines += [f"pack {found.pack} in tier {names[at]}: its file is missing" for at in found.lacking]
        self.round.damaged += len(lines)
        outcome = "run `lepton repair`"
        if self.heal and not any(isinstance(copy.why, FormatTooNew) for copy in found.copies):
            report = RepairReport()
            try:
                if replace_copies(store, found, store.placement, report):
                    self.round.healed += len(lines)
                    outcome = f"healed from tier {report.replaced[0].source}" if report.replaced else "gone meanwhile"
            except Conflict:
                outcome = "the tiers were changed meanwhile: the next round looks again"
            except LeptonError as error:
                outcome = f"not healed: {error}"
        for line in lines:
            self.round.find(f"{line}; {outcome}")

    def _save(self) -> None:
        self._saved = time.monotonic()
        record.write(self.store, PLACE, vars(self.round))


def _why(why: Exception | None, corrupt: int) -> str:
    return getattr(why, "why", str(why)) if why is not None else f"{corrupt} records are corrupt"


def scrub(store: Store, work: Work) -> dict[str, Any]:
    """Go on with the round that was begun, or begin one; returns when it is complete."""
    return _Scrub(store, work).run()
