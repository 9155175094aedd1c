"""The stored filter against scikit-learn's own decision function."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.svm import SVC

from pipeline.score_filter import ROWS_PER_BLOCK, JunkFilter, read_filter, write_filter
from pipeline.score_fit import CANDIDATES, Candidate, fit_candidate
from schemas.errors import IntegrityError

DIM = 64


def drawn(num_rows: int, seed: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_rows, DIM)) * rng.uniform(0.1, 2, DIM)
    junk = features[:, 0] + 0.5 * rng.normal(size=num_rows) > 0
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16), junk


def fitted(candidate: Candidate) -> JunkFilter:
    embeddings, junk = drawn(400, 0)
    return fit_candidate(candidate, embeddings.astype(np.float32), junk, encoder="x")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda one: one.name)
def test_scores_are_those_of_scikit_learn(candidate: Candidate, device: str) -> None:
    if device == "cuda" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no GPU")
    embeddings, junk = drawn(400, 0)
    junk_filter = fitted(candidate)
    gamma = candidate.gamma / DIM or "scale"
    machine = SVC(kernel=candidate.kernel, C=candidate.c, gamma=gamma, class_weight="balanced")
    machine.fit((embeddings.astype(np.float32) - junk_filter.mean) / junk_filter.scale, junk)
    fresh, _ = drawn(500, 1)
    expected = machine.decision_function((fresh.astype(np.float32) - junk_filter.mean) / junk_filter.scale)
    assert np.abs(junk_filter.scores(fresh, device=device) - expected).max() < 1e-4


@pytest.mark.parametrize("scaling", ["each", "shared"])
def test_features_are_standardised_each_by_its_own_spread_or_all_by_one(scaling: str) -> None:
    embeddings, _ = drawn(400, 0)
    junk_filter = fitted(Candidate(scaling, "linear", 0.01))
    spread = ((embeddings.astype(np.float64) - junk_filter.mean) / junk_filter.scale).std(axis=0)
    assert np.square(spread).mean() == pytest.approx(1, abs=1e-3)
    assert (np.ptp(spread) < 1e-3) == (scaling == "each")


@pytest.mark.parametrize("candidate", [CANDIDATES[0], CANDIDATES[-1]], ids=lambda one: one.name)
def test_numpy_and_torch_agree(candidate: Candidate) -> None:
    torch_scores = pytest.importorskip("pipeline.score_filter")._TorchScores
    fresh, _ = drawn(300, 2)
    junk_filter = fitted(candidate)
    assert np.array_equal(torch_scores(junk_filter, "cpu")(fresh), junk_filter.scores(fresh, device="cpu"))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, _ = drawn(100, 3)
    junk_filter = fitted(CANDIDATES[3])
    whole = junk_filter.scores(fresh, device="cpu")
    assert len(fresh) < ROWS_PER_BLOCK
    monkeypatch.setattr("pipeline.score_filter.ROWS_PER_BLOCK", 7)
    assert np.array_equal(junk_filter.scores(fresh, device="cpu"), whole)


def test_a_filter_is_written_and_read_as_equal_bytes(tmp_path: Path) -> None:
    junk_filter = fitted(CANDIDATES[3])
    write_filter(junk_filter, tmp_path / "a.npz")
    write_filter(read_filter(tmp_path / "a.npz"), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    arrays = np.load(tmp_path / "a.npz", allow_pickle=False)
    assert np.array_equal(arrays["vectors"], junk_filter.vectors)


def test_a_broken_filter_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    with pytest.raises(IntegrityError, match="is no junk filter"):
        read_filter(tmp_path / "a.npz")


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected embeddings \(N, 64\)"):
        fitted(CANDIDATES[0]).scores(np.zeros((2, 3)))
