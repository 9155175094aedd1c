"""Encoders by name, on real architectures; where weights need a network, they are drawn, and asked for so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.embed_encoders import Encoder, TextEncoder, View, load_encoder, weights_fingerprint
from pipeline.label_prompt import TextEncoder as TextProtocol
from schemas.errors import UsageError

TINY = "timm:test_efficientnet"


@pytest.fixture(scope="module")
def lite0() -> Encoder:
    return load_encoder("efficientnet_lite0", device="cpu")


def photos(count: int, encoder: Encoder) -> np.ndarray:
    random = np.random.default_rng(1)
    shapes = [(48, 64), (64, 48), (300, 200)]
    pictures = [random.integers(0, 256, (*shapes[i % 3], 3), dtype=np.uint8) for i in range(count)]
    return np.stack([encoder.prepare(picture) for picture in pictures])


def test_the_default_encoder_knows_what_imagenet_taught(lite0: Encoder) -> None:
    assert (len(lite0.weights), lite0.view.side_px) == (64, 224)
    vectors = lite0.encode(photos(3, lite0))
    assert vectors.shape == (3, 1280)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    drawn = load_encoder("efficientnet_lite0", weights="random", device="cpu")
    assert drawn.weights == "random"
    assert not np.allclose(drawn.encode(photos(3, drawn)), vectors, atol=0.01)


def test_a_vector_does_not_depend_on_what_comes_with_the_photo(lite0: Encoder) -> None:
    batch = photos(lite0.batch_size + 3, lite0)
    together = lite0.encode(batch)
    for first, count in ((0, 1), (5, 2), (lite0.batch_size, 3)):
        assert np.array_equal(lite0.encode(batch[first : first + count]), together[first : first + count])


def test_half_precision_moves_a_vector_little() -> None:
    exact, half = (load_encoder("efficientnet_lite0", device="cpu", precision=kind) for kind in ("fp32", "bf16"))
    batch = photos(4, exact)
    assert ((exact.encode(batch) * half.encode(batch)).sum(axis=1) > 0.99).all()


def test_a_view_takes_the_middle_of_the_short_side() -> None:
    view = View(side_px=4, resize_px=4, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    assert (view.prepare(pixels) == 200).all()
    assert view.prepare(np.zeros((2, 3, 3), np.uint8)).shape == (4, 4, 3)


def test_an_encoder_of_open_clip_embeds_texts_too() -> None:
    encoder = load_encoder("open_clip:RN50/openai", weights="random", device="cpu")
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoder, TextProtocol)
    texts = encoder.encode_texts(["a car dashboard", "a wheel"])
    assert texts.shape == (2, encoder.encode(photos(1, encoder)).shape[1])
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_an_encoder_of_photos_alone_has_no_texts(lite0: Encoder) -> None:
    assert not isinstance(lite0, TextProtocol)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_from_a_file_whatever_classifier_it_has_beside(tmp_path: Path, suffix: str) -> None:
    import timm

    path = tmp_path / f"weights{suffix}"
    state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    encoder = load_encoder(TINY, weights=str(path), device="cpu")
    assert encoder.weights == weights_fingerprint(TINY, str(path))
    drawn = load_encoder(TINY, weights="random", device="cpu")
    batch = photos(2, encoder)
    assert not np.allclose(encoder.encode(batch), drawn.encode(batch), atol=1e-3)


def test_drawn_weights_are_the_same_each_time_and_leave_torchs_own_draws_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (load_encoder(TINY, weights="random", device="cpu") for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    batch = photos(2, first)
    assert np.array_equal(first.encode(batch), second.encode(batch))


@pytest.mark.parametrize(
    ("encoder", "weights", "says"),
    [
        ("efficientnet_lite1", None, r"no encoder; there are efficientnet_lite0, open_clip:ARCH/TAG"),
        ("open_clip:ViT-B-16", None, "no encoder"),
        ("open_clip:ViT-B-17/openai", None, r"no model 'ViT-B-17'; .*ViT-B-16"),
        ("open_clip:ViT-B-16/none", None, r"no weights 'none' of ViT-B-16; there are: openai"),
        ("timm:test_efficientne", None, r"no model .*test_efficientnet"),
        ("efficientnet_lite0", "no/such.pt", r"embed\.weights=no/such\.pt is no file"),
    ],
)
def test_a_name_that_is_none_says_what_there_is(encoder: str, weights: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_encoder(encoder, weights=weights, device="cpu")


@pytest.mark.parametrize("encoder", ["open_clip:ViT-B-16/openai", "open_clip:ViT-B-16/dfn2b", TINY])
def test_weights_that_cannot_be_had_name_the_file_the_hub_and_the_way_without(encoder: str) -> None:
    # HF_HUB_OFFLINE is set for all tests.
    with pytest.raises(UsageError, match=r"safetensors of \S+ on the model hub.*was not asked.*--set embed\.weights"):
        load_encoder(encoder, device="cpu")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"root:x:0:0", "cannot be read as arrays"), (b"", "cannot be read as arrays")],
)
def test_a_file_that_holds_no_arrays_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        load_encoder(TINY, weights=str(path), device="cpu")


def test_no_code_is_run_from_a_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": Path("/tmp")}, path)
    with pytest.raises(UsageError, match="cannot be read as arrays"):
        load_encoder(TINY, weights=str(path), device="cpu")


def test_a_file_of_another_model_names_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UsageError, match=r"holds no weights of timm:test_efficientnet: it lacks"):
        load_encoder(TINY, weights=str(path), device="cpu")
    with pytest.raises(UsageError, match="holds no weights of efficientnet_lite0"):
        load_encoder("efficientnet_lite0", weights=str(path), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_misuse() -> None:
    with pytest.raises(UsageError, match="is asked for and is not there"):
        load_encoder(TINY, weights="random", device="cuda")
