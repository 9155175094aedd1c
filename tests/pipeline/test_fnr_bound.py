"""The bound against its textbook values, and against simulated listings whose photos go together."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.fnr_bound import labels_needed, listing_of, one_per_listing, upper_fnr, upper_rate


def test_without_errors_the_bound_is_the_rule_of_three() -> None:
    assert upper_rate(0, 299) == pytest.approx(1 - 0.05 ** (1 / 299))


@pytest.mark.parametrize(("errors", "num_units"), [(0, 7), (1, 20), (3, 474), (9, 1000)])
def test_at_the_bound_so_few_errors_have_a_chance_of_five_in_a_hundred(errors: int, num_units: int) -> None:
    bound = upper_rate(errors, num_units)
    terms = [math.comb(num_units, k) * bound**k * (1 - bound) ** (num_units - k) for k in range(errors + 1)]
    assert sum(terms) == pytest.approx(0.05)


def test_without_any_label_nothing_is_known() -> None:
    assert upper_rate(0, 0) == 1.0
    assert upper_fnr(0, []) == 1.0


def test_more_errors_than_units_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"from 0 to the number of units \(3\), found 4"):
        upper_rate(4, 3)


@pytest.mark.parametrize("max_fnr", [0.005, 0.01, 0.03])
@pytest.mark.parametrize("errors", [0, 1, 5])
def test_the_labels_needed_are_the_fewest_that_prove_the_rate(max_fnr: float, errors: int) -> None:
    needed = labels_needed(max_fnr, errors)
    assert upper_rate(errors, needed) <= max_fnr < upper_rate(errors, needed - 1)


def test_one_in_a_hundred_is_proved_by_299_keepers() -> None:
    assert labels_needed(0.01) == 299


@given(st.integers(1, 400), st.integers(0, 8))
def test_with_one_keeper_a_listing_the_bound_is_that_of_clopper_and_pearson(num_listings: int, errors: int) -> None:
    if errors < num_listings - 1:
        assert upper_fnr(errors, [1] * num_listings) == pytest.approx(upper_rate(errors, num_listings))


@given(st.lists(st.integers(1, 12), min_size=3, max_size=60), st.integers(0, 4))
def test_listings_of_many_sizes_prove_no_more_than_as_many_of_one_size(sizes: list[int], errors: int) -> None:
    if errors < len(sizes) - 1:
        assert upper_fnr(errors, sizes) >= upper_rate(errors, len(sizes)) - 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=4), st.integers(0, 1))
def test_no_rates_that_grow_with_size_in_proportion_at_most_are_beyond_the_bound(sizes: list[int], errors: int) -> None:
    """Every mix of listings' rates on a grid that shows so few errors in more than 5 % of draws keeps to it."""
    steps = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]
    rates = np.array(list(product(steps, repeat=len(sizes))))
    none = np.prod(1 - rates, axis=1)
    one = [np.prod(np.delete(1 - rates, i, axis=1), axis=1) * rates[:, i] for i in range(len(sizes))]
    chance = none + (np.sum(one, axis=0) if errors else 0)
    smaller_first = np.argsort(sizes, kind="stable")
    shares = (rates / np.array(sizes))[:, smaller_first]
    allowed = (np.diff(shares, axis=1) <= 1e-12).all(axis=1) & (chance > 0.05)
    likely = rates[allowed] @ np.array(sizes) / sum(sizes)
    assert likely.max() <= upper_fnr(errors, sizes) + 1e-9


def drawn_listings(shape: str, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Listings of 1 to 10 keepers: photos of their own kind, photos all alike, odd listings (more of the large)."""
    sizes = rng.integers(1, 11, 20_000)
    own, shared = {"free": (1.0, 0.1), "alike": (0.1, 1.0), "odd": (0.5, 0.5)}[shape]
    centres = shared * rng.normal(size=len(sizes))
    if shape == "odd":
        centres += 9.0 * (rng.random(len(sizes)) < 0.02 * np.sqrt(sizes))
    return sizes, np.repeat(centres, sizes) + own * rng.normal(size=sizes.sum())


@pytest.mark.parametrize("errors", [0, 2])
@pytest.mark.parametrize("shape", ["free", "alike", "odd"])
def test_the_rate_is_above_the_bound_in_at_most_five_of_a_hundred_draws(shape: str, errors: int) -> None:
    """Listings are drawn, and the threshold is chosen on the draw."""
    rng = np.random.default_rng(0)
    sizes, scores = drawn_listings(shape, rng)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    every = np.sort(scores)
    above = 0
    for _ in range(1000):
        drawn = rng.integers(0, len(sizes), 150)
        speakers = scores[first[drawn] + rng.integers(0, sizes[drawn])]
        threshold = np.sort(speakers)[-1 - errors]
        rate = 1 - np.searchsorted(every, threshold, side="right") / len(every)
        above += rate > upper_fnr(errors, sizes[drawn])
    print(shape, errors, above)
    assert above <= 50


def test_a_listing_speaks_with_one_photo_whatever_the_order_of_its_keys() -> None:
    keys = [f"demo/{listing}/{index:03d}" for listing in range(20) for index in range(5)]
    chosen = one_per_listing(keys)
    assert chosen == one_per_listing(reversed(keys))
    assert {listing_of(key) for key in chosen.values()} == set(chosen)
    assert len({key[-3:] for key in chosen.values()}) == 5, "not always the first one"
