from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from schemas.errors import IntegrityError, UsageError
from schemas.image import decode_stored
from schemas.manifest import Manifest, rows_reader
from schemas.shards import Shard
from schemas.storage import Root
from tests.pipeline.roots import Listing, noise, write_part
from tests.training.datasets import published
from training.data import DataSettings, Loader, Samples, Work, training_work, whole_photos
from training.epoch_order import EpochOrder
from training.preprocess import AugmentSettings, PreprocessSettings, fit_photo

PREPROCESS = PreprocessSettings(size_px=32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, Manifest]:
    return published(tmp_path_factory.mktemp("data") / "root")


@pytest.fixture(scope="module")
def samples(dataset: tuple[Root, Manifest]) -> Samples:
    return Samples(*dataset, "train")


def order(samples: Samples, batch_size: int = 8) -> EpochOrder:
    return EpochOrder(samples.parts, batch_size=batch_size, parts_per_window=2, seed=3)


def shown(
    samples: Samples,
    *,
    start_step: int = 0,
    num_steps: int = 9,
    rank: int = 0,
    num_workers: int = 1,
    micro_batch: int = 3,
    threads: int = 2,
    batch_size: int = 8,
) -> list[tuple[list[int], NDArray[np.uint8]]]:
    work = training_work(
        order(samples, batch_size),
        start_step=start_step,
        num_steps=num_steps,
        rank=rank,
        num_workers=num_workers,
        micro_batch=micro_batch,
    )
    settings = DataSettings(parts_per_window=2, threads=threads)
    with Loader(samples, PREPROCESS, augment=AugmentSettings(), settings=settings, seed=3) as loader:
        return [(batch.rows.tolist(), batch.photos.numpy().copy()) for batch in loader.batches(work)]


def flat(batches: list[tuple[list[int], NDArray[np.uint8]]]) -> Iterator[tuple[int, bytes]]:
    for rows, photos in batches:
        yield from ((row, photo.tobytes()) for row, photo in zip(rows, photos, strict=True))


def test_samples_are_the_splits_rows_with_missing_targets_marked(
    dataset: tuple[Root, Manifest], samples: Samples
) -> None:
    assert len(samples) == dataset[1].splits["train"].photos
    rows = [row for row in rows_reader(*dataset).read_all().to_pylist() if row["split"] == "train"]
    assert [samples.key(row) for row in range(len(samples))] == [row["key"] for row in rows]
    targets = samples.targets(np.arange(len(samples)), price_scale_usd=1000.0)
    assert targets.price_bin.tolist() == [-1 if row["price_bin"] is None else row["price_bin"] for row in rows]
    assert targets.year.tolist() == [-1 if row["year_id"] is None else row["year_id"] for row in rows]
    prices = [float("nan") if row["price_usd"] is None else float(row["price_usd"]) / 1000 for row in rows]
    assert torch.allclose(targets.price, torch.tensor(prices), equal_nan=True)
    counts = samples.counts(np.arange(len(samples)))
    assert counts["price_median"] == sum(row["price_usd"] is not None for row in rows) < len(samples)
    assert counts["make_model"] == sum(row["make_model_id"] is not None for row in rows) < len(samples)


def test_whole_photos_come_as_they_are_stored(dataset: tuple[Root, Manifest], samples: Samples) -> None:
    root, _ = dataset
    with Loader(samples, PREPROCESS) as loader:
        for batch in loader.batches(whole_photos(range(len(samples)), batch_size=5)):
            for row, photo in zip(batch.rows, batch.photos.numpy(), strict=True):
                with Shard.open(root, samples.shard_name(int(samples.parts[row]))) as shard:
                    stored = decode_stored(shard.get(samples.key(int(row))))
                assert np.array_equal(photo, fit_photo(stored, PREPROCESS))


def test_a_run_sees_the_same_photos_changed_the_same_way_each_time(samples: Samples) -> None:
    once = list(flat(shown(samples)))
    assert once == list(flat(shown(samples, threads=4, micro_batch=8)))
    per_epoch = len(samples)
    first, second = once[:per_epoch], once[per_epoch : 2 * per_epoch]
    assert sorted(row for row, _ in first) == list(range(per_epoch))
    assert dict(first) != dict(second)


@pytest.mark.parametrize("start_step", [1, 4, 5, 8])
def test_a_resumed_run_goes_on_where_it_stopped(samples: Samples, start_step: int) -> None:
    before = sum(len(rows) for rows, _ in shown(samples, num_steps=start_step))
    assert list(flat(shown(samples, start_step=start_step))) == list(flat(shown(samples)))[before:]


@pytest.mark.parametrize("num_workers", [2, 3, 9])
def test_workers_share_each_step_and_take_part_in_all(samples: Samples, num_workers: int) -> None:
    alone = shown(samples, micro_batch=8)
    shares = [shown(samples, rank=rank, num_workers=num_workers, micro_batch=8) for rank in range(num_workers)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, (rows, _) in enumerate(alone):
        together = [row for share in shares for row in share[step][0]]
        assert together == rows


def test_a_photo_that_does_not_decode_is_named(tmp_path: Path) -> None:
    root, manifest = published(tmp_path / "root", listings=4, parts=1)
    samples = Samples(root, manifest, "train")
    key = samples.key(0)
    shard = Path(root.path(samples.shard_name(0)))
    with Shard(shard) as opened:
        jpeg = opened.get(key)
    shard.write_bytes(shard.read_bytes().replace(jpeg[:40], bytes(40)))
    with (
        Loader(samples, PREPROCESS) as loader,
        pytest.raises(IntegrityError, match=f"photo {key} of cars@.*verify.py"),
    ):
        list(loader.batches([Work(np.arange(len(samples)), None)]))


def test_photos_crawled_again_since_are_refused(tmp_path: Path) -> None:
    root, manifest = published(tmp_path / "root", listings=4, parts=1)
    write_part(root, "demo-0", [Listing(f"{n:03d}", [noise(900 + n), noise(950 + n)]) for n in range(4)])
    with pytest.raises(IntegrityError, match="crawled again since; publish a new version"):
        Samples(root, manifest, "train")


def test_a_split_without_photos_says_which_there_are(dataset: tuple[Root, Manifest]) -> None:
    with pytest.raises(UsageError, match=r"split 'nope' of cars@.*train"):
        Samples(*dataset, "nope")
