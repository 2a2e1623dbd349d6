"""Who owns a block: the same for everybody, in balance, and with as little moved as possible when a member comes or goes."""

from __future__ import annotations

import secrets
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.rendezvous import Rendezvous

ADDRESSES = st.lists(st.integers(1, 250), min_size=1, max_size=12, unique=True)
PACKS = [secrets.token_hex(16) for _ in range(40)]
BLOCKS = range(0, 64, bounds.STRETCH_BLOCKS)


def members_of(numbers: list[int], weights: list[float] | None = None) -> list[Member]:
    return [
        Member(f"10.0.0.{number}:7400", weight=1.0 if weights is None else weights[at % len(weights)])
        for at, number in enumerate(numbers)
    ]


def owners(members: list[Member]) -> dict[tuple[str, int], str]:
    ring = Rendezvous(members)
    return {(pack, block): ring.owner(pack, block).address for pack in PACKS for block in BLOCKS}


@settings(max_examples=30, deadline=None)
@given(ADDRESSES, st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_all_members_find_the_same_owner_in_whatever_order_they_know_them(numbers, weights, random):
    members = members_of(numbers, weights)
    shuffled = list(members)
    random.shuffle(shuffled)
    assert owners(members) == owners(shuffled)


@settings(max_examples=30, deadline=None)
@given(ADDRESSES, st.data())
def test_who_goes_leaves_its_blocks_and_moves_no_other(numbers, data):
    members = members_of(numbers)
    if len(members) == 1:
        return
    gone = data.draw(st.sampled_from(members))
    before, after = owners(members), owners([member for member in members if member is not gone])
    ring = Rendezvous(members)
    for (pack, block), owner in before.items():
        if owner != gone.address:
            assert after[pack, block] == owner
        else:  # the next in its order
            assert after[pack, block] == ring.order(pack, block)[1].address


@settings(max_examples=30, deadline=None)
@given(ADDRESSES, st.floats(0.2, 5))
def test_a_larger_weight_only_takes_blocks(numbers, factor):
    """Nothing moves between members whose weights stay."""
    members = members_of(numbers)
    changed = [Member(members[0].address, weight=factor), *members[1:]]
    before, after = owners(members), owners(changed)
    for key, owner in before.items():
        if after[key] != owner:
            assert (after[key] if factor > 1 else owner) == members[0].address


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 4.0]])
def test_shares_follow_weights(weights):
    members = members_of(list(range(1, 10)), weights)
    ring = Rendezvous(members)
    packs = [f"{number:032x}" for number in range(8_000)]
    found = Counter(ring.owner(pack, 0).address for pack in packs)
    total = sum(member.weight for member in members)
    for member in members:
        expected = len(packs) * member.weight / total
        assert abs(found[member.address] - expected) < 5 * expected**0.5  # five standard deviations


@settings(max_examples=30, deadline=None)
@given(ADDRESSES)
def test_neighbours_of_a_stretch_have_one_owner_which_leads_the_order(numbers):
    ring = Rendezvous(members_of(numbers))
    for pack in PACKS[:5]:
        for first in BLOCKS:
            owned = {ring.owner(pack, first + at).address for at in range(bounds.STRETCH_BLOCKS)}
            assert len(owned) == 1
            order = ring.order(pack, first)
            assert order[0].address in owned and sorted(order, key=id) == sorted(ring.members, key=id)


def test_owners_are_the_same_in_every_version():
    """Two daemons of different versions share one cluster: the hash is part of what they agree on."""
    ring = Rendezvous(members_of([1, 2, 3, 4], [1.0, 2.0]))
    found = [
        int(ring.owner(f"{pack:032x}", block).address.split(".")[3].split(":")[0])
        for pack in range(6)
        for block in (0, 8)
    ]
    assert found == GOLDEN


GOLDEN = [1, 2, 2, 3, 3, 1, 1, 2, 4, 1, 4, 3]
