"""The stores and actors with which the model is searched: several small worlds instead of one product of everything.

Chunks: X is what the store has at the start, in one pack, and what may be forgotten; A and B are new. Ref 0 is main; it needs X at
the start (in worlds with `main=0` X is garbage already).
"""

from __future__ import annotations

import argparse
import time

from .gc_actors import Collector, Forgetter, Part, Reader, Writer
from .gc_model import Pack, Role, Scenario, explore

X, A, B = 0, 1, 2


def world(
    name: str,
    states_min: int,
    *roles: Role,
    free: int = 0,
    held: tuple[int, ...] = (X,),
    main: int = 1 << X,
    lazy: bool = False,
) -> Scenario:
    """A pack for each chunk of `held`, and `free` numbers for new packs; refs 1 and 2 do not exist yet."""
    packs = tuple(Pack(1 << chunk, "there", listed=True) for chunk in held) + (Pack(),) * free
    return Scenario(name, packs, (main, 0, 0), roles, states_min, lazy)


def puts(name: str, *chunks: int, packs: tuple[int, ...], ref: int | None = 1) -> Writer:
    """A writer that commits `chunks` (or, without a ref, only lists a pack with them)."""
    return Writer(name, (Part(chunks, ref),), packs)


def imports(name: str, *parts: int, packs: tuple[int, ...]) -> Writer:
    """A long import: a pack for each chunk, listed at once; the commit comes with the last."""
    return Writer(name, (*(Part((chunk,), None) for chunk in parts[:-1]), Part((parts[-1],), 1)), packs)


def extends(name: str, ref: int, *chunks: int, packs: tuple[int, ...] = (), source: int = 0) -> Writer:
    """A writer whose commit is a child of `source`; without chunks, a new ref to that very commit."""
    return Writer(name, (Part(chunks, ref),), packs, source=source)


def repacks(name: str, *chunks: int, packs: tuple[int, ...]) -> Writer:
    """Lists a second copy of chunks."""
    return Writer(name, (Part(chunks, None),), packs, copies=True)


def forgets(ref: int = 0, leave: int = 0) -> Forgetter:
    return Forgetter(f"ref {ref}:", ref, leave)


def gc(number: int = 1, runs: int = 1) -> Collector:
    return Collector(f"gc {number}", runs)


SCENARIOS = (
    world("dedup hits, a gc that runs twice", 7_700, puts("A", X, A, packs=(1, 2)), forgets(), gc(1, 2), free=2),
    world("dedup hits, two gcs", 21_000, puts("A", X, packs=(1, 2)), forgets(), gc(1), gc(2), free=2),
    world(
        "two writers of the same, a gc",
        18_900,
        puts("A", X, packs=(1, 2)),
        puts("B", X, packs=(3,), ref=2),
        forgets(),
        gc(),
        free=3,
    ),
    world(
        "two writers of the same, two gcs",
        89_700,
        puts("A", X, packs=(1,)),
        puts("B", X, packs=(2,), ref=2),
        gc(1),
        gc(2),
        free=2,
        main=0,
        lazy=True,
    ),
    world(
        "two writers of the same new chunk, two gcs",
        24_600,
        puts("A", X, packs=(0,)),
        puts("B", X, packs=(1,), ref=2),
        gc(1),
        gc(2),
        held=(),
        free=2,
        main=0,
    ),
    world(
        "two writers on one branch, a gc",
        10_200,
        extends("A", 0, A, packs=(1,)),
        extends("B", 0, B, packs=(2,)),
        forgets(),
        gc(),
        free=2,
    ),
    world("a long import, a gc", 20_900, imports("A", A, X, packs=(1, 2, 3)), forgets(), gc(1, 2), free=3, lazy=True),
    world("a long import, two gcs", 22_200, imports("A", A, X, packs=(1, 2)), gc(1), gc(2), free=2, main=0, lazy=True),
    world(
        "a long import and a writer that finds its packs, a gc",
        19_300,
        imports("A", A, X, packs=(1, 2)),
        puts("B", A, packs=(3,), ref=2),
        gc(),
        free=3,
    ),
    world(
        "a repack, a dedup hit, two gcs",
        5_000,
        repacks("repack", X, packs=(1,)),
        puts("A", X, packs=(2,)),
        gc(1),
        gc(2),
        free=2,
    ),
    world("copies, three gcs, one of them twice", 1_400, gc(1), gc(2), gc(3, 2), held=(X, X)),
    world("a new ref, two gcs", 330, extends("A", 1), forgets(), gc(1), gc(2)),
    world(
        "a new ref to what a new ref keeps, two gcs",
        1_600,
        extends("A", 1),
        extends("B", 2, source=1),
        forgets(),
        forgets(1),
        gc(1),
        gc(2),
    ),
    world(
        "a child of what a new ref keeps, a gc",
        4_700,
        extends("A", 1),
        extends("B", 2, A, packs=(1, 2), source=1),
        forgets(),
        forgets(1),
        gc(),
        free=2,
    ),
    world(
        "two commits of one writer, the second copies from another, two gcs",
        29_800,
        Writer("A", (Part((A,), 1), Part((B,), 2)), (1, 2), source=0, child=False),
        forgets(),
        gc(1),
        gc(2),
        free=2,
        lazy=True,
    ),
    world(
        "forgotten history, a dedup hit, a gc",
        760,
        puts("A", X, packs=(2,)),
        forgets(leave=1 << A),
        gc(1, 2),
        held=(X, A),
        main=1 << X | 1 << A,
        free=1,
    ),
    world(
        "a reader, a new ref, two gcs", 3_400, Reader("reader"), extends("A", 1), forgets(), forgets(1), gc(1), gc(2)
    ),
)
# The smallest scenario in which a fault loses a chunk.
FOUND_IN = {
    "no fence": "a new ref, two gcs",
    "delete at the fence": "a new ref, two gcs",
    "fence after delete": "dedup hits, two gcs",
    "has() trusts condemned packs": "dedup hits, two gcs",
    "no second mark": "dedup hits, a gc that runs twice",
    "second mark without leases": "a reader, a new ref, two gcs",
    "leases before the log": "a reader, a new ref, two gcs",
    "condemned packs as keepers": "dedup hits, two gcs",
    "gc ignores being overtaken": "copies, three gcs, one of them twice",
    "no validation": "dedup hits, two gcs",
    "validation asks the disk": "dedup hits, two gcs",
    "own packs are listed unchecked": "dedup hits, a gc that runs twice",
    "removed packs are forgotten": "dedup hits, a gc that runs twice",
    "own published packs not validated": "a long import, a gc",
    "lost slot without replay": "dedup hits, two gcs",
    "lost answer is a conflict": "two writers on one branch, a gc",
    "protection is not asked for": "a new ref, two gcs",
    "validation outlives protection": "a child of what a new ref keeps, a gc",
    "copying counts as validation": "dedup hits, a gc that runs twice",
    "base moves with a commit": "two commits of one writer, the second copies from another, two gcs",
    "lease without reading again": "a reader, a new ref, two gcs",
}

LONG = (
    world(
        "long: two writers, a new ref, two gcs",
        1,
        puts("A", X, packs=(1,)),
        puts("B", X, packs=(2,), ref=2),
        extends("tag", 1),
        forgets(),
        gc(1),
        gc(2),
        free=2,
        lazy=True,
    ),
    world(
        "long: two writers that upload again, two gcs",
        1,
        puts("A", X, A, packs=(1, 2)),
        puts("B", X, packs=(3,), ref=2),
        forgets(),
        gc(1),
        gc(2),
        free=3,
        lazy=True,
    ),
    world(
        "long: a long import, a dedup hit, two gcs",
        1,
        imports("A", A, X, packs=(1, 2)),
        puts("B", A, packs=(3,), ref=2),
        gc(1),
        gc(2),
        free=3,
        main=0,
        lazy=True,
    ),
    world(
        "long: a long import, two gcs, one twice",
        1,
        imports("A", A, X, packs=(1, 2, 3)),
        forgets(),
        gc(1),
        gc(2, 2),
        free=3,
        lazy=True,
    ),
    world(
        "long: a repack, two dedup hits, two gcs",
        1,
        repacks("repack", X, packs=(1,)),
        puts("A", X, packs=(2,)),
        puts("B", X, packs=(3,), ref=2),
        forgets(),
        gc(1),
        gc(2),
        free=3,
        lazy=True,
    ),
    world(
        "long: a reader, a new ref, a dedup hit, two gcs",
        1,
        Reader("reader"),
        extends("A", 1),
        puts("B", X, packs=(1,), ref=2),
        forgets(),
        forgets(1),
        gc(1),
        gc(2),
        free=1,
        lazy=True,
    ),
)


def main() -> None:
    """`python -m tests.stateful.gc_model [--long]`: search, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.stateful.gc_model", description="Search the model of gc.")
    parser.add_argument("--long", action="store_true", help="also the large worlds: minutes, and some GB of memory")
    parser.add_argument("--fault", default="", help="switch a fault on and print the shortest way to a lost chunk")
    chosen = parser.parse_args()
    lost_any = False
    for scenario in SCENARIOS + (LONG if chosen.long else ()):
        started = time.monotonic()
        result = explore(scenario, frozenset({chosen.fault} - {""}))
        seconds = time.monotonic() - started
        print(
            f"{result.states:9} states {sum(result.actions.values()):9} steps {seconds:6.1f} s  {scenario.name}",
            flush=True,
        )
        if result.trace is not None:
            lost_any = True
            print("a chunk is lost:", *result.trace, sep="\n    ")
    raise SystemExit(lost_any)
