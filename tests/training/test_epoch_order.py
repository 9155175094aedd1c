from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.epoch_order import EpochOrder, draws, share_of

PARTS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 0, 3, 1] * 5)


def order(parts: np.ndarray = PARTS, **changed: int) -> EpochOrder:
    return EpochOrder(parts, **{"batch_size": 4, "parts_per_window": 2, "seed": 0, **changed})


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    batch_size=st.integers(1, 20),
    parts_per_window=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_an_epoch_shows_each_photo_once(parts: list[int], batch_size: int, parts_per_window: int, epoch: int) -> None:
    ordered = order(np.array(parts), batch_size=batch_size, parts_per_window=parts_per_window)
    batches = list(ordered.batches(epoch))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(parts)))
    assert len(batches) == ordered.steps_per_epoch
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@settings(max_examples=30, deadline=None)
@given(start_step=st.integers(0, 17), epoch=st.integers(0, 3))
def test_an_epoch_resumed_at_any_step_goes_on_as_if_never_stopped(start_step: int, epoch: int) -> None:
    whole = [batch.tolist() for batch in order().batches(epoch)]
    resumed = [batch.tolist() for batch in order().batches(epoch, start_step=start_step)]
    assert resumed == whole[start_step:]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def shown(seed: int, epoch: int) -> list[int]:
        rows: list[int] = np.concatenate(list(order(seed=seed).batches(epoch))).tolist()
        return rows

    assert shown(0, 0) == shown(0, 0)
    assert len({tuple(shown(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_window_holds_whole_parts_and_no_more_than_asked() -> None:
    for window in order().windows(epoch=1):
        assert len(window.parts) <= 2
        assert np.array_equal(np.sort(window.rows), np.flatnonzero(np.isin(PARTS, window.parts)))


def test_the_order_does_not_hang_on_how_rows_of_a_window_lie() -> None:
    first = next(order(np.zeros(200, dtype=np.int64)).windows(epoch=0)).rows
    assert abs(np.corrcoef(first, np.arange(200))[0, 1]) < 0.2


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_the_workers_shares_are_the_batch(num_workers: int) -> None:
    for batch in islice(order(batch_size=5).batches(0), 20):
        shares = [share_of(batch, rank=rank, num_workers=num_workers) for rank in range(num_workers)]
        assert np.concatenate(shares).tolist() == batch.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_draws_are_uniform_and_hang_on_their_row_alone() -> None:
    rows = np.arange(5000)
    drawn = draws(1, 2, rows, 4)
    assert drawn.shape == (5000, 4)
    assert 0 <= drawn.min() < drawn.max() < 1
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.05
    assert np.array_equal(draws(1, 2, rows[::-7], 4), drawn[::-7])
    assert not np.array_equal(draws(1, 3, rows, 4), drawn)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to order"):
        order(np.empty(0, dtype=np.int64))
