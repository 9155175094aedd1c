"""Where the filter's threshold lies, what it loses at most, and what it removes: figures of out-of-fold scores.

The threshold is a score of a labelled keeper, and what scores above it is dropped. It is the lowest that keeps to the
wanted false-negative rate in three ways, each an order statistic whose rank is set before a score is seen:

* of all keepers sampled at random, so that the expected rate is at most the wanted one: rank e + 1 with
  (e + 1) / (n + 1) <= max_fnr, the largest score where n is too small for any;
* of one keeper a listing, on which the upper bound rests (see fnr_bound.py): the rank as above; or, where the wanted
  rate is to be proved and there are enough listings, the largest rank whose bound proves it;
* of all labelled keepers, only where those sampled at random are too few to say anything of such a rate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fnr_bound import labels_needed, listing_of, one_per_listing, stretched_sizes, upper_fnr
from pipeline.label_rows import RANDOM
from pipeline.score_filter import Floats

# A curve has at most so many points, so that a report stays small.
_CURVE_POINTS = 400


@dataclass(frozen=True)
class Labelled:
    """The labels that a filter is fitted to, in order of key; arrays (N,). `is_random` is where `sampled_by` is."""

    keys: list[str]
    is_junk: NDArray[np.bool_]
    junk_types: list[str | None]
    sampled_by: list[str]

    @property
    def listings(self) -> NDArray[np.str_]:
        """Name the listing of each."""
        return np.array([listing_of(key) for key in self.keys])

    @property
    def is_random(self) -> NDArray[np.bool_]:
        """Tell which were sampled at random."""
        return np.array([one == RANDOM for one in self.sampled_by], dtype=np.bool_)


@dataclass(frozen=True)
class Threshold:
    """A threshold and what is known of it; `fnr_upper95` is null where no keeper was sampled at random."""

    threshold: float
    fnr: float
    fnr_upper95: float | None
    junk_removed: float
    labels_needed: int
    random_keepers: int
    random_listings: int


def choose_threshold(labelled: Labelled, scores: Floats, *, max_fnr: float, prove: bool = False) -> Threshold:
    """Choose the threshold from out-of-fold scores (N,)."""
    keepers, is_random = ~labelled.is_junk, labelled.is_random
    sampled = keepers & is_random
    sizes, speakers = _by_listing(labelled, scores, sampled)
    claimed = sampled if sampled.any() else keepers
    ranked = [(scores[claimed], expected_errors(int(claimed.sum()), max_fnr))]
    errors = (provable_errors if prove else _expected_by_listing)(sizes, max_fnr)
    if len(speakers):
        ranked.append((speakers, errors))
    if (len(speakers) + 1) * max_fnr < 1:
        ranked.append((scores[keepers], expected_errors(int(keepers.sum()), max_fnr)))
    threshold = max(float(np.sort(values)[-1 - rank]) for values, rank in ranked)
    judged = labelled.is_junk & is_random if (labelled.is_junk & is_random).any() else labelled.is_junk
    return Threshold(
        threshold=threshold,
        fnr=float((scores[claimed] > threshold).mean()),
        fnr_upper95=upper_fnr(errors, sizes) if len(sizes) else None,
        junk_removed=float((scores[judged] > threshold).mean()),
        labels_needed=keepers_to_prove(sizes, max_fnr),
        random_keepers=int(sampled.sum()),
        random_listings=len(sizes),
    )


def expected_errors(num_units: int, max_fnr: float) -> int:
    """Return how many units may lie above the threshold so that the expected rate is at most the wanted one."""
    return max(0, int((num_units + 1) * max_fnr + 1e-9) - 1)


def provable_errors(sizes: Sequence[int], max_fnr: float) -> int:
    """Return how many listings may speak against the filter: as many as still prove the rate, if any do."""
    most = _expected_by_listing(sizes, max_fnr)
    return next((errors for errors in range(most, -1, -1) if upper_fnr(errors, sizes) <= max_fnr), most)


def _expected_by_listing(sizes: Sequence[int], max_fnr: float) -> int:
    return expected_errors(len(sizes), max_fnr)


def keepers_to_prove(sizes: Sequence[int], max_fnr: float) -> int:
    """Return how many keepers sampled at random prove the rate, where listings go on as those of `sizes`.

    It is the fewest with one keeper a listing where there are none yet.
    """
    if not sizes:
        return labels_needed(max_fnr)
    low, high = 0, labels_needed(max_fnr)
    while upper_fnr(0, stretched_sizes(sizes, high)) > max_fnr:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        proves = upper_fnr(0, stretched_sizes(sizes, middle)) <= max_fnr
        low, high = (low, middle) if proves else (middle, high)
    return int(stretched_sizes(sizes, high).sum())


def curve(labelled: Labelled, scores: Floats) -> list[dict[str, float]]:
    """Return the shares of keepers dropped and junk removed at falling thresholds, of random labels where there are."""
    sampled = labelled.is_random
    both = all((sampled & mask).any() for mask in (labelled.is_junk, ~labelled.is_junk))
    used = sampled if both else np.ones_like(sampled)
    keepers = np.sort(scores[used & ~labelled.is_junk])
    junk = np.sort(scores[used & labelled.is_junk])
    every = np.unique(np.concatenate([keepers, junk]))[::-1]
    chosen = every[np.unique(np.linspace(0, len(every) - 1, min(_CURVE_POINTS, len(every))).round().astype(int))]

    def above(ordered: Floats, threshold: float) -> float:
        return 1 - int(np.searchsorted(ordered, threshold, side="right")) / len(ordered)

    return [{"threshold": float(t), "fnr": above(keepers, t), "junk_removed": above(junk, t)} for t in chosen]


def confusion(labelled: Labelled, scores: Floats, threshold: float) -> dict[str, int]:
    """Count labels against what the filter does, over all labels."""
    dropped = scores > threshold
    return {
        "keep_kept": int((~labelled.is_junk & ~dropped).sum()),
        "keep_dropped": int((~labelled.is_junk & dropped).sum()),
        "junk_kept": int((labelled.is_junk & ~dropped).sum()),
        "junk_dropped": int((labelled.is_junk & dropped).sum()),
    }


def by_junk_type(labelled: Labelled, scores: Floats, threshold: float) -> list[dict[str, Any]]:
    """Return how many of each type of junk there are and are removed, most frequent first; null is not told."""
    junk = np.flatnonzero(labelled.is_junk)
    there = Counter(labelled.junk_types[i] for i in junk)
    removed = Counter(labelled.junk_types[i] for i in junk if scores[i] > threshold)
    ordered = sorted(there, key=lambda name: (-there[name], name is None, name or ""))
    return [{"junk_type": name, "labels": there[name], "removed": removed[name]} for name in ordered]


def as_figures(threshold: Threshold) -> dict[str, Any]:
    """Return a threshold's figures as plain JSON values."""
    return asdict(threshold)


def _by_listing(labelled: Labelled, scores: Floats, sampled: NDArray[np.bool_]) -> tuple[list[int], Floats]:
    """Return how many sampled keepers each listing has, and the score of the one that speaks for it."""
    places = {labelled.keys[i]: i for i in np.flatnonzero(sampled)}
    sizes = Counter(map(listing_of, places))
    chosen = one_per_listing(places)
    return [sizes[name] for name in chosen], scores[[places[key] for key in chosen.values()]]
