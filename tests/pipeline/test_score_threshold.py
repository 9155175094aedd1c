"""Where the threshold lies, on drawn scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.fnr_bound import labels_needed, stretched_sizes, upper_fnr
from pipeline.score_threshold import (
    Labelled,
    choose_threshold,
    confusion,
    curve,
    expected_errors,
    keepers_to_prove,
    provable_errors,
)


def labelled(num_keepers: int, num_junk: int, *, per_listing: int = 1, sampled_by: str = "random") -> Labelled:
    total = num_keepers + num_junk
    keys = [f"demo/{i // per_listing:06d}/{i % per_listing:03d}" for i in range(total)]
    junk = np.arange(total) >= num_keepers
    return Labelled(keys, junk, ["interior" if one else None for one in junk], [sampled_by] * total)


def drawn_scores(one: Labelled, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=len(one.keys))
    return (drawn + np.where(one.is_junk, 4, 0)).astype(np.float32)


@given(st.integers(20, 3000), st.sampled_from([0.005, 0.01, 0.05]))
def test_no_more_keepers_are_dropped_than_wanted(num_keepers: int, max_fnr: float) -> None:
    one = labelled(num_keepers, 30)
    chosen = choose_threshold(one, drawn_scores(one), max_fnr=max_fnr)
    assert chosen.fnr <= max_fnr
    assert chosen.fnr <= (chosen.fnr_upper95 or 0)


def test_with_enough_labels_the_wanted_rate_is_proved_on_demand() -> None:
    one = labelled(labels_needed(0.01, errors=2), 30)
    plain = choose_threshold(one, drawn_scores(one), max_fnr=0.01)
    chosen = choose_threshold(one, drawn_scores(one), max_fnr=0.01, prove=True)
    assert plain.threshold < chosen.threshold
    assert plain.fnr_upper95 is not None
    assert plain.fnr_upper95 > 0.01
    assert chosen.fnr == pytest.approx(2 / len(one.keys[:-30]))
    assert chosen.fnr_upper95 is not None
    assert chosen.fnr_upper95 <= 0.01


def test_the_threshold_is_a_keepers_score_and_ties_with_it_are_kept() -> None:
    one = labelled(100, 30)
    scores = np.where(one.is_junk, 1.0, 0.0).astype(np.float32)
    chosen = choose_threshold(one, scores, max_fnr=0.01)
    assert (chosen.threshold, chosen.fnr, chosen.junk_removed) == (0.0, 0.0, 1.0)


def test_photos_that_were_sought_out_do_not_count_for_the_bound() -> None:
    one = labelled(400, 40)
    sought = Labelled(one.keys, one.is_junk, one.junk_types, ["random"] * 300 + ["uncertain"] * 140)
    chosen = choose_threshold(sought, drawn_scores(one), max_fnr=0.01)
    assert (chosen.random_keepers, chosen.random_listings) == (300, 300)
    assert chosen.fnr_upper95 == pytest.approx(upper_fnr(2, [1] * 300))


def test_where_few_are_random_the_sought_ones_make_the_threshold_careful() -> None:
    one = labelled(60, 30)
    scores = drawn_scores(one)
    scores[59] = 3.5
    sought = Labelled(one.keys, one.is_junk, one.junk_types, ["random"] * 50 + ["uncertain"] * 40)
    assert choose_threshold(sought, scores, max_fnr=0.01).threshold == 3.5


def test_photos_of_one_listing_prove_less() -> None:
    apart, together = labelled(300, 30), labelled(300, 30, per_listing=10)
    scores = drawn_scores(apart)
    bounds = [choose_threshold(one, scores, max_fnr=0.01).fnr_upper95 for one in (apart, together)]
    assert bounds[0] is not None
    assert bounds[1] is not None
    assert bounds[0] < 0.025 < 0.09 < bounds[1]


@given(st.lists(st.integers(1, 9), max_size=40))
def test_the_keepers_to_prove_are_enough(sizes: list[int]) -> None:
    needed = keepers_to_prove(sizes, 0.02)
    assert needed >= labels_needed(0.02)
    if sizes:
        counts = range(1, needed + 1)
        listings = next(n for n in counts if stretched_sizes(sizes, n).sum() >= needed)
        assert upper_fnr(0, stretched_sizes(sizes, listings)) <= 0.02


@given(st.integers(0, 5000), st.sampled_from([0.003, 0.01, 0.2]))
def test_the_rank_keeps_the_expected_rate(num_units: int, max_fnr: float) -> None:
    errors = expected_errors(num_units, max_fnr)
    assert errors == 0 or (errors + 1) / (num_units + 1) <= max_fnr + 1e-9
    assert provable_errors([1] * num_units, max_fnr) <= errors


def test_the_curve_rises_from_nothing_to_everything() -> None:
    one = labelled(1000, 500)
    points = curve(one, drawn_scores(one))
    assert len(points) <= 400
    assert (points[0]["fnr"], points[0]["junk_removed"]) == (0.0, 0.0)
    assert points[-1]["fnr"] > 0.99
    assert [p["junk_removed"] for p in points] == sorted(p["junk_removed"] for p in points)


def test_the_confusion_counts_every_label_once() -> None:
    one = labelled(70, 30)
    assert sum(confusion(one, drawn_scores(one), 2.0).values()) == 100
