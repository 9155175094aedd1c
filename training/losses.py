"""What training makes small: a loss for each head, its missing targets masked.

Every loss comes as a sum over the photos whose target is known. The caller divides by how many of the global batch have
one, which all workers know without asking, so that micro-batches and workers of unequal shares add up to the same step.
A head none of whose targets is known still takes part in the backward pass, with a gradient of nought.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional

from schemas.settings import Section, result

CLASS_HEADS = ("price_bin", "make_model", "year")
PRICE_MEDIAN, PRICE_QUANTILES = "price_median", "price_quantiles"
HEADS = (*CLASS_HEADS, PRICE_MEDIAN, PRICE_QUANTILES)
MISSING = -1  # a class that is not known; a price that is not known is NaN
_PRICE = {"price_bin": 1.0, PRICE_MEDIAN: 1.0}
_ALL = {**_PRICE, "make_model": 1.0, "year": 1.0}
# What to learn beside the price, as the original's ablation did.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "all": _ALL,
    "price_only": _PRICE,
    "price_and_make_model": {**_PRICE, "make_model": 1.0},
    "price_and_year": {**_PRICE, "year": 1.0},
    **{f"only_{head}": {head: 1.0} for head in _ALL},
}


class LossSettings(Section):
    """How wrong answers are weighed."""

    label_smoothing: float = result(
        0.0, "share of the target spread over all classes (Szegedy et al. 2016)", ge=0, lt=1
    )
    ordinal_price: Literal["none", "soft_labels", "emd"] = result(
        "none", "neighbouring price bins are less wrong: soft labels (Diaz and Marathe 2019) or squared EMD (Hou 2016)"
    )
    ordinal_scale: float = result(1.0, "soft_labels: bins over which a target fades by e", gt=0)
    quantiles: tuple[float, ...] = result((), "quantiles of the price to learn beside its median (Koenker 1978)")
    distill_weight: float = result(0.5, "share of the teacher's word where there is a teacher", ge=0, le=1)
    distill_temperature: float = result(2.0, "softness of the teacher's classes (Hinton et al. 2015)", gt=0)

    @field_validator("quantiles")
    @classmethod
    def _within(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < quantile < 1 for quantile in quantiles) or sorted(set(quantiles)) != list(quantiles):
            raise ValueError("quantiles rise and lie between 0 and 1")
        return quantiles


@dataclass(frozen=True, slots=True)
class Targets:
    """What is known of a batch of B photos, each (B,); `price` in units of the model's price scale."""

    price_bin: Tensor  # int64
    make_model: Tensor  # int64
    year: Tensor  # int64
    price: Tensor  # float32

    def known(self, head: str) -> Tensor:
        """Tell for which photos the head's target is known, (B,) bool."""
        if head in (PRICE_MEDIAN, PRICE_QUANTILES):
            return ~torch.isnan(self.price)
        target: Tensor = getattr(self, head)
        return target != MISSING


def head_losses(
    outputs: Mapping[str, Tensor],
    targets: Targets,
    settings: LossSettings,
    *,
    teacher: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return each head's loss summed over the photos whose target is known, () each.

    `outputs` has logits (B, classes) of the class heads, `price_median` (B,) and `price_quantiles` (B, quantiles),
    those the model has. With a `teacher`'s outputs of the same photos, a head learns from both.
    """
    losses = {}
    for head, output in outputs.items():
        each = _each_loss(head, output.float(), targets, settings)
        if teacher is not None and head in teacher:
            told = _taught(head, output.float(), teacher[head].float(), settings)
            each = (1 - settings.distill_weight) * each + settings.distill_weight * told
        nought = output.float().reshape(len(output), -1).sum(1) * 0
        losses[head] = torch.where(targets.known(head), each, nought).sum()
    return losses


def total_loss(losses: Mapping[str, Tensor], counts: Mapping[str, int], weights: Mapping[str, float]) -> Tensor:
    """Add the heads' summed losses up, each over `counts`, the global batch's photos with its target known.

    Heads that are given no weight count nought.
    """
    parts = [loss * (weights.get(head, 0.0) / max(1, counts[head])) for head, loss in losses.items()]
    return torch.stack(parts).sum()


def _each_loss(head: str, output: Tensor, targets: Targets, settings: LossSettings) -> Tensor:
    """Return a head's loss of each photo, (B,); anything where its target is not known."""
    price = targets.price.nan_to_num()  # even an unused NaN would make the gradient one
    if head == PRICE_MEDIAN:
        return (output - price).abs()
    if head == PRICE_QUANTILES:
        return pinball(output, price, torch.tensor(settings.quantiles, device=output.device))
    target: Tensor = getattr(targets, head).clamp(min=0)
    if head == "price_bin" and settings.ordinal_price == "soft_labels":
        return -(ordinal_labels(target, output.shape[1], settings.ordinal_scale) * output.log_softmax(1)).sum(1)
    if head == "price_bin" and settings.ordinal_price == "emd":
        return squared_emd(output, target)
    return functional.cross_entropy(output, target, reduction="none", label_smoothing=settings.label_smoothing)


def _taught(head: str, output: Tensor, teacher: Tensor, settings: LossSettings) -> Tensor:
    """Return how far each photo's output is from the teacher's, (B,)."""
    if head not in CLASS_HEADS:
        return (output - teacher).abs().reshape(len(output), -1).mean(1)
    warmth = settings.distill_temperature
    soft, said = (teacher / warmth).softmax(1), (output / warmth).log_softmax(1)
    # Times the squared temperature, so that the gradient keeps its size (Hinton et al. 2015).
    return functional.kl_div(said, soft, reduction="none").sum(1) * warmth**2


def pinball(predicted: Tensor, price: Tensor, quantiles: Tensor) -> Tensor:
    """Return the quantile loss (Koenker and Bassett 1978) averaged over quantiles: (B, Q), (B,), (Q,) -> (B,)."""
    above = price[:, None] - predicted
    return torch.maximum(quantiles * above, (quantiles - 1) * above).mean(1)


def ordinal_labels(target: Tensor, num_classes: int, scale: float) -> Tensor:
    """Spread (B,) classes over their neighbours by exp(-distance/scale), to sum to 1 (Diaz and Marathe 2019)."""
    distance = (torch.arange(num_classes, device=target.device)[None] - target[:, None]).abs()
    return (-distance / scale).softmax(1)


def squared_emd(logits: Tensor, target: Tensor) -> Tensor:
    """Return the squared earth mover's distance of ordered classes (Hou et al. 2016): (B, classes), (B,) -> (B,)."""
    wanted = functional.one_hot(target, logits.shape[1]).to(logits.dtype)
    return (logits.softmax(1).cumsum(1) - wanted.cumsum(1)).square().sum(1)
