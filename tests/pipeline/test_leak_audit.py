from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.leak_audit import audit
from pipeline.leak_audit import crossing_groups, probe

Cars = tuple[NDArray[np.float64], list[str], list[str]]


def cars_of(
    num_groups: int, per_group: int, *, num_classes: int, seed: int = 0
) -> tuple[np.ndarray, list[str], list[str]]:
    """Make photos whose features tell their group well and their class hardly."""
    draw = np.random.default_rng(0)
    group = np.repeat(np.arange(num_groups), per_group)
    classes = group % num_classes
    centres = draw.normal(size=(num_groups, 64))
    features = centres[group] + 0.2 * draw.normal(size=(len(group), 64))
    features[:, 0] += 0.5 * classes
    return features, [f"class {one}" for one in classes], [f"group {one}" for one in group]


def test_a_probe_that_knows_cars_again_is_flattered_by_a_split_by_photo() -> None:
    found = probe("make", *cars_of(24, 6, num_classes=4))
    assert found.by_photo is not None
    assert found.by_group is not None
    assert found.by_photo > 0.95
    assert found.by_group < 0.6
    assert found.inflation == pytest.approx(found.by_photo - found.by_group)
    assert (found.num_photos, found.num_groups, found.num_classes) == (144, 24, 4)


def test_a_probe_that_reads_the_class_is_not_flattered() -> None:
    features, classes, groups = cars_of(24, 6, num_classes=2)
    features[:, 0] += 20.0 * np.array([one == "class 1" for one in classes])
    found = probe("make", features, classes, groups)
    assert found.inflation == pytest.approx(0.0, abs=0.02)
    assert found.majority == pytest.approx(0.5)


def test_the_same_photos_give_the_same_figures() -> None:
    assert probe("make", *cars_of(12, 4, num_classes=3)) == probe("make", *cars_of(12, 4, num_classes=3))


def test_classes_of_too_few_groups_and_photos_without_a_class_are_left_out() -> None:
    features, classes, groups = cars_of(12, 4, num_classes=3)
    rare = [None if index < 4 else "rare" if index < 8 else one for index, one in enumerate(classes)]
    found = probe("make", features, rare, groups, min_groups=3)
    assert (found.num_photos, found.num_groups, found.num_classes) == (40, 10, 3)


@pytest.mark.parametrize(
    ("num_groups", "num_classes", "why"),
    [(12, 1, "1 classes that enough groups have"), (4, 2, "4 groups"), (0, 1, "0 classes")],
)
def test_what_is_too_small_for_a_probe_says_so(num_groups: int, num_classes: int, why: str) -> None:
    features, classes, groups = cars_of(num_groups, 4, num_classes=num_classes)
    found = probe("make", features, classes, groups)
    assert found.why_not is not None
    assert why in found.why_not
    assert found.by_photo is found.by_group is found.inflation is None


def test_a_training_fold_of_one_class_answers_with_it() -> None:
    features, _, groups = cars_of(5, 2, num_classes=1)
    classes = ["rare" if group == "group 0" else "frequent" for group in groups]
    found = probe("make", features, classes, groups)
    assert found.by_group == pytest.approx(0.8), "the fold without the rare class cannot know it"


def test_groups_that_a_split_by_photo_would_cut_are_counted_as_they_fall_on_average() -> None:
    draw = np.random.default_rng(0)
    sizes, shares = {1: 30, 2: 40, 7: 20}, (0.8, 0.1, 0.1)
    groups = np.repeat(np.arange(90), [n for n, count in sizes.items() for _ in range(count)])
    cut, seen = [], []
    for _ in range(400):
        split = draw.choice(3, size=len(groups), p=shares)
        sides = np.zeros((90, 3), dtype=int)
        np.add.at(sides, (groups, split), 1)
        cut.append(((sides > 0).sum(axis=1) > 1).sum())
        held = split > 0
        seen.append((sides[groups[held], 0] > 0).mean())
    found = crossing_groups(sizes, shares)
    assert found.crossing == pytest.approx(np.mean(cut), rel=0.03)
    assert found.seen_share == pytest.approx(np.mean(seen), rel=0.03)
    assert (found.groups, found.groups_of_several) == (90, 60)


def test_groups_of_one_photo_are_never_cut() -> None:
    found = crossing_groups({1: 10}, (8, 1, 1))
    assert found.crossing == pytest.approx(0.0)
    assert found.seen_share == 0.0
    assert crossing_groups({}, (8, 1, 1)).seen_share == 0.0


@pytest.mark.slow
def test_real_dealer_photos_show_the_gap_that_was_measured(shared_data: Path) -> None:
    make_model, price = audit(shared_data / "cars")
    assert (make_model.num_photos, make_model.num_classes) == (266, 13)
    assert make_model.by_photo == pytest.approx(0.797, abs=0.08)
    assert make_model.by_group == pytest.approx(0.417, abs=0.08)
    assert make_model.inflation == pytest.approx(0.38, abs=0.08)
    assert price.num_groups == 79
    assert price.inflation == pytest.approx(0.248, abs=0.08)
