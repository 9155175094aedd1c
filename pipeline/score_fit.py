"""Fitting the junk filter: an SVM chosen by cross-validation by listing, and its scores of what it has not seen.

Embeddings (N, D) are centred and scaled, either each feature by its own deviation or all by their shared one (features
of little spread are then not blown up); the SVM is linear or RBF. What is best is chosen by the area under the ROC
curve where at most a tenth of the keepers is dropped, out of fold; the photos of a listing lie in one fold. Classes
weigh the same however the labels are mixed, since photos chosen as doubtful or as likely junk change that mix.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import SVC

from pipeline.score_filter import Floats, JunkFilter, Kernel

NUM_FOLDS = 5
_MAX_DROPPED = 0.1
_SEED = 0


@dataclass(frozen=True)
class Candidate:
    """One way to fit; `gamma` is in units of 1 / D, so that it means the same at any width of embedding."""

    scaling: str  # each, shared
    kernel: Kernel
    c: float
    gamma: float = 0.0

    @property
    def name(self) -> str:
        """Name it as reports do."""
        return f"{self.kernel} C={self.c:g}{f' gamma={self.gamma:g}/D' if self.gamma else ''} scale={self.scaling}"


# Of equal ones the first is taken: linear before RBF, smooth before sharp.
CANDIDATES = (
    Candidate("shared", "linear", 0.001),
    Candidate("shared", "linear", 0.01),
    Candidate("each", "linear", 0.001),
    Candidate("shared", "rbf", 10, 1 / 16),
    Candidate("shared", "rbf", 10, 1 / 2),
    Candidate("each", "rbf", 10, 1 / 16),
    Candidate("each", "rbf", 10, 1 / 2),
)


@dataclass(frozen=True)
class Fit:
    """The chosen filter, not yet with a threshold, its out-of-fold scores (N,), and each candidate's figure."""

    junk_filter: JunkFilter
    out_of_fold: Floats
    chosen: Candidate
    auc: dict[str, float]


def fit_filter(
    embeddings: NDArray[np.float16], is_junk: NDArray[np.bool_], listings: NDArray[np.str_], *, encoder: str
) -> Fit:
    """Choose a candidate, score every row by a filter that has not seen its listing, and fit once more on all rows."""
    features = embeddings.astype(np.float32)
    folds = list(_folds(is_junk, listings))
    out_of_fold = {one: _out_of_fold(one, features, is_junk, folds) for one in CANDIDATES}
    auc = {one: float(roc_auc_score(is_junk, out_of_fold[one], max_fpr=_MAX_DROPPED)) for one in CANDIDATES}
    chosen = max(CANDIDATES, key=lambda one: round(auc[one], 6))
    junk_filter = fit_candidate(chosen, features, is_junk, encoder=encoder)
    return Fit(junk_filter, out_of_fold[chosen], chosen, {one.name: round(auc[one], 6) for one in CANDIDATES})


def fit_candidate(
    candidate: Candidate, features: Floats, is_junk: NDArray[np.bool_], *, encoder: str = ""
) -> JunkFilter:
    """Fit one candidate to features (N, D); the threshold is left at infinity, which drops nothing."""
    mean = features.mean(axis=0, dtype=np.float64)
    variances = features.var(axis=0, dtype=np.float64)
    spread = variances if candidate.scaling == "each" else np.full_like(variances, variances.mean())
    scale = np.sqrt(np.where(spread > 0, spread, 1.0)).astype(np.float32)
    z = (features - mean.astype(np.float32)) / scale
    gamma = candidate.gamma / features.shape[1]
    machine = SVC(kernel=candidate.kernel, C=candidate.c, gamma=gamma or "scale", class_weight="balanced")
    machine.fit(z, is_junk)
    linear = candidate.kernel == "linear"
    vectors = machine.coef_ if linear else machine.support_vectors_
    coefs = np.ones(1) if linear else machine.dual_coef_[0]
    return JunkFilter(
        encoder=encoder,
        kernel=candidate.kernel,
        mean=mean.astype(np.float32),
        scale=scale,
        vectors=np.ascontiguousarray(vectors, np.float32),
        coefs=coefs.astype(np.float32),
        intercept=float(machine.intercept_[0]),
        gamma=gamma,
        threshold=float("inf"),
    )


def _out_of_fold(
    candidate: Candidate, features: Floats, is_junk: NDArray[np.bool_], folds: list[tuple[NDArray[np.int64], ...]]
) -> Floats:
    scores = np.empty(len(features), np.float32)
    for fitted, left_out in folds:
        junk_filter = fit_candidate(candidate, features[fitted], is_junk[fitted])
        scores[left_out] = junk_filter.scores(features[left_out], device="cpu")
    return scores


def _folds(is_junk: NDArray[np.bool_], listings: NDArray[np.str_]) -> "list[tuple[NDArray[np.int64], ...]]":
    splitter = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=_SEED)
    return list(splitter.split(np.zeros(len(is_junk)), is_junk, listings))
