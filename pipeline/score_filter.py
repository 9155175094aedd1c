"""The junk filter as it is kept and used: standardiser, support vectors, threshold; plain arrays, no pickle.

A score is scikit-learn's decision function of the fitted SVM, computed for many photos at once as matrix products, on
the GPU where there is one. More is more like junk; a photo is dropped where its score is above the threshold.
"""

import importlib.util
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import IntegrityError

Kernel = Literal["linear", "rbf"]
# The kernel of a block of photos with a few thousand support vectors stays below some 100 MB.
ROWS_PER_BLOCK = 4096
# Computed in float64 and rounded, so that a score does not depend on which photos share a block, a part or a device.
DECIMALS = 5
_ARRAYS = ("mean", "scale", "vectors", "coefs")
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class JunkFilter:
    """An SVM over standardised embeddings: score = sum over support vectors of coef * kernel(vector, z) + intercept.

    z = (embedding - mean) / scale, `mean` and `scale` (D,). Linear: `vectors` (1, D) are the weights, `coefs` (1,) is
    one. RBF: `vectors` (S, D), `coefs` (S,), kernel exp(-gamma * |vector - z|^2).
    """

    encoder: str
    kernel: Kernel
    mean: Floats
    scale: Floats
    vectors: Floats
    coefs: Floats
    intercept: float
    gamma: float
    threshold: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, embeddings: NDArray[Any], *, device: str | None = None) -> Floats:
        """Score embeddings (N, D); `device` is cpu or cuda, by default cuda where there is one."""
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.mean):
            raise ValueError(
                f"expected embeddings (N, {len(self.mean)}) of {self.encoder}, found shape {embeddings.shape}"
            )
        on_device = _device() if device is None else device
        block_scores = self._scores_by_numpy if on_device == "cpu" else _TorchScores(self, on_device)
        blocks = [embeddings[i : i + ROWS_PER_BLOCK] for i in range(0, len(embeddings), ROWS_PER_BLOCK)]
        return np.concatenate([np.empty(0, np.float32), *map(block_scores, blocks)])

    def drops(self, scores: Floats) -> NDArray[np.bool_]:
        """Tell which scores are above the threshold."""
        return scores > np.float32(self.threshold)

    def _scores_by_numpy(self, block: NDArray[Any]) -> Floats:
        z = (block.astype(np.float64) - self.mean) / self.scale
        vectors = self.vectors.astype(np.float64)
        products = z @ vectors.T
        if self.kernel == "rbf":
            # exp(-gamma * (|z|^2 + |v|^2 - 2 zv)), in place: the block is read and written as few times as possible.
            products *= 2 * self.gamma
            products -= self.gamma * np.einsum("nd,nd->n", z, z)[:, None]
            products -= self.gamma * np.einsum("sd,sd->s", vectors, vectors)
            np.exp(products, out=products)
        return (products @ self.coefs.astype(np.float64) + self.intercept).round(DECIMALS).astype(np.float32)


class _TorchScores:
    """The same by torch on a device; the filter's arrays go there once."""

    def __init__(self, junk_filter: JunkFilter, device: str) -> None:
        import torch

        self._filter, self._torch, self._device = junk_filter, torch, device
        self._on_device = {name: torch.from_numpy(getattr(junk_filter, name)).to(device).double() for name in _ARRAYS}

    def __call__(self, block: NDArray[Any]) -> Floats:
        torch, at, f = self._torch, self._on_device, self._filter
        with torch.inference_mode():
            embedded = torch.from_numpy(np.ascontiguousarray(block)).to(self._device).double()
            z = (embedded - at["mean"]) / at["scale"]
            products = z @ at["vectors"].T
            if f.kernel == "rbf":
                norms = (z * z).sum(1)[:, None] + (at["vectors"] ** 2).sum(1)
                products = torch.exp(-f.gamma * (norms - 2 * products))
            scored: Floats = (products @ at["coefs"] + f.intercept).round(decimals=DECIMALS).float().cpu().numpy()
        return scored


def write_filter(junk_filter: JunkFilter, path: Path) -> None:
    """Write a filter as npz; equal filters are equal bytes."""
    told = {
        name: getattr(junk_filter, name)
        for name in ("encoder", "kernel", "intercept", "gamma", "threshold", "settings")
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("filter.json", _ZIP_EPOCH), json.dumps(told, sort_keys=True))
        for name in _ARRAYS:
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH), "w") as file:
                np.lib.format.write_array(file, getattr(junk_filter, name), allow_pickle=False)


def read_filter(path: Path) -> JunkFilter:
    """Read a filter.

    Raises:
        IntegrityError: the file is no filter.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            told: dict[str, Any] = json.loads(archive.read("filter.json"))
            for name in _ARRAYS:
                with archive.open(f"{name}.npy") as file:
                    told[name] = np.lib.format.read_array(file, allow_pickle=False)
        return JunkFilter(**told)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path} is no junk filter: {error}; run pipeline/score.py again") from error


def _device() -> str:
    """Return cuda where torch is installed and finds one, else cpu, where plain matrix products do."""
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
