"""Photos of nearly equal hash to stars: each copy tied to one photo before it that its pixels confirm.

Photos come in canonical order, as ranks from 0. What is wanted is what taking them one by one would give: a photo is
compared with the representatives before it whose hash is near, the nearest hash first, then the earliest; the first
that is confirmed has it, and a photo that none has is a representative. Here all photos go on at once, in rounds:
each names the one photo that it has to be compared with next, and all those pairs are confirmed together. So 200,000
photos of one picture take one round and a comparison each, and who confirms how many at a time changes nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.hash_join import Hands, Pairs, differing_bits, near_pairs
from pipeline.hash_join_kernels import Hashes

# Which bits of a hash a mirrored picture has the other way: those of odd columns, odd across.
MIRRORED_BITS = np.uint64(0x5555555555555555)
# Nearest hashes that a photo's own is held against; photos of the same picture are nearer than strangers by chance.
MAX_NEIGHBOURS = 32
_LINKS_AT_ONCE = 1 << 24
_UNDECIDED, _TOP, _COPY = 0, 1, 2
_NO_RESULT, _CONFIRMED = 0, 1

Confirm = Callable[[Pairs], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Which photos may be copies of which, by hash.

    Photos of equal hash form a group: `members` (N,) are ranks by group, `starts` (G + 1,) where each begins. Group g
    is near the groups `links[link_starts[g] : link_starts[g + 1]]`, the nearest first, at `distances` bits.
    """

    members: NDArray[np.uint32]
    starts: NDArray[np.uint32]
    link_starts: NDArray[np.int64]
    links: NDArray[np.uint32]
    distances: NDArray[np.uint8]

    def ranks(self) -> NDArray[np.uint32]:
        """Return the photos that take part in any comparison, in order."""
        taken = np.diff(self.starts) > 1
        taken |= np.diff(self.link_starts) > 0
        taken[self.links] = True
        return np.sort(self.members[np.repeat(taken, np.diff(self.starts))])


@dataclass(frozen=True, slots=True)
class Stars:
    """Each copy's rank, that of the representative it is tied to, and their distance in bits; in order of copy."""

    copies: NDArray[np.int64]
    tops: NDArray[np.int64]
    distances: NDArray[np.uint8]
    num_compared: int


def find_candidates(hashes: Hashes, max_distance: int, hands: Hands, *, mirrored: bool = False) -> Candidates:
    """Group photos, given by their hashes (N,) in order of rank, and find the groups within the distance.

    `mirrored` counts groups as near too where one is near the mirrored other.
    """
    members = np.argsort(hashes, kind="stable").astype(np.uint32)
    ordered = hashes[members]
    is_first = np.ones(len(hashes), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = np.append(np.flatnonzero(is_first), len(hashes)).astype(np.uint32)
    distinct = ordered[starts[:-1]]
    del ordered, is_first
    link_starts, links, distances = _links(distinct, members, starts, max_distance, hands, mirrored)
    return Candidates(members, starts, link_starts, links, distances)


def find_stars(candidates: Candidates, confirm: Confirm, *, max_compared: int) -> Stars:
    """Tie photos to representatives; `confirm` tells of pairs (copy, top) of ranks (K, 2) which show one picture.

    A photo that is not confirmed with `max_compared` others is a representative.
    """
    rounds = _Rounds(candidates, max_compared)
    num_compared = 0
    while len(pairs := rounds.wanted()):
        num_compared += len(pairs)
        rounds.tell(pairs, confirm(pairs))
    copies = np.flatnonzero(rounds.state == _COPY)
    return Stars(copies, rounds.tops[copies].astype(np.int64), rounds.distances[copies], num_compared)


def _links(
    distinct: Hashes,
    members: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    max_distance: int,
    hands: Hands,
    mirrored: bool,
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint8]]:
    """Return for each group the groups near it that may hold a photo before one of its own, the nearest first."""
    firsts, has_more = members[starts[:-1]], np.diff(starts) > 1
    kept = _Links(firsts)
    for pairs in _group_pairs(distinct, max_distance, hands, mirrored):
        left, right = pairs[:, 0], pairs[:, 1]
        distances = differing_bits(distinct[left], distinct[right])
        if mirrored:
            distances = np.minimum(distances, differing_bits(distinct[left] ^ MIRRORED_BITS, distinct[right]))
        is_left_first = firsts[left] < firsts[right]
        earlier, later = np.where(is_left_first, left, right), np.where(is_left_first, right, left)
        kept.add(later, earlier, distances)
        # A later photo of the group that begins first may hang on one of the other.
        back = has_more[earlier]
        kept.add(earlier[back], later[back], distances[back])
    sources, links, link_distances = kept.sorted()
    link_starts = np.zeros(len(distinct) + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=len(distinct)), out=link_starts[1:])
    return link_starts, links, link_distances


def _group_pairs(distinct: Hashes, max_distance: int, hands: Hands, mirrored: bool) -> Iterator[Pairs]:
    """Yield pairs of groups near each other, or near the mirrored other; the latter may come again."""
    if not mirrored:
        yield from near_pairs(distinct, max_distance, hands)
        return
    num_groups = len(distinct)
    for pairs in near_pairs(np.concatenate([distinct, distinct ^ MIRRORED_BITS]), max_distance, hands):
        # Two mirrored hashes are as near as the hashes are.
        pairs = pairs[(pairs < num_groups).any(axis=1)] % num_groups
        yield pairs[pairs[:, 0] != pairs[:, 1]]


class _Links:
    """Links between groups, of each the nearest ones; what is over is thrown away as it comes."""

    def __init__(self, firsts: NDArray[np.uint32]) -> None:
        self._firsts = firsts
        self._blocks: list[tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint8]]] = []
        self._num_links, self._most = 0, _LINKS_AT_ONCE

    def add(self, sources: NDArray[np.int64], links: NDArray[np.int64], distances: NDArray[np.uint8]) -> None:
        """Add links from one group each to another."""
        self._blocks.append((sources.astype(np.uint32), links.astype(np.uint32), distances))
        self._num_links += len(sources)
        if self._num_links > self._most:
            self._most = len(self.sorted()[0]) + _LINKS_AT_ONCE

    def sorted(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint8]]:
        """Return the links in order of source and distance, then of what stands first; each once."""
        if not self._blocks:
            return np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint8)
        sources, links, distances = (np.concatenate(columns) for columns in zip(*self._blocks, strict=True))
        self._blocks = []
        order = np.lexsort((self._firsts[links], distances, sources))
        sources, links, distances = sources[order], links[order], distances[order]
        is_new = np.ones(len(sources), np.bool_)
        is_new[1:] = (sources[1:] != sources[:-1]) | (links[1:] != links[:-1])
        sources, links, distances = sources[is_new], links[is_new], distances[is_new]
        begins = np.flatnonzero(np.append(True, sources[1:] != sources[:-1]))
        place = np.arange(len(sources)) - np.repeat(begins, np.diff(np.append(begins, len(sources))))
        near = place < MAX_NEIGHBOURS
        self._blocks = [(sources[near], links[near], distances[near])]
        self._num_links = int(near.sum())
        return self._blocks[0]


class _Rounds:
    """Where each photo stands."""

    def __init__(self, candidates: Candidates, max_compared: int) -> None:
        self._candidates, self._max_compared = candidates, max_compared
        num_photos = len(candidates.members)
        sizes = np.diff(candidates.starts)
        self._places = np.empty(num_photos, np.uint32)
        self._places[candidates.members] = np.arange(num_photos, dtype=np.uint32)
        self._groups = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
        # From each place of `members` on, the next that is no copy; the last place leads to the end.
        self._next = np.arange(num_photos + 1, dtype=np.uint32)
        self.state = np.full(num_photos, _TOP, np.uint8)
        self.tops = np.zeros(num_photos, np.uint32)
        self.distances = np.zeros(num_photos, np.uint8)
        has_candidates = np.diff(candidates.link_starts) > 0
        undecided = np.repeat(has_candidates, sizes)
        undecided |= np.repeat(sizes > 1, sizes)
        self._active = np.sort(candidates.members[undecided]).astype(np.int64)
        self.state[self._active] = _UNDECIDED
        # Of each photo: the group it is at (0 its own, then its links), the place there, how often it was refused.
        self._link = np.zeros(num_photos, np.uint8)
        self._place = candidates.starts[self._groups[self._places]]
        self._refused = np.zeros(num_photos, np.uint8)
        self._result = np.zeros(num_photos, np.uint8)

    def wanted(self) -> Pairs:
        """Decide what can be decided, and return the pairs that have to be compared next."""
        pairs = np.empty((len(self._active), 2), np.int64)
        num_wanted = _go_on(
            self._active,
            self._candidates.members,
            self._candidates.starts,
            self._candidates.link_starts,
            self._candidates.links,
            self._candidates.distances,
            self._groups,
            self._places,
            self._next,
            self.state,
            self.tops,
            self.distances,
            self._link,
            self._place,
            self._refused,
            self._result,
            self._max_compared,
            pairs,
        )
        self._active = self._active[self.state[self._active] == _UNDECIDED]
        return pairs[:num_wanted]

    def tell(self, pairs: Pairs, confirmed: NDArray[np.bool_]) -> None:
        """Take the results of comparing pairs."""
        self._result[pairs[confirmed, 0]] = _CONFIRMED
        refused = pairs[~confirmed, 0]
        self._refused[refused] += np.uint8(1)
        self._place[refused] += np.uint32(1)


@njit(cache=True)
def _live(following: NDArray[np.uint32], place: int) -> int:
    """Return the first place from `place` on that is no copy, and shorten the way there."""
    end = place
    while following[end] != end:
        end = following[end]
    while following[place] != end:
        further = following[place]
        following[place] = end
        place = further
    return end


@njit(cache=True)
def _go_on(
    active: NDArray[np.int64],
    members: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    link_starts: NDArray[np.int64],
    links: NDArray[np.uint32],
    link_distances: NDArray[np.uint8],
    groups: NDArray[np.uint32],
    places: NDArray[np.uint32],
    following: NDArray[np.uint32],
    state: NDArray[np.uint8],
    tops: NDArray[np.uint32],
    distances: NDArray[np.uint8],
    at_link: NDArray[np.uint8],
    at_place: NDArray[np.uint32],
    refused: NDArray[np.uint8],
    result: NDArray[np.uint8],
    max_compared: int,
    pairs: Pairs,
) -> int:
    """Take each undecided photo, in order of rank, as far as what is known leads; return how many pairs are wanted."""
    num_wanted = 0
    for photo in active:
        own = groups[places[photo]]
        num_links = link_starts[own + 1] - link_starts[own]
        while True:
            if refused[photo] >= max_compared or at_link[photo] > num_links:
                state[photo] = 1
                break
            link = link_starts[own] + at_link[photo] - 1
            group = own if at_link[photo] == 0 else links[link]
            place = at_place[photo]
            if result[photo] == 1:
                other = members[place]
                if state[other] == 1:
                    state[photo] = 2
                    tops[photo] = other
                    distances[photo] = 0 if at_link[photo] == 0 else link_distances[link]
                    following[places[photo]] = places[photo] + 1
                    break
                if state[other] == 0:
                    break
                result[photo] = 0
            place = _live(following, place)
            if place >= starts[group + 1] or members[place] >= photo:
                at_link[photo] += 1
                if at_link[photo] <= num_links:
                    at_place[photo] = starts[links[link_starts[own] + at_link[photo] - 1]]
                continue
            at_place[photo] = place
            pairs[num_wanted, 0], pairs[num_wanted, 1] = photo, members[place]
            num_wanted += 1
            break
    return num_wanted
