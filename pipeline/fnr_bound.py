"""How many keepers a junk filter may drop at most: an exact upper bound of its false-negative rate, by listing.

A false negative is a keeper that the filter drops; the rate is by photo. Photos of one listing go together (the same
dealer, light and banner), so a listing counts once: one of its labelled keepers, chosen blindly, speaks for it. The
threshold is the (errors + 1)-th largest score of these, and the number of errors is set before any score is seen.

Let r_i be the chance that the photo of listing i, which has m_i labelled keepers, scores above t. The rate by photo
above t is sum(m_i r_i) / sum(m_i). Where the threshold is too low, at most `errors` of the listings score above the t
whose rate is the bound; that chance is the binomial's of the same sum(r_i) at most (Hoeffding, 1956), so with 95 %
confidence sum(r_i) is no more than n times the bound of Clopper and Pearson (1934), which for an order statistic is
that of Wilks (1941): the same beta quantile. From listings to photos: sum(m_i r_i) <= sum(r_i) sum(m_i^2) / sum(m_i)
where r_i grows with m_i in proportion at most (Chebyshev's sum inequality). So the bound is theirs times Kish's (1965)
factor of unequal weights, n sum(m_i^2) / sum(m_i)^2, which is 1 with one keeper a listing. It holds however alike the
photos of a listing are.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

CONFIDENCE = 0.95


def upper_rate(errors: int, num_units: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of Clopper and Pearson (1934) of a rate, from independent units; 1 where there are none.

    It is also that of the share above the (errors + 1)-th largest of `num_units` independent scores (Wilks, 1941).
    """
    if not 0 <= errors <= num_units:
        raise ValueError(f"errors must be from 0 to the number of units ({num_units}), found {errors}")
    return 1.0 if errors == num_units else float(betaincinv(errors + 1, num_units - errors, confidence))


def upper_fnr(errors: int, listing_sizes: ArrayLike, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of the rate by photo, from one photo of each listing.

    `errors` of the listings' photos score above the threshold, a number fixed before the scores were seen (or at least
    as large as that of the threshold used); `listing_sizes` are the labelled keepers of each listing.
    """
    sizes = np.asarray(listing_sizes, dtype=np.float64)
    # Hoeffding's inequality asks for an expected number above errors + 1; it holds but for the last few errors.
    if errors >= len(sizes) - 1:
        return 1.0
    unequal = len(sizes) * float(np.square(sizes).sum()) / float(sizes.sum()) ** 2
    return min(1.0, upper_rate(errors, len(sizes), confidence) * unequal)


def labels_needed(max_fnr: float, errors: int = 0, confidence: float = CONFIDENCE) -> int:
    """Return how many keepers, each of another listing, prove that rate when `errors` of them are dropped."""
    if not 0 < max_fnr < 1:
        raise ValueError(f"max_fnr must lie between 0 and 1, found {max_fnr}")
    # The bound falls as the number grows: double, then halve the interval.
    low, high = errors, errors + 1
    while upper_rate(errors, high, confidence) > max_fnr:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_rate(errors, middle, confidence) > max_fnr:
            low = middle
        else:
            high = middle
    return high


def stretched_sizes(listing_sizes: ArrayLike, num_listings: int) -> NDArray[np.int64]:
    """Return the sizes of another number of listings that are distributed as these."""
    sizes = np.sort(np.asarray(listing_sizes, dtype=np.int64))
    stretched: NDArray[np.int64] = sizes[np.arange(num_listings) * len(sizes) // num_listings]
    return stretched


def listing_of(key: str) -> str:
    """Return the `SITE/LISTING_ID` of a photo's key."""
    return key.rpartition("/")[0]


def one_per_listing(keys: Iterable[str]) -> dict[str, str]:
    """Choose the photo that speaks for each listing: that of the smallest hash, blind to all but its key."""
    chosen: dict[str, str] = {}
    for key in keys:
        listing = listing_of(key)
        if listing not in chosen or _rank(key) < _rank(chosen[listing]):
            chosen[listing] = key
    return chosen


def _rank(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
