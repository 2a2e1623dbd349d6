"""A model of the log and of garbage collection, explored breadth-first: is there an order of events that loses a chunk?

What lives here: the state of a small store (`World`), the actors that change it one atomic step at a time, and `explore`,
which visits every state that any interleaving of their steps can reach. No I/O and nothing of leptonstore: the model must
not share the implementation's mistakes. (test_gc_real.py drives the real store through random schedules.)

The promise that is checked in every state: each chunk that a ref or an open reader needs is held by a pack that the log
lists and whose file exists. `PRESENT` is: listed and not condemned.

The rules, each with faults in FAULTS that break it:

 1. Log entries are created if absent, one after the other. Who loses a slot replays, decides again and tries the next;
    who misses the answer reads the slot back and compares the write id. Nobody deletes what it wrote.
 2. gc: list files, read the log, read the leases; choose a keeper among the PRESENT packs for every chunk that refs and
    leases need; append one entry: FENCE(what keeps nothing and is not condemned yet), RESCUE(condemned packs with chunks
    that have no keeper), REMOVE(the rest of the condemned ones); then delete the files of what it removed. If it fenced
    anything, it begins again: what a fence condemns is removed by a mark that began after that fence.
 3. OVERTAKEN: a gc entry is appended only while no other gc entry was appended since the log was read.
 4. A condemned pack counts as absent: for look-ups, for validation, as a keeper.
 5. A writer's own packs that were condemned before they were listed are not listed: their records go to a new pack.
 6. A writer that meets a gc entry newer than its base validates all that its commit needs: what it found, what it
    published before, what it took over by digest from another commit. What is not PRESENT it uploads again, or it gives up
    (CommitExpired). Its base is where it began to look; a commit of something else does not move it.
 7. What a commit takes over from a parent, and a new ref to an old commit, needs that commit to be protected (reachable
    from a ref) where the entry lands, or all its chunks to be PRESENT there. Each try asks again.
 8. A reader creates its lease, then reads the log again, and opens only what is protected or PRESENT there.

Left out, because it adds no behaviour: claims (advice for gc; safety must not depend on them), lost answers of a gc (it
starts over, as after a crash), retries of an upload. A writer's look-up sees the log as it is now: having an older view is
the same as having looked earlier. A crash is an actor that never moves again; it is spelled out because a lease ends with
its reader and because a gc may start again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

# -- the state -------------------------------------------------------------------------------------------------------


class Pack(NamedTuple):
    """One pack, in the tier and in the log. Sets of chunks, and of packs, are bit masks."""

    chunks: int = 0
    file: str = "absent"  # absent, there, going (a delete is on its way and may arrive at any time), gone
    listed: bool = False
    condemned: bool = False
    removed: bool = False


class Actor(NamedTuple):
    """Where an actor stands in its program (`at`), and what it has noted.

    fresh: nothing was appended since it replayed the log. met_gc: a gc entry was appended since its base.
    """

    at: str = "idle"
    fresh: bool = False
    met_gc: bool = False
    notes: tuple[int, ...] = ()


class World(NamedTuple):
    """A store and those who work on it. `refs` are the chunks that each ref needs (0: no such ref)."""

    packs: tuple[Pack, ...]
    refs: tuple[int, ...]
    actors: tuple[Actor, ...]


Step = tuple[str, World]

CHUNKS = 3  # of the world; chunk n is bit n of a mask
OFF = Actor("off")  # finished, gave up or crashed: the same from here on
WRITING = {"look", "upload", "prepare", "append", "unsure"}  # a writer's states: its base grows old in them
MARKING = {"read leases", "decide"}  # a gc's states between reading the log and its entry
LEASED = {"leased", "open"}

FAULTS = {
    "no fence": "the first gc entry removes what nobody needs, instead of condemning it",
    "delete at the fence": "gc deletes the files when its fence is appended",
    "fence after delete": "gc deletes the files and then appends its fence",
    "has() trusts condemned packs": "look-ups and validation take a condemned pack for present",
    "no second mark": "gc removes all that its fence condemned",
    "second mark without leases": "the mark after the fence does not read the leases",
    "leases before the log": "a mark reads the leases and then the log",
    "condemned packs as keepers": "a mark counts on copies in condemned packs",
    "gc ignores being overtaken": "a gc entry is appended whatever other gcs did since the mark",
    "no validation": "a writer that meets a gc entry commits what it has decided before",
    "validation asks the disk": "a writer asks whether the files exist instead of what the log says",
    "own packs are listed unchecked": "a writer lists a pack that was condemned before it was listed",
    "removed packs are forgotten": "a writer asks whether its unlisted pack is condemned, not whether it was removed since",
    "own published packs not validated": "a writer does not validate what it published before its commit",
    "lost slot without replay": "a writer that loses a slot takes the next with what it decided before",
    "lost answer is a conflict": "a writer whose answer is lost gives up and deletes the packs that it wrote",
    "protection is not asked for": "a new ref to an old commit, or a child, is appended without asking for the commit",
    "validation outlives protection": "a writer that validated once does not ask again whether the commit is protected",
    "copying counts as validation": "a writer that had to copy a condemned pack of its own validates nothing else",
    "base moves with a commit": "a later commit of the same writer is validated only against gc entries after the first",
    "lease without reading again": "a reader creates its lease and does not read the log after that",
}


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    return (bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def put(items: tuple[Any, ...], place: int, item: object) -> tuple[Any, ...]:
    """`items` with one replaced."""
    return (*items[:place], item, *items[place + 1 :])


def become(world: World, me: int, actor: Actor, packs: tuple[Pack, ...] | None = None) -> World:
    """Actor `me` moves on; the log does not change."""
    return World(world.packs if packs is None else packs, world.refs, put(world.actors, me, actor))


def append(
    world: World, me: int, actor: Actor, packs: tuple[Pack, ...], refs: tuple[int, ...], gc_entry: bool = False
) -> World:
    """Actor `me` appends an entry and moves on; the others are behind now."""
    actors = []
    for number, other in enumerate(world.actors):
        if number == me:
            other = actor
        elif other.at in WRITING and (other.fresh or (gc_entry and not other.met_gc)):
            other = other._replace(fresh=False, met_gc=other.met_gc or gc_entry)
        elif gc_entry and other.at in MARKING and other.fresh:
            other = other._replace(fresh=False)
        actors.append(other)
    return World(packs, refs, tuple(actors))


def union(masks: Iterator[int]) -> int:
    """Everything that is in one of `masks`."""
    found = 0
    for mask in masks:
        found |= mask
    return found


def protected(world: World) -> int:
    """The chunks that refs need."""
    return union(iter(world.refs))


def leased(world: World) -> int:
    """The chunks that leases keep, whether their reader has read the log again or not."""
    return union(actor.notes[0] for actor in world.actors if actor.at in LEASED)


def present(world: World, trusting: bool = False) -> int:
    """The numbers, as a mask, of the PRESENT packs; with `trusting` condemned ones, too."""
    return sum(1 << n for n, pack in enumerate(world.packs) if pack.listed and (trusting or not pack.condemned))


def chunks_of(world: World, packs: int) -> int:
    """The chunks in a set of packs."""
    return union(world.packs[n].chunks for n in bits(packs))


def lost(world: World) -> int:
    """The chunks that somebody needs and nobody has. The promise: none."""
    need = protected(world) | union(actor.notes[0] for actor in world.actors if actor.at == "open")
    for pack in world.packs:
        if pack.listed and pack.file in ("there", "going"):
            need &= ~pack.chunks
    return need


# -- the actors ------------------------------------------------------------------------------------------------------


@dataclass
class Role:
    """Somebody who works on the store. `steps` yields every atomic step that it may take in a state."""

    name: str
    me: int = field(default=-1, init=False)  # its place in World.actors
    faults: frozenset[str] = field(default=frozenset(), init=False)
    with_leases: bool = field(default=True, init=False)  # whether anybody in this world takes leases

    takes_leases: ClassVar[bool] = False
    interchangeable: ClassVar[bool] = (
        False  # all of this role run the same program, whose whole state is in World.actors
    )

    def steps(self, world: World) -> Iterator[Step]:
        """(name of the action, the state after it)."""
        actor = world.actors[self.me]
        if actor.at == "idle":
            yield from self.begin(world, actor)
        elif actor.at != "off":
            yield "crashes", become(world, self.me, self.after_crash(actor))
            yield from self.go_on(world, actor)

    def begin(self, world: World, actor: Actor) -> Iterator[Step]:
        """The first step."""
        raise NotImplementedError

    def go_on(self, world: World, actor: Actor) -> Iterator[Step]:
        """Every other step; some have none."""
        return iter(())

    def start(self) -> Actor:
        """Where it stands at the start."""
        return Actor()

    def after_crash(self, actor: Actor) -> Actor:
        """What is left of it."""
        return OFF

    def bare(self, actor: Actor) -> Actor:
        """Without what it noted and will never look at again."""
        return actor


# -- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A store at the start and those who work on it. What a scenario has, its name tells.

    lazy: deletes of packs that are not listed do not arrive. They change nothing that anybody looks at, but there are as many
    more states as there are packs to delete; should a pack be listed again, its delete arrives.
    """

    name: str
    packs: tuple[Pack, ...]
    refs: tuple[int, ...]
    roles: tuple[Role, ...]
    states_min: int  # a search that finds fewer has lost some of its actions
    lazy: bool = False


@dataclass(frozen=True)
class Result:
    """What a search found: how many states, how often each action, and the shortest way to a lost chunk if there is one."""

    states: int
    actions: Counter[str]
    trace: tuple[str, ...] | None


def explore(scenario: Scenario, faults: frozenset[str] = frozenset()) -> Result:
    """Visit every state that the scenario can reach, nearest first; stop at the first lost chunk."""
    if faults - FAULTS.keys():
        raise ValueError(f"no such fault: {sorted(faults - FAULTS.keys())}")
    roles = [replace(role) for role in scenario.roles]
    for number, role in enumerate(roles):
        role.me, role.faults, role.with_leases = number, faults, any(other.takes_leases for other in roles)
    twins = [role for role in roles if role.interchangeable]
    start = World(scenario.packs, scenario.refs, tuple(role.start() for role in roles))
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    actions: Counter[str] = Counter()
    layer = [start]
    while layer:
        following = []
        for world in layer:
            for who, what, after in successors(world, roles, scenario.lazy):
                actions[what] += 1
                after = merged(after, twins)
                if after in came_from:
                    continue
                came_from[after] = (world, f"{who} {what}")
                if lost(after):
                    return Result(len(came_from), actions, _trace(came_from, after))
                following.append(after)
        layer = following
    return Result(len(came_from), actions, None)


def merged(world: World, twins: list[Role]) -> World:
    """One state for several that differ in nothing that matters: in which of the `twins` is where, and in notes of no use.

    So in a trace "gc 1" and "gc 2" may change names on the way.
    """
    if not twins:
        return world
    actors = list(world.actors)
    for role, actor in zip(twins, sorted(role.bare(actors[role.me]) for role in twins), strict=True):
        actors[role.me] = actor
    return world._replace(actors=tuple(actors))


def successors(world: World, roles: list[Role], lazy: bool) -> Iterator[tuple[str, str, World]]:
    """(who, what, the state after it) for everything that can happen next."""
    for role in roles:
        for what, after in role.steps(world):
            yield role.name, what, after
    for number, pack in enumerate(world.packs):
        if pack.file == "going" and (pack.listed or not lazy):
            packs = put(world.packs, number, pack._replace(file="gone"))
            yield f"pack {number}:", "a delete arrives", world._replace(packs=packs)


def _trace(came_from: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    steps: list[str] = []
    while (step := came_from[world]) is not None:
        world, label = step
        steps.append(label)
    return tuple(reversed(steps))


if __name__ == "__main__":
    from .gc_scenarios import main  # scenarios are made of what stands above

    main()
