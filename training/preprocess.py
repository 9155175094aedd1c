"""From a stored photo to what a model sees: the same way in training, evaluation, prediction and serving.

On the CPU, photo by photo, in uint8: which box of the photo, and that box resized to a square. On the device, batch by
batch: colour jitter, scaling, normalisation. A checkpoint carries these settings.
"""

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor

from schemas.settings import Section, result

Pixels = NDArray[np.uint8]
NUM_CROP_DRAWS = 5
NUM_COLOUR_DRAWS = 3
_PAD_GREY = 124  # ImageNet's mean, nearly nought once normalised


class PreprocessSettings(Section):
    """How a photo becomes a square of numbers."""

    size_px: int = result(224, "side of the square that the model sees", ge=16, le=1024)
    fit: Literal["squash", "pad", "crop"] = result(
        "squash", "a wide photo to a square: squash keeps the whole car and fills the square; pad keeps its shape too"
    )
    mean: tuple[float, float, float] = result((0.485, 0.456, 0.406), "of RGB from 0 to 1; ImageNet's")
    std: tuple[float, float, float] = result((0.229, 0.224, 0.225), "of RGB from 0 to 1; ImageNet's")

    @field_validator("std")
    @classmethod
    def _above_nought(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("a standard deviation is above 0")
        return std


class AugmentSettings(Section):
    """How a training photo is changed, differently in each epoch."""

    crop_area_min: float = result(
        0.8, "smallest share of the photo that a crop shows; below it cars lose ends", gt=0, le=1
    )
    crop_stretch: float = result(1.1, "how much narrower or wider than the photo a crop may be", ge=1, le=2)
    flip: bool = result(True, "show half of the photos mirrored")
    brightness: float = result(0.2, "largest change of brightness, as a share", ge=0, lt=1)
    contrast: float = result(0.2, "largest change of contrast, as a share", ge=0, lt=1)
    saturation: float = result(0.2, "largest change of saturation, as a share", ge=0, lt=1)


def fit_photo(photo: Pixels, settings: PreprocessSettings, out: Pixels | None = None) -> Pixels:
    """Turn a whole photo (H, W, 3) into (size_px, size_px, 3), into `out` where it is given."""
    height_px, width_px, _ = photo.shape
    if settings.fit == "crop":
        side = min(height_px, width_px)
        top, left = (height_px - side) // 2, (width_px - side) // 2
        photo = photo[top : top + side, left : left + side]
    return _to_square(photo, settings, out)


def augment_photo(
    photo: Pixels,
    draws: NDArray[np.float64],
    settings: PreprocessSettings,
    augment: AugmentSettings,
    out: Pixels | None = None,
) -> Pixels:
    """Turn a random box of a photo into (size_px, size_px, 3), perhaps mirrored.

    `draws` (NUM_CROP_DRAWS,) are uniform in [0, 1): area, stretch, left, top, flip. A random resized crop (Szegedy et
    al. 2015) about the photo's own shape.
    """
    left, top, width_px, height_px = crop_box(photo.shape[1], photo.shape[0], draws, settings, augment)
    photo = photo[top : top + height_px, left : left + width_px]
    square = _to_square(photo, settings, out)
    if augment.flip and draws[4] < 0.5:
        cv2.flip(square, 1, dst=square)
    return square


def crop_box(
    width_px: int, height_px: int, draws: NDArray[np.float64], settings: PreprocessSettings, augment: AugmentSettings
) -> tuple[int, int, int, int]:
    """Return the box that the draws choose: left, top, width, height in px, within the photo."""
    whole_width, whole_height = width_px, height_px
    if settings.fit == "crop":
        whole_width = whole_height = min(width_px, height_px)
    area = augment.crop_area_min + (1 - augment.crop_area_min) * draws[0]
    stretch = augment.crop_stretch ** (2 * draws[1] - 1)
    width = min(width_px, max(1, round(whole_width * (area * stretch) ** 0.5)))
    height = min(height_px, max(1, round(whole_height * (area / stretch) ** 0.5)))
    return int(draws[2] * (width_px - width + 1)), int(draws[3] * (height_px - height + 1)), width, height


def _to_square(photo: Pixels, settings: PreprocessSettings, out: Pixels | None) -> Pixels:
    size = settings.size_px
    square = np.empty((size, size, 3), dtype=np.uint8) if out is None else out
    height_px, width_px, _ = photo.shape
    if settings.fit == "pad" and height_px != width_px:
        scale = size / max(height_px, width_px)
        height, width = max(1, round(height_px * scale)), max(1, round(width_px * scale))
        top, left = (size - height) // 2, (size - width) // 2
        square[...] = _PAD_GREY
        square[top : top + height, left : left + width] = cv2.resize(photo, (width, height), interpolation=_way(scale))
    else:
        scale = min(size / height_px, size / width_px)
        cv2.resize(photo, (size, size), dst=square, interpolation=_way(scale))
    return square


def _way(scale: float) -> int:
    """Average areas when shrinking: OpenCV's linear has no antialiasing."""
    return cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR


def normalise(
    photos: Tensor,
    settings: PreprocessSettings,
    *,
    augment: AugmentSettings | None = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Turn uint8 photos (B, S, S, 3) on any device into float32 (B, 3, S, S) in channels_last, colours jittered.

    `draws` (B, NUM_COLOUR_DRAWS) are uniform in [0, 1): brightness, contrast, saturation; used with `augment` only.
    """
    scaled = photos.permute(0, 3, 1, 2).float().div_(255)
    if augment is not None and draws is not None:
        scaled = _jitter(scaled, draws.to(scaled), augment)
    mean = torch.tensor(settings.mean, device=scaled.device).view(1, 3, 1, 1)
    std = torch.tensor(settings.std, device=scaled.device).view(1, 3, 1, 1)
    return scaled.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def _jitter(scaled: Tensor, draws: Tensor, augment: AugmentSettings) -> Tensor:
    """Change brightness, contrast and saturation of photos from 0 to 1, each by its own factors."""
    amounts = torch.tensor([augment.brightness, augment.contrast, augment.saturation], device=scaled.device)
    bright, contrast, saturation = (1 + (2 * draws - 1) * amounts).view(-1, 3, 1, 1, 1).unbind(1)
    scaled = (scaled * bright).clamp_(0, 1)
    # Rec. 601 luma, as Pillow's and torchvision's grey.
    luma = torch.tensor([0.299, 0.587, 0.114], device=scaled.device).view(1, 3, 1, 1)
    grey = (scaled * luma).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    scaled = ((scaled - mean) * contrast + mean).clamp_(0, 1)
    grey = (scaled * luma).sum(1, keepdim=True)
    return ((scaled - grey) * saturation + grey).clamp_(0, 1)
