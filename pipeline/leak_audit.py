"""How much a split by photo would leak: groups on both sides, and how far that lifts a linear probe's accuracy.

Photos of one listing show one car before one background, so a model that has seen one of them knows the others. The
probe is logistic regression on embeddings, judged twice over five folds: folds of photos, and folds of whole groups.
What it has more in the first is what it remembers rather than reads.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold
from threadpoolctl import threadpool_limits

FOLDS, SEED = 5, 0
# Inverse strength of the L2 penalty, for features of norm 1.
_C = 100.0
_MAX_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Probe:
    """What a linear probe gets right (0 to 1) in folds by photo and by group; None with the reason in `why_not`."""

    target: str
    num_photos: int
    num_groups: int
    num_classes: int
    majority: float | None = None
    by_photo: float | None = None
    by_group: float | None = None
    why_not: str | None = None

    @property
    def inflation(self) -> float | None:
        """By how much a split by photo flatters the probe."""
        return None if self.by_photo is None or self.by_group is None else self.by_photo - self.by_group


@dataclass(frozen=True, slots=True)
class Crossing:
    """What a split by photo would do to the groups, on average over its draws."""

    groups: int
    groups_of_several: int
    crossing: float  # groups that would be on two sides or more
    seen_share: float  # of the photos held out, those with one of their group in train


def probe(
    target: str,
    features: NDArray[np.floating],
    classes: Sequence[Hashable | None],
    groups: Sequence[Hashable],
    *,
    min_groups: int = 1,
) -> Probe:
    """Judge a probe for one target on features (N, D), L2-normalised first; photos without a class are left out.

    Classes that fewer than `min_groups` groups have are left out too: no fold by group could learn and ask them both.
    """
    kept = _enough(classes, groups, min_groups)
    labels = np.unique([str(classes[index]) for index in kept], return_inverse=True)[1]
    members = np.unique([str(groups[index]) for index in kept], return_inverse=True)[1]
    num_classes, num_groups = len(set(labels.tolist())), len(set(members.tolist()))
    counted = Probe(target, len(kept), num_groups, num_classes)
    if (why_not := _too_few(counted)) is not None:
        return Probe(target, len(kept), num_groups, num_classes, why_not=why_not)
    # Products this small are faster on one thread; where others work beside, threads that wait for each other take
    # twenty times as long.
    with threadpool_limits(limits=1):
        vectors = _normalised(np.asarray(features)[kept])
        by_photo = KFold(FOLDS, shuffle=True, random_state=SEED).split(vectors)
        by_group = GroupKFold(FOLDS).split(vectors, groups=members)
        return Probe(
            target,
            len(kept),
            num_groups,
            num_classes,
            majority=float(np.bincount(labels).max() / len(labels)),
            by_photo=_share_right(vectors, labels, list(by_photo)),
            by_group=_share_right(vectors, labels, list(by_group)),
        )


def crossing_groups(sizes: Mapping[int, int], fractions: Sequence[float]) -> Crossing:
    """Work out what a split by photo would do, from how many groups there are of each size.

    `fractions` are those of the splits, train first. A group of n photos stays on one side with probability
    sum(f^n); a photo held out has none of its n - 1 siblings in train with probability (1 - train)^(n - 1).
    """
    shares = np.asarray(fractions, dtype=float) / sum(fractions)
    crossing = sum(count * (1 - float((shares**n).sum())) for n, count in sizes.items())
    photos = sum(n * count for n, count in sizes.items())
    seen = sum(n * count * (1 - (1 - shares[0]) ** (n - 1)) for n, count in sizes.items())
    several = sum(count for n, count in sizes.items() if n > 1)
    return Crossing(sum(sizes.values()), several, crossing, float(seen / photos) if photos else 0.0)


def _enough(classes: Sequence[Hashable | None], groups: Sequence[Hashable], min_groups: int) -> list[int]:
    pairs = {(label, group) for label, group in zip(classes, groups, strict=True) if label is not None}
    num_groups = Counter(label for label, _ in pairs)
    return [index for index, label in enumerate(classes) if label is not None and num_groups[label] >= min_groups]


def _too_few(counted: Probe) -> str | None:
    if counted.num_classes < 2:
        return f"{counted.num_classes} classes that enough groups have, a probe needs 2"
    if counted.num_groups < FOLDS:
        return f"{counted.num_groups} groups, {FOLDS} folds need as many"
    return None


def _normalised(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Bring rows to L2 norm 1 and, where there are fewer rows than columns, into the space they span.

    That rotation changes no distance and so no fit with an L2 penalty; it only saves time.
    """
    wide: NDArray[np.float64] = np.asarray(vectors, dtype=np.float64)
    wide = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    if wide.shape[0] >= wide.shape[1]:
        return wide
    left, scale, _ = np.linalg.svd(wide, full_matrices=False)
    rotated: NDArray[np.float64] = left * scale
    return rotated


def _share_right(
    vectors: NDArray[np.float64],
    labels: NDArray[np.intp],
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> float:
    right = 0
    for train, asked in folds:
        if len(known := np.unique(labels[train])) == 1:
            answers = np.full(len(asked), known[0])
        else:
            model = LogisticRegression(C=_C, max_iter=_MAX_ITERATIONS)
            answers = model.fit(vectors[train], labels[train]).predict(vectors[asked])
        right += int((answers == labels[asked]).sum())
    return right / len(labels)
