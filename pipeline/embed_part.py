"""Embed one part: its stored photos, read in shard order, become rows of `embeddings/SLUG/` and a receipt.

Reads: photos (key, outcome) and the shard of a part that ingest has committed. Photos are decoded in threads while the
batch before is on the device; no pixel leaves the process.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.embed_encoders import load_encoder
from pipeline.embeddings import embed_stage, embeddings_folder, embeddings_table
from pipeline.runner import PartContext
from schemas.errors import PartError, ReconcileError, RunError, UsageError
from schemas.image import decode_stored
from schemas.receipts import INGEST_STAGES, PartWriter, Receipt, read_receipt
from schemas.shards import Shard
from schemas.storage import Root

# Batches being decoded while one is embedded.
_BATCHES_AHEAD = 2

log = logging.getLogger("forecourt.embed")


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """What a worker needs to know: plain values, for it may be on another machine."""

    encoder: str
    weights: str | None
    weights_fingerprint: str
    device: str | None
    precision: str | None
    decode_threads: int

    def pinned(self) -> dict[str, Any]:
        """Return the settings that decide an embedding, as receipts hold them."""
        chosen = {"encoder": self.encoder, "weights": self.weights_fingerprint, "precision": self.precision}
        return {"embed": chosen}


def source_inputs(receipt: Receipt) -> dict[str, str]:
    """Name what a part's embeddings are made of: the checksums of its photos' rows and bytes."""
    return {folder: receipt.files[receipt.file(folder)].sha256 for folder in ("photos", "shards")}


def source_receipt(root: Root, part: str) -> Receipt | None:
    """Return the receipt that ingest has committed a part with."""
    return next((found for stage in INGEST_STAGES if (found := read_receipt(root, stage, part)) is not None), None)


class EmbedWork:
    """Embeds parts with an encoder that is loaded once; called from two threads at a time."""

    def __init__(self, spec: EmbedSpec) -> None:
        """Load the encoder.

        Raises:
            UsageError: it cannot be loaded here, or learnt from another file than where the run was started.
        """
        self._spec = spec
        self._encoder = load_encoder(spec.encoder, weights=spec.weights, device=spec.device, precision=spec.precision)
        if self._encoder.weights != spec.weights_fingerprint:
            raise UsageError(
                f"{spec.encoder} has other weights on a worker ({self._encoder.weights[:16]}...) than where the run "
                f"was started ({spec.weights_fingerprint[:16]}...); put the same file on every machine"
            )
        side_px = self._encoder.view.side_px
        self._dim = self._encoder.encode(np.zeros((1, side_px, side_px, 3), np.uint8)).shape[1]

    def __call__(self, context: PartContext, spec: None = None) -> Mapping[str, int]:
        """Embed one part and commit it.

        Raises:
            ReconcileError: photos stored are not photos embedded and unreadable.
            PartError: the part was committed anew meanwhile.
        """
        root, stage = Root(context.ticket.root), embed_stage(self._spec.encoder)
        source = source_receipt(root, context.part)
        if source is None:
            raise PartError(f"part {context.part} is committed no more; run again")
        writer = PartWriter(
            root, stage, context.part, token=context.ticket.token, fence=context.check, attempt=context.attempt
        )
        try:
            keys, vectors = self._embed(context, root, source)
            writer.write_table(embeddings_folder(self._spec.encoder), embeddings_table(keys, vectors))
            counts = {"photos": source.counts["stored"], "embedded": len(keys)}
            counts["unreadable"] = counts["photos"] - counts["embedded"]
            return writer.commit(counts=counts, settings=self._spec.pinned(), inputs=source_inputs(source)).counts
        except BaseException as error:
            writer.abandon()
            if isinstance(error, RunError | OSError) and source_receipt(root, context.part) != source:
                raise PartError(f"part {context.part} was committed anew while it was embedded") from error
            raise

    def _embed(self, context: PartContext, root: Root, source: Receipt) -> tuple[list[str], NDArray[np.float16]]:
        """Embed a part's readable photos, in order of key: their keys, and their vectors (N, D)."""
        keys: list[str] = []
        vectors = [np.empty((0, self._dim), np.float16)]
        seen = 0
        with (
            Shard.open(root, source.file("shards")) as shard,
            ThreadPoolExecutor(self._spec.decode_threads, thread_name_prefix="decode") as threads,
        ):
            _require_stored(root, source, shard)
            for batch_keys, photos in self._batches(shard, threads):
                with context.watchdog.doing(f"embedding {batch_keys[0]} and what follows"):
                    readable = [photo for photo in photos if photo is not None]
                    if readable:
                        vectors.append(self._encoder.encode(np.stack(readable)).astype(np.float16))
                keys += [key for key, photo in zip(batch_keys, photos, strict=True) if photo is not None]
                seen += len(photos)
                context.advance({"photos": seen})
        return keys, np.concatenate(vectors)

    def _batches(
        self, shard: Shard, threads: ThreadPoolExecutor
    ) -> Iterator[tuple[list[str], list[NDArray[np.uint8] | None]]]:
        """Yield batches of keys, and of prepared photos, None for one that does not decode."""
        ahead: deque[tuple[list[str], list[Future[NDArray[np.uint8] | None]]]] = deque()
        items = shard.items()
        while True:
            while len(ahead) <= _BATCHES_AHEAD and (batch := list(islice(items, self._encoder.batch_size))):
                ahead.append(([key for key, _ in batch], [threads.submit(self._prepared, *item) for item in batch]))
            if not ahead:
                return
            keys, photos = ahead.popleft()
            yield keys, [photo.result() for photo in photos]

    def _prepared(self, key: str, jpeg: bytes) -> NDArray[np.uint8] | None:
        try:
            return self._encoder.prepare(decode_stored(jpeg))
        except ValueError as error:
            log.warning("event=unreadable key=%s error=%s", key, error)
            return None


def _require_stored(root: Root, source: Receipt, shard: Shard) -> None:
    """Stop where the shard does not hold just the photos that the part's rows call stored.

    Raises:
        ReconcileError: a photo is lost or there twice.
    """
    rows = root.read_table(source.file("photos"), columns=["key", "outcome"])
    stored = sorted(rows.filter(pc.equal(rows["outcome"], "stored"))["key"].to_pylist())
    held = list(shard.keys())
    if stored != held or len(held) != source.counts["stored"]:
        odd = sorted(set(stored) ^ set(held))[:3] or sorted(key for key in stored if stored.count(key) > 1)[:3]
        raise ReconcileError(
            f"part {source.part}: {source.counts['stored']:,} photos are stored by its receipt, {len(stored):,} by its "
            f"rows, and its shard holds {len(held):,} ({', '.join(odd)}); see pipeline/verify.py --repair"
        )
