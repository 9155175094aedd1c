"""A published data set as batches of uint8 photos, straight from the shards.

Reads: the manifest's rows of one split, once, as columns; then photos by key. Threads decode and resize them into a few
reused buffers, ahead of the model; the codecs let go of the interpreter, so threads serve as well as processes do, and
nothing is pickled. What is shown, in which order and how changed is a pure function of seed, epoch and photo
(training/epoch_order.py), so a run resumed at any step, with any number of workers, sees what an undisturbed one would.
"""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from schemas.errors import ImageError, IntegrityError, UsageError
from schemas.image import decode_stored
from schemas.manifest import Manifest, read_rows
from schemas.receipts import INGEST_STAGES, read_receipt
from schemas.settings import Section, operational, result
from schemas.shards import Shard
from schemas.storage import Root
from training.epoch_order import EpochOrder, draws, share_of
from training.losses import MISSING, Targets
from training.preprocess import (
    NUM_COLOUR_DRAWS,
    NUM_CROP_DRAWS,
    AugmentSettings,
    PreprocessSettings,
    augment_photo,
    fit_photo,
)

_COLUMNS = ["key", "part", "split", "group_id", "price_usd", "price_bin", "make_model_id", "year_id", "sha256"]
_PHOTOS_PER_TASK = 8


class DataSettings(Section):
    """How photos reach the model."""

    parts_per_window: int = result(8, "parts whose photos are shuffled with each other; their shards stay warm", ge=1)
    threads: int | None = operational(None, "threads that decode; None is one a core", ge=1)
    prefetch: int = operational(3, "batches made ready ahead of the model", ge=1)


class Samples:
    """The rows of one split: where each photo lies and what is known of it; memory is some 60 bytes a row, and its key.

    Raises:
        UsageError: the split is empty.
        IntegrityError: a photo's bytes are not those that were published.
    """

    def __init__(self, root: Root, manifest: Manifest, split: str) -> None:
        batches = [_of_split(batch, split) for batch in read_rows(root, manifest)]
        if not sum(batch.num_rows for batch in batches):
            found = {name: counts.photos for name, counts in manifest.splits.items()}
            raise UsageError(f"split {split!r} of {manifest.reference} has no photos; photos by split: {found}")
        table = pa.Table.from_batches(batches)
        self.root, self.split, self.reference = root, split, manifest.reference
        self.keys: pa.ChunkedArray = table["key"]
        parts = table["part"].combine_chunks().dictionary_encode()
        groups = table["group_id"].combine_chunks().dictionary_encode()
        self.part_names: list[str] = parts.dictionary.to_pylist()
        self.parts = parts.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self.groups = groups.indices.to_numpy(zero_copy_only=False).astype(np.int64)  # (N,), numbered from 0
        self.price_usd = table["price_usd"].cast(pa.float64()).to_numpy().astype(np.float32)  # (N,), NaN where missing
        self.classes = {
            head: pc.fill_null(table[column].cast(pa.int64()), MISSING).to_numpy()
            for head, column in (("price_bin", "price_bin"), ("make_model", "make_model_id"), ("year", "year_id"))
        }
        self._shard_names = [self._checked_shard(table, part) for part in self.part_names]

    def __len__(self) -> int:
        return len(self.parts)

    def key(self, row: int) -> str:
        """Return the key of a row."""
        key: str = self.keys[int(row)].as_py()
        return key

    def shard_name(self, part: int) -> str:
        """Return the shard of a part, by the part's number."""
        return self._shard_names[part]

    def targets(self, rows: NDArray[np.int64], *, price_scale_usd: float) -> Targets:
        """Return what is known of some rows, prices in units of the scale."""
        known = {head: torch.from_numpy(classes[rows]) for head, classes in self.classes.items()}
        return Targets(**known, price=torch.from_numpy(self.price_usd[rows] / np.float32(price_scale_usd)))

    def counts(self, rows: NDArray[np.int64]) -> dict[str, int]:
        """Count for each head the rows whose target is known."""
        known = {head: int((classes[rows] != MISSING).sum()) for head, classes in self.classes.items()}
        priced = int((~np.isnan(self.price_usd[rows])).sum())
        return {**known, "price_median": priced, "price_quantiles": priced}

    def _checked_shard(self, table: pa.Table, part: str) -> str:
        """Find a part's shard, and see that ingest still stores the bytes that were published."""
        for stage in INGEST_STAGES:
            if (receipt := read_receipt(self.root, stage, part)) is not None:
                stored = self.root.read_table(receipt.file("photos"), ["key", "sha256"])
                mine = table.filter(pc.equal(table["part"], part)).select(["key", "sha256"])
                found = mine.join(stored, "key", right_suffix="_stored")
                same = pc.fill_null(pc.equal(found["sha256"], found["sha256_stored"]), False)
                if changed := found.filter(pc.invert(same))["key"].to_pylist():
                    raise IntegrityError(
                        f"{len(changed)} photos of part {part} are not those that {self.reference} means, such as "
                        f"{min(changed)}: the part was crawled again since; publish a new version, and train on that"
                    )
                return receipt.file("shards")
        raise IntegrityError(
            f"{self.reference} names part {part!r}, which is not at {self.root}; see pipeline/verify.py"
        )


def _of_split(batch: pa.RecordBatch, split: str) -> pa.RecordBatch:
    return batch.select(_COLUMNS).filter(pc.equal(batch.column("split"), split))


@dataclass(frozen=True, slots=True)
class Batch:
    """Some photos, valid until the next batch is asked for: the buffer is used again."""

    rows: NDArray[np.int64]  # (B,)
    photos: torch.Tensor  # uint8 (B, S, S, 3)
    colour_draws: torch.Tensor  # float64 (B, NUM_COLOUR_DRAWS)


@dataclass(frozen=True, slots=True)
class Work:
    """Rows to show as one batch; `epoch` None shows whole photos, unchanged."""

    rows: NDArray[np.int64]
    epoch: int | None


def training_work(
    order: EpochOrder, *, start_step: int, num_steps: int, rank: int, num_workers: int, micro_batch: int
) -> Iterator[Work]:
    """Yield one worker's micro-batches of the global steps [start_step, num_steps), in order.

    A worker whose share of a step is empty gets one empty piece of work, so that all take part in every step.
    """
    epoch, step_in_epoch = divmod(start_step, order.steps_per_epoch)
    step = start_step
    while step < num_steps:
        for rows in order.batches(epoch, start_step=step_in_epoch):
            if step == num_steps:
                return
            mine = share_of(rows, rank=rank, num_workers=num_workers)
            for begin in range(0, max(1, len(mine)), micro_batch):
                yield Work(mine[begin : begin + micro_batch], epoch)
            step += 1
        epoch, step_in_epoch = epoch + 1, 0


class Loader(AbstractContextManager["Loader"]):
    """Make batches of photos ready ahead of the model."""

    def __init__(
        self,
        samples: Samples,
        preprocess: PreprocessSettings,
        *,
        augment: AugmentSettings | None = None,
        settings: DataSettings | None = None,
        seed: int = 0,
    ) -> None:
        self._samples, self._preprocess, self._augment, self._seed = samples, preprocess, augment, seed
        self._settings = settings or DataSettings()
        # As many shards as two windows have: the last photos of one are read beside the first of the next.
        self._shards = _OpenShards(samples, keep=2 * self._settings.parts_per_window)
        self._threads = ThreadPoolExecutor(self._settings.threads or os.cpu_count(), thread_name_prefix="decode")

    def batches(self, work: Iterable[Work]) -> Iterator[Batch]:
        """Yield a batch for each piece of work, in order.

        Raises:
            IntegrityError: a photo is not there or does not decode; the message names its key.
        """
        waiting = iter(work)
        free: deque[NDArray[np.uint8]] = deque()
        ahead: deque[tuple[Work, NDArray[np.uint8], NDArray[np.float64], list[Future[None]]]] = deque()
        try:
            while True:
                while len(ahead) <= self._settings.prefetch and (piece := next(waiting, None)) is not None:
                    ahead.append(self._begin(piece, free))
                if not ahead:
                    return
                piece, buffer, drawn, futures = ahead.popleft()
                for future in futures:
                    future.result()
                size = len(piece.rows)
                yield Batch(piece.rows, torch.from_numpy(buffer[:size]), torch.from_numpy(drawn[:, NUM_CROP_DRAWS:]))
                free.append(buffer)
        finally:
            for _, _, _, futures in ahead:
                for future in futures:
                    future.cancel()

    def _begin(
        self, piece: Work, free: deque[NDArray[np.uint8]]
    ) -> tuple[Work, NDArray[np.uint8], NDArray[np.float64], list[Future[None]]]:
        """Hand a piece of work to the threads."""
        size, side = len(piece.rows), self._preprocess.size_px
        buffer = free.popleft() if free and len(free[0]) >= size else np.empty((size, side, side, 3), dtype=np.uint8)
        drawn = draws(self._seed, piece.epoch or 0, piece.rows, NUM_CROP_DRAWS + NUM_COLOUR_DRAWS)
        # Shards are opened here, in order: no thread waits for another's.
        parts = {int(part): self._shards.open(int(part)) for part in np.unique(self._samples.parts[piece.rows])}
        futures = [
            self._threads.submit(self._fill, piece, parts, drawn, buffer, begin, min(begin + _PHOTOS_PER_TASK, size))
            for begin in range(0, size, _PHOTOS_PER_TASK)
        ]
        return piece, buffer, drawn, futures

    def _fill(
        self,
        piece: Work,
        shards: dict[int, Shard],
        drawn: NDArray[np.float64],
        buffer: NDArray[np.uint8],
        begin: int,
        end: int,
    ) -> None:
        """Decode the photos of rows [begin, end) into the buffer."""
        for position in range(begin, end):
            row = int(piece.rows[position])
            key = self._samples.key(row)
            try:
                photo = decode_stored(shards[int(self._samples.parts[row])].get(key))
            except (KeyError, ImageError, ValueError) as error:
                raise IntegrityError(
                    f"photo {key} of {self._samples.reference}: {error}; see pipeline/verify.py"
                ) from error
            if self._augment is None or piece.epoch is None:
                fit_photo(photo, self._preprocess, out=buffer[position])
            else:
                augment_photo(photo, drawn[position], self._preprocess, self._augment, out=buffer[position])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._shards.close()


class _OpenShards:
    """The shards in use, warmed when they are opened; those not asked for the longest are closed."""

    def __init__(self, samples: Samples, *, keep: int) -> None:
        self._samples, self._keep = samples, keep
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, part: int) -> Shard:
        """Return the shard of a part."""
        with self._lock:
            if part not in self._open:
                self._open[part] = Shard.open(self._samples.root, self._samples.shard_name(part))
                self._open[part].warm()
            self._open.move_to_end(part)
            while len(self._open) > self._keep:
                self._open.popitem(last=False)  # closed when no thread holds it any more
            return self._open[part]

    def close(self) -> None:
        """Let go of all."""
        self._open.clear()


def whole_photos(rows: Sequence[int] | NDArray[np.int64], *, batch_size: int) -> Iterator[Work]:
    """Yield rows in order as batches of whole photos, as evaluation shows them."""
    listed = np.asarray(rows, dtype=np.int64)
    for begin in range(0, len(listed), batch_size):
        yield Work(listed[begin : begin + batch_size], None)
