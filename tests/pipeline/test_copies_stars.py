import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.copies_stars import second_looks, stars

RANKS = [2, 0, 1, 4, 3]


def test_the_first_in_order_claims_what_it_equals() -> None:
    assert stars({(0, 1): 0.9, (1, 2): 0.8}, RANKS) == {0: 1, 2: 1}


def test_a_copy_of_a_copy_that_its_representative_does_not_equal_stands_for_itself() -> None:
    assert stars({(0, 1): 0.9, (0, 3): 0.9}, RANKS) == {0: 1}


def test_a_copy_of_a_copy_is_compared_with_the_representative_too() -> None:
    assert second_looks({(0, 1): 0.9, (0, 3): 0.9}, RANKS) == {(1, 3)}
    assert second_looks({(0, 1): 0.9, (0, 3): 0.9, (1, 3): 0.8}, RANKS) == set()


PAIRS = st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] < pair[1]))


@given(PAIRS, st.permutations(range(8)), st.randoms())
def test_stars_do_not_depend_on_the_order_of_pairs_and_hold_confirmed_pairs_only(pairs, ranks, random) -> None:  # type: ignore[no-untyped-def]  # strategies say it
    shuffled = sorted(pairs)
    random.shuffle(shuffled)
    tied = stars(dict.fromkeys(shuffled, 0.9), ranks)
    assert tied == stars(dict.fromkeys(sorted(pairs), 0.9), ranks)
    assert all((min(copy, centre), max(copy, centre)) in pairs for copy, centre in tied.items())
    assert all(ranks[centre] < ranks[copy] and centre not in tied for copy, centre in tied.items())
    # Two that stand for themselves are never equal.
    alone = [photo for photo in range(8) if photo not in tied]
    assert not [pair for pair in itertools.combinations(alone, 2) if pair in pairs]
