"""Who works on the store of the model: writers (those who make refs and who repack among them), readers, those who forget, gcs.

The rules that they follow stand at the top of gc_model.py. Where a fault is switched on, its name stands next to the rule
that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .gc_model import (
    CHUNKS,
    MARKING,
    OFF,
    Actor,
    Pack,
    Role,
    Step,
    World,
    append,
    become,
    bits,
    chunks_of,
    leased,
    present,
    protected,
    put,
    union,
)

# What a writer has noted of a chunk: no part of its commit; to be looked up; in no pack; found in another's pack; in a pack
# of its own; taken over by digest from a commit that it read.
UNUSED, FIND, MISSING, FOUND, OWN, TAKEN = range(6)


class Part(NamedTuple):
    """Chunks that a writer puts, and the ref that the entry after them moves (None: it only lists packs)."""

    chunks: tuple[int, ...]
    ref: int | None


@dataclass
class Writer(Role):
    """For each part: look its chunks up, upload what is missing, append an entry.

    packs: the numbers of the packs that it may write, in this order; more than one per part to upload again.
    source: a ref whose chunks its last commit takes over by digest, without looking them up. `child`: that commit is its
    parent (without parts of its own, the new ref is to the commit itself); otherwise a part of its tree is copied.
    When the last commit moves `source` itself, its parent is what `source` points to where the entry lands (rebase).
    copies: put everything again, whatever the store has (a repack, or a writer that saw no other's packs).
    Notes: number of the part, packs written, 1 when a fault lets it trust what it looked at before, then one for each chunk.
    """

    parts: tuple[Part, ...] = ()
    packs: tuple[int, ...] = ()
    source: int | None = None
    child: bool = True
    copies: bool = False

    def begin(self, world: World, actor: Actor) -> Iterator[Step]:
        held = [UNUSED] * CHUNKS
        if self.source is not None:
            for chunk in bits(world.refs[self.source]):
                held[chunk] = TAKEN
        if self.source is None or TAKEN in held:
            yield "begins", become(world, self.me, self._at_part(0, Actor(notes=(0, 0, 0, *held))))

    def _at_part(self, part: int, actor: Actor) -> Actor:
        """Ready to work on a part."""
        if part == len(self.parts):
            return OFF
        _, written, _, *held = actor.notes
        for chunk in self.parts[part].chunks:
            held[chunk] = MISSING if self.copies else FIND
        return Actor(self._next_step(held), False, actor.met_gc, (part, written, 0, *held))

    @staticmethod
    def _next_step(held: list[int]) -> str:
        return "look" if FIND in held else "upload" if MISSING in held else "prepare"

    def go_on(self, world: World, actor: Actor) -> Iterator[Step]:
        part, written, _, *held = actor.notes
        if actor.at == "look":
            chunk = held.index(FIND)
            found = chunks_of(world, present(world, "has() trusts condemned packs" in self.faults)) >> chunk & 1
            held[chunk] = FOUND if found else MISSING
            after = actor._replace(at=self._next_step(held), notes=(*actor.notes[:3], *held))
            yield "has() finds it" if found else "has() finds nothing", become(world, self.me, after)
        elif actor.at == "upload" and written == len(self.packs):
            yield "gives up: CommitExpired", become(world, self.me, OFF)  # the model's bound on uploading again
        elif actor.at == "upload":
            pack = Pack(sum(1 << chunk for chunk, note in enumerate(held) if note == MISSING), "there")
            held = [OWN if note == MISSING else note for note in held]
            after = actor._replace(at="prepare", notes=(part, written + 1, actor.notes[2], *held))
            yield "uploads a pack", become(world, self.me, after, put(world.packs, self.packs[written], pack))
        elif actor.at == "prepare":
            yield from self._prepare(world, actor, held)
        elif actor.at == "append":
            yield from self._append(world, actor, held)
        else:
            yield self._read_back(world, actor)

    def _prepare(self, world: World, actor: Actor, held: list[int]) -> Iterator[Step]:
        """Replay the log; decide whether the entry may be appended behind what is there now."""
        part, written, _ = actor.notes[:3]
        ref = self.parts[part].ref
        if ref is not None and ref == self.source:
            held = [UNUSED if note == TAKEN else note for note in held]
            for chunk in bits(world.refs[ref]):
                held[chunk] = held[chunk] or TAKEN
            if not world.refs[ref]:
                yield "gives up: its ref was removed", become(world, self.me, OFF)
                return
        gone, trusts = self._gone(world, actor, held), 0
        if "copying counts as validation" in self.faults and (own := self._own_gone(world, held)):
            gone, trusts = own, 1
        if not gone:
            validated = int(actor.met_gc and ref is not None and "validation outlives protection" in self.faults)
            after = Actor("append", True, actor.met_gc and not validated, (part, written, validated, *held))
            yield "replays and validates" if actor.met_gc else "replays", become(world, self.me, after)
            return
        yield "gives up: CommitExpired", become(world, self.me, OFF)
        if written < len(self.packs):
            held = [MISSING if gone >> chunk & 1 else note for chunk, note in enumerate(held)]
            again = actor._replace(
                at="upload", met_gc=actor.met_gc and not trusts, notes=(part, written, trusts, *held)
            )
            yield "finds chunks gone", become(world, self.me, again)

    def _gone(self, world: World, actor: Actor, held: list[int]) -> int:
        """The chunks that must be uploaded (again) before the entry may be appended."""
        trusts = actor.notes[2] and not actor.met_gc and "copying counts as validation" in self.faults
        if self.parts[actor.notes[0]].ref is None or trusts:
            return self._own_gone(world, held)
        unlisted = chunks_of(world, self._to_list(world))
        sure = unlisted | chunks_of(world, present(world, "has() trusts condemned packs" in self.faults))
        if "validation asks the disk" in self.faults:
            sure = union(pack.chunks for pack in world.packs if pack.file in ("there", "going"))
        need = 0
        if "no validation" not in self.faults:
            need |= self._noted(held, FOUND)
            if "own published packs not validated" not in self.faults:
                need |= self._noted(held, OWN)
        # What was written and never listed is looked at in any case.
        need |= union(world.packs[n].chunks for n in self.packs if not world.packs[n].listed) & self._noted(held, OWN)
        if self._asks(world, actor, held):
            need |= self._noted(held, TAKEN)
        return need & ~sure

    def _own_gone(self, world: World, held: list[int]) -> int:
        """The chunks in its packs that were condemned before they were listed."""
        listed = union(world.packs[n].chunks for n in self.packs if world.packs[n].listed)
        return self._noted(held, OWN) & ~listed & ~chunks_of(world, self._to_list(world))

    @staticmethod
    def _noted(held: list[int], what: int) -> int:
        return sum(1 << chunk for chunk, note in enumerate(held) if note == what)

    def _to_list(self, world: World, decided_before: bool = False) -> int:
        """Its packs that were not listed yet and still may be."""
        blind = decided_before or {"own packs are listed unchecked", "validation asks the disk"} & self.faults
        forgets = "removed packs are forgotten" in self.faults
        return sum(
            1 << n
            for n in self.packs
            if (pack := world.packs[n]).file != "absent"
            and not pack.listed
            and (blind or not (pack.condemned or (pack.removed and not forgets)))
        )

    def _asks(self, world: World, actor: Actor, held: list[int]) -> bool:
        """Whether each chunk that is taken over by digest must be PRESENT, because no protected commit vouches for it."""
        if not self.child:
            return actor.met_gc and "no validation" not in self.faults
        if "protection is not asked for" in self.faults:
            return False
        if actor.notes[2] and not actor.met_gc:  # only with the fault "validation outlives protection"
            return False
        return bool(self._noted(held, TAKEN) & ~protected(world))

    def _append(self, world: World, actor: Actor, held: list[int]) -> Iterator[Step]:
        if not actor.fresh:
            blind = "lost slot without replay" in self.faults
            behind = actor._replace(at="append" if blind else "prepare", fresh=blind)
            yield "loses the slot", become(world, self.me, behind)
            return
        listing, part = self._to_list(world, "lost slot without replay" in self.faults), actor.notes[0]
        packs = tuple(pack._replace(listed=True) if listing >> n & 1 else pack for n, pack in enumerate(world.packs))
        refs, what, ref = world.refs, "lists packs", self.parts[part].ref
        if ref is not None:
            what = "commits"
            last = part + 1 == len(self.parts)
            refs = put(refs, ref, sum(1 << c for c, note in enumerate(held) if note and (last or note != TAKEN)))
        yield what, append(world, self.me, self._after_entry(actor), packs, refs)
        unsure = actor._replace(at="unsure", fresh=False)
        yield f"{what}, the answer is lost", append(world, self.me, unsure, packs, refs)

    def _after_entry(self, actor: Actor) -> Actor:
        part = actor.notes[0]
        moved = self.parts[part].ref is not None and "base moves with a commit" in self.faults
        return self._at_part(part + 1, actor._replace(met_gc=actor.met_gc and not moved))

    def _read_back(self, world: World, actor: Actor) -> Step:
        """The slot is taken: the write id in it tells by whom."""
        if "lost answer is a conflict" not in self.faults:
            return "reads back its write id", become(world, self.me, self._after_entry(actor))
        packs = tuple(
            pack._replace(file="gone") if n in self.packs and pack.file == "there" else pack
            for n, pack in enumerate(world.packs)
        )
        return "gives up and cleans up", become(world, self.me, OFF, packs)


@dataclass
class Forgetter(Role):
    """Takes what `ref` needs down to `leave`: 0 deletes the ref, else history before a boundary is forgotten."""

    ref: int = 0
    leave: int = 0

    def begin(self, world: World, actor: Actor) -> Iterator[Step]:
        left = world.refs[self.ref] & self.leave
        if left != world.refs[self.ref]:
            what = "forgets history" if self.leave else "deletes a ref"
            yield what, append(world, self.me, OFF, world.packs, put(world.refs, self.ref, left))


@dataclass
class Reader(Role):
    """Opens the commit of `ref` under a lease. Notes: the chunks of the commit."""

    ref: int = 0
    takes_leases: ClassVar[bool] = True

    def begin(self, world: World, actor: Actor) -> Iterator[Step]:
        if world.refs[self.ref]:
            yield "reads a ref", become(world, self.me, Actor("wish", notes=(world.refs[self.ref],)))

    def go_on(self, world: World, actor: Actor) -> Iterator[Step]:
        commit = actor.notes[0]
        if actor.at == "wish":
            at = "open" if "lease without reading again" in self.faults else "leased"
            yield "creates a lease", become(world, self.me, actor._replace(at=at))
        elif actor.at == "open":
            yield "closes", become(world, self.me, OFF)
        elif commit & ~protected(world) and commit & ~chunks_of(world, present(world)):
            yield "reads the log again: too late", become(world, self.me, OFF)
        else:
            yield "reads the log again and opens", become(world, self.me, actor._replace(at="open"))


@dataclass
class Collector(Role):
    """A gc, `runs` times. Notes: runs that are left with this one, then what `go_on` unpacks: sets of packs and of chunks."""

    runs: int = 1
    interchangeable: ClassVar[bool] = True

    def start(self) -> Actor:
        return Actor(notes=(self.runs, 0))

    def bare(self, actor: Actor) -> Actor:
        """An overtaken gc starts over, whatever it has found."""
        if actor.at in MARKING and not actor.fresh and "gc ignores being overtaken" not in self.faults:
            return Actor("overtaken", notes=(actor.notes[0],))
        return actor

    def after_crash(self, actor: Actor) -> Actor:
        left = actor.notes[0] - 1
        return Actor("idle", notes=(left, 0)) if left else OFF

    def begin(self, world: World, actor: Actor) -> Iterator[Step]:
        left, again = actor.notes
        files = sum(1 << n for n, pack in enumerate(world.packs) if pack.file == "there")
        leases = leased(world) if "leases before the log" in self.faults else 0
        yield "lists files", become(world, self.me, Actor("read log", notes=(left, again, files, leases)))

    def go_on(self, world: World, actor: Actor) -> Iterator[Step]:
        left, *notes = actor.notes
        if actor.at == "overtaken":
            yield "is overtaken", become(world, self.me, Actor("idle", notes=(left, 0)))
            return
        step: dict[str, Callable[..., Iterator[Step]]] = {
            "read log": self._read_log,
            "read leases": self._mark,
            "decide": self._append,
            "delete": self._delete,
        }
        yield from step[actor.at](world, actor, left, *notes)

    def _read_log(self, world: World, actor: Actor, left: int, again: int, files: int, leases: int) -> Iterator[Step]:
        need, keepers = protected(world) | leases, present(world, "condemned packs as keepers" in self.faults)
        old = sum(1 << n for n, pack in enumerate(world.packs) if pack.condemned)
        after = Actor("read leases", fresh=True, notes=(left, again, files, need, keepers, old))
        if self.with_leases:
            yield "reads the log", become(world, self.me, after)
        else:
            yield from self._mark(world, after, *after.notes)

    def _mark(
        self, world: World, actor: Actor, left: int, again: int, files: int, need: int, keepers: int, old: int
    ) -> Iterator[Step]:
        """Which packs keep something, which must be rescued? Where there are copies any will do: two orders are tried."""
        if not (again or "leases before the log" in self.faults):
            need |= leased(world)
        listed = sum(1 << n for n in bits(old) if world.packs[n].listed)
        choices = set()
        for backwards in (False, True):
            kept = self._cover(world, keepers, need, backwards)
            rescued = self._cover(world, listed, need & ~chunks_of(world, kept), backwards)
            choices.add(((keepers | files) & ~kept & ~old, rescued, old & ~rescued))
        what = "reads leases" if self.with_leases else "reads the log"
        for choice in sorted(choices):
            if any(choice):
                yield what, become(world, self.me, actor._replace(at="decide", notes=(left, *choice)))
            else:
                yield "has nothing to collect", become(world, self.me, self.after_crash(actor))

    @staticmethod
    def _cover(world: World, packs: int, need: int, backwards: bool) -> int:
        """Of `packs`, one for each chunk of `need`."""
        kept, covered = 0, 0
        for number in sorted(bits(packs), reverse=backwards):
            chunks = world.packs[number].chunks & need & ~covered
            if chunks:
                kept |= 1 << number
                covered |= chunks
        return kept

    def _append(self, world: World, actor: Actor, left: int, new: int, rescued: int, old: int) -> Iterator[Step]:
        """The one gc entry: FENCE(new), RESCUE(rescued), REMOVE(old)."""
        if "fence after delete" in self.faults and any(world.packs[n].file == "there" for n in bits(new)):
            yield "deletes before the fence", become(world, self.me, actor, self._deleted(world, new))
            return
        if "no fence" in self.faults:
            new, old = 0, old | new
        packs = []
        for number, pack in enumerate(world.packs):
            if rescued >> number & 1:
                pack = pack._replace(condemned=False)
            if new >> number & 1:
                pack = pack._replace(condemned=True)
            if old >> number & 1:
                pack = pack._replace(listed=False, condemned=False, removed=True)
            packs.append(pack)
        what = [name for name, some in (("FENCE", new), ("RESCUE", rescued), ("REMOVE", old)) if some]
        files = old | (new if "delete at the fence" in self.faults else 0)
        if files:
            after = Actor("delete", notes=(left, files, new))
        else:
            after = self._after_entry(actor, left, new)
        yield " + ".join(what), append(world, self.me, after, tuple(packs), world.refs, gc_entry=True)

    def _after_entry(self, actor: Actor, left: int, new: int) -> Actor:
        """What was condemned is removed by a mark that begins now."""
        if not new:
            return self.after_crash(actor)
        if "no second mark" in self.faults:
            return Actor("decide", fresh=True, notes=(left, 0, 0, new))
        return Actor("idle", notes=(left, int("second mark without leases" in self.faults)))

    def _delete(self, world: World, actor: Actor, left: int, files: int, new: int) -> Iterator[Step]:
        yield "sends deletes", become(world, self.me, self._after_entry(actor, left, new), self._deleted(world, files))

    @staticmethod
    def _deleted(world: World, packs: int) -> tuple[Pack, ...]:
        return tuple(
            pack._replace(file="going") if packs >> n & 1 and pack.file == "there" else pack
            for n, pack in enumerate(world.packs)
        )
