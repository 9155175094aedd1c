import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SettingsError
from schemas.settings import Section, load_settings
from training.preprocess import AugmentSettings, PreprocessSettings, augment_photo, crop_box, fit_photo, normalise

STILL = AugmentSettings(crop_area_min=1, crop_stretch=1, flip=False, brightness=0, contrast=0, saturation=0)
SIDES = st.integers(1, 400)
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5).map(np.array)


class _Settings(Section):
    preprocess: PreprocessSettings = PreprocessSettings()


def halves(width_px: int = 60, height_px: int = 40) -> np.ndarray:
    """Black on the left, white on the right."""
    photo = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    photo[:, width_px // 2 :] = 255
    return photo


@given(width_px=SIDES, height_px=SIDES, draws=DRAWS, fit=st.sampled_from(["squash", "pad", "crop"]))
def test_a_crop_lies_within_the_photo(width_px: int, height_px: int, draws: np.ndarray, fit: str) -> None:
    settings = load_settings(_Settings, sets=[f"preprocess.fit={fit}"]).preprocess
    left, top, width, height = crop_box(width_px, height_px, draws, settings, AugmentSettings(crop_area_min=0.3))
    assert width > 0 <= left <= width_px - width
    assert height > 0 <= top <= height_px - height


def test_a_crop_shows_the_share_of_the_photo_that_is_drawn() -> None:
    for draw, share in ((0.0, 0.8), (0.5, 0.9), (1.0, 1.0)):
        _, _, width, height = crop_box(
            400, 300, np.array([draw, 0.5, 0, 0, 0]), PreprocessSettings(), AugmentSettings()
        )
        assert width * height / 120_000 == pytest.approx(share, rel=0.01)


def test_a_still_augmentation_is_the_whole_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for fit in ("squash", "pad", "crop"):
        settings = load_settings(_Settings, sets=[f"preprocess.fit={fit}", "preprocess.size_px=32"]).preprocess
        if fit != "crop":
            assert np.array_equal(augment_photo(photo, np.full(5, 0.5), settings, STILL), fit_photo(photo, settings))
        assert fit_photo(photo, settings).shape == (32, 32, 3)


def test_each_fit_shows_what_it_says() -> None:
    def fitted(fit: str) -> np.ndarray:
        return fit_photo(
            halves(), load_settings(_Settings, sets=[f"preprocess.fit={fit}", "preprocess.size_px=30"]).preprocess
        )

    squashed, padded, cropped = fitted("squash"), fitted("pad"), fitted("crop")
    assert squashed[0, 0, 0] == cropped[0, 0, 0] == 0
    assert squashed[29, 29, 0] == cropped[29, 29, 0] == 255
    assert padded[0, 0].tolist() == padded[29, 29].tolist() == [124, 124, 124]
    assert padded[15, 0, 0] == 0 < padded[15, 29, 0] == 255


def test_half_of_the_draws_mirror() -> None:
    settings, augment = PreprocessSettings(size_px=30), STILL.model_copy(update={"flip": True})
    mirrored = augment_photo(halves(), np.array([0.5, 0.5, 0, 0, 0.4]), settings, augment)
    straight = augment_photo(halves(), np.array([0.5, 0.5, 0, 0, 0.6]), settings, augment)
    assert straight[0, 0, 0] == 0 < mirrored[0, 0, 0] == 255
    assert np.array_equal(mirrored[:, ::-1], straight)


def test_the_pixels_go_into_the_given_buffer() -> None:
    out = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    settings = PreprocessSettings(size_px=32)
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    augment_photo(photo, np.array([0.1, 0.2, 0.3, 0.4, 0.1]), settings, AugmentSettings(), out=out[1])
    assert out[1].any()
    assert not out[0].any()


def test_shrinking_averages_where_lines_are_finer_than_a_pixel() -> None:
    lines = np.zeros((240, 240, 3), dtype=np.uint8)
    lines[:, ::2] = 255
    small = fit_photo(lines, PreprocessSettings(size_px=80))
    assert np.abs(small.astype(int) - 127).max() <= 45


def test_normalised_photos_are_what_the_mean_and_deviation_make_of_them() -> None:
    photos = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    settings = PreprocessSettings(size_px=16)
    made = normalise(photos, settings)
    expected = (photos.numpy() / 255 - np.array(settings.mean)) / np.array(settings.std)
    assert np.abs(made.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_colours_are_jittered_photo_by_photo_within_their_limits() -> None:
    photos = torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)
    plain = PreprocessSettings(size_px=16, mean=(0, 0, 0), std=(1, 1, 1))
    draws = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.5, 0.5]], dtype=torch.float64)
    made = normalise(photos, plain, augment=AugmentSettings(), draws=draws)
    assert made.mean((1, 2, 3)).tolist() == pytest.approx([0.8 * 100 / 255, 100 / 255, 1.2 * 100 / 255], rel=1e-3)


def test_saturation_and_contrast_move_from_grey_and_from_the_mean() -> None:
    photo = torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    photo[0, 0] = torch.tensor([200, 40, 40], dtype=torch.uint8)
    photo[0, 1] = torch.tensor([60, 60, 60], dtype=torch.uint8)
    plain = PreprocessSettings(size_px=16, mean=(0, 0, 0), std=(1, 1, 1))

    def made(contrast: float, saturation: float) -> torch.Tensor:
        draws = torch.tensor([[0.5, contrast, saturation]], dtype=torch.float64)
        return normalise(photo, plain, augment=AugmentSettings(), draws=draws)[0]

    still = made(0.5, 0.5)
    grey = made(0.5, 0.0)
    assert (grey[0] - grey[1])[0, 0] < (still[0] - still[1])[0, 0]
    assert torch.allclose(grey[:, 1], still[:, 1], atol=1e-6)
    assert made(1.0, 0.5).std() > still.std() > made(0.0, 0.5).std()


def test_a_deviation_of_nought_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"std.*above 0"):
        load_settings(_Settings, sets=["preprocess.std=[0.2,0,0.2]"])
