import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from schemas.errors import SettingsError
from schemas.settings import Section, load_settings
from training.losses import (
    CLASS_HEADS,
    PRESETS,
    LossSettings,
    Targets,
    head_losses,
    ordinal_labels,
    pinball,
    squared_emd,
    total_loss,
)

CLASSES = {"price_bin": 5, "make_model": 4, "year": 3}
BATCH = 6


class _Settings(Section):
    losses: LossSettings = LossSettings()


def outputs(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    logits = {head: torch.randn(BATCH, classes, requires_grad=True) for head, classes in CLASSES.items()}
    return {
        **logits,
        "price_median": torch.randn(BATCH, requires_grad=True),
        "price_quantiles": torch.randn(BATCH, 2, requires_grad=True),
    }


def targets(**changed: Tensor) -> Targets:
    whole = {
        "price_bin": torch.tensor([0, 1, 2, 3, 4, -1]),
        "make_model": torch.tensor([0, 1, 2, 3, -1, -1]),
        "year": torch.tensor([0, 1, 2, 0, 1, 2]),
        "price": torch.tensor([0.5, 1.0, math.nan, 2.0, 3.0, math.nan]),
    }
    return Targets(**{**whole, **changed})


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


SETTINGS = LossSettings(quantiles=(0.1, 0.9))


def test_a_class_heads_loss_is_the_cross_entropy_of_the_known() -> None:
    made = outputs()
    losses = head_losses(made, targets(), SETTINGS)
    for head in CLASS_HEADS:
        known = targets().known(head)
        expected = functional.cross_entropy(made[head][known], getattr(targets(), head)[known], reduction="sum")
        assert losses[head].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_median_heads_loss_is_the_distance_of_the_known_prices() -> None:
    made = outputs()
    known = ~torch.isnan(targets().price)
    expected = (made["price_median"] - targets().price)[known].abs().sum()
    assert head_losses(made, targets(), SETTINGS)["price_median"].item() == pytest.approx(expected.item())


def test_a_head_without_any_target_has_a_gradient_of_nought() -> None:
    made = outputs()
    none = targets(
        price_bin=torch.full((BATCH,), -1), make_model=torch.full((BATCH,), -1), price=torch.full((BATCH,), math.nan)
    )
    losses = head_losses(made, none, SETTINGS)
    backward(total_loss(losses, dict.fromkeys(losses, 0) | {"year": BATCH}, dict.fromkeys(losses, 1.0)))
    for head, output in made.items():
        assert output.grad is not None
        assert output.grad.isfinite().all()
        assert (output.grad.abs().sum().item() > 0) is (head == "year"), head


def test_micro_batches_of_any_size_add_up_to_the_whole_batch() -> None:
    made, whole = outputs(), targets()
    counts = {head: int(whole.known(head).sum()) for head in made}
    weights = {**PRESETS["all"], "price_quantiles": 0.5}
    at_once = total_loss(head_losses(made, whole, SETTINGS), counts, weights)
    pieces = []
    for rows in ([0], [1, 2, 3], [4, 5]):
        some = Targets(whole.price_bin[rows], whole.make_model[rows], whole.year[rows], whole.price[rows])
        losses = head_losses({head: output[rows] for head, output in made.items()}, some, SETTINGS)
        pieces.append(total_loss(losses, counts, weights))
    assert torch.stack(pieces).sum().item() == pytest.approx(at_once.item(), rel=1e-5)


def test_a_head_without_weight_learns_nothing() -> None:
    made = outputs()
    losses = head_losses(made, targets(), SETTINGS)
    backward(total_loss(losses, dict.fromkeys(losses, 1), PRESETS["price_only"]))
    moved = {head for head, output in made.items() if output.grad is not None and output.grad.abs().sum() > 0}
    assert moved == {"price_bin", "price_median"}


def test_a_quantile_minimises_its_pinball_loss() -> None:
    torch.manual_seed(0)
    prices = torch.rand(2001) * 100
    for quantile in (0.1, 0.5, 0.9):
        guesses = torch.arange(0.0, 100.0)
        losses = [pinball(guess.expand(2001, 1), prices, torch.tensor([quantile])).mean().item() for guess in guesses]
        best = guesses[losses.index(min(losses))]
        assert abs(best - prices.quantile(quantile)) <= 1


def test_ordinal_labels_fall_off_with_distance_and_sum_to_one() -> None:
    labels = ordinal_labels(torch.tensor([1]), 4, 1.0)[0]
    assert labels.sum().item() == pytest.approx(1)
    assert labels[1] > labels[0] == labels[2] > labels[3]


def test_a_far_bin_is_more_wrong_than_a_near_one() -> None:
    sure = torch.eye(5) * 20
    distances = squared_emd(sure, torch.zeros(5, dtype=torch.int64))
    assert distances.tolist() == sorted(distances.tolist())
    assert distances[0].item() == pytest.approx(0, abs=1e-4)
    for kind in ("soft_labels", "emd"):
        settings = LossSettings(ordinal_price=kind)
        made = {"price_bin": sure}
        near, far = (
            head_losses({"price_bin": made["price_bin"][[bin_]]}, first_photo(), settings)["price_bin"].item()
            for bin_ in (1, 4)
        )
        assert far > near


def first_photo() -> Targets:
    nought = torch.zeros(1, dtype=torch.int64)
    return Targets(nought, nought, nought, torch.ones(1))


def test_a_student_that_says_what_its_teacher_says_is_not_taught() -> None:
    made = outputs()
    teacher = {head: output.detach() for head, output in made.items()}
    only = LossSettings(quantiles=(0.1, 0.9), distill_weight=1.0)
    assert sum(loss.item() for loss in head_losses(made, targets(), only, teacher=teacher).values()) == pytest.approx(
        0, abs=1e-5
    )
    other = head_losses(outputs(1), targets(), only, teacher=teacher)
    assert all(loss.item() > 0.1 for loss in other.values())


def test_a_teacher_is_heard_by_its_weight() -> None:
    teacher = {head: output.detach() for head, output in outputs(1).items()}

    def loss(weight: float) -> float:
        settings = LossSettings(quantiles=(0.1, 0.9), distill_weight=weight)
        return head_losses(outputs(), targets(), settings, teacher=teacher)["year"].item()

    assert loss(0.25) == pytest.approx(0.75 * loss(0) + 0.25 * loss(1), rel=1e-5)
    assert loss(0) == pytest.approx(head_losses(outputs(), targets(), SETTINGS)["year"].item())


@pytest.mark.parametrize("quantiles", ["[0.9, 0.1]", "[0.0]", "[0.5, 0.5]"])
def test_quantiles_that_are_none_are_refused(quantiles: str) -> None:
    with pytest.raises(SettingsError, match="quantiles"):
        load_settings(_Settings, sets=[f"losses.quantiles={quantiles}"])
